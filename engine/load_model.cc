#include <algorithm>
#include <cctype>
#include <cstdio>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "engine/available_memory.h"
#include "engine/base/status.h"
#include "engine/device_choice.h"
#include "engine/engine.h"
#include "engine/model/sha256.h"
#include "engine/model/tensor_places.h"
#include "engine/model_file/model_file.h"
#include "engine/model_file/open_file.h"
#include "engine/model_runner.h"
#include "engine/self_check.h"

namespace sluice::engine {
namespace {

int ThreadsPerEngine(const EngineOptions& options) {
  if (options.num_threads > 0) return options.num_threads;
  const int cores = std::max(1u, std::thread::hardware_concurrency());
  return std::max(1, cores / options.num_engines);
}

absl::Status CheckOptions(const EngineOptions& options) {
  const auto in_range = [](std::string_view name, int64_t value, int64_t least, int64_t most) {
    if (value >= least && value <= most) return absl::OkStatus();
    return InvalidArgument(std::string(name) + ": expected " + std::to_string(least) + " to " +
                           std::to_string(most) + ", got " + std::to_string(value));
  };
  RETURN_IF_ERROR(in_range("number of engines", options.num_engines, 1, 64));
  RETURN_IF_ERROR(in_range("threads of an engine", options.num_threads, 0, 1024));
  RETURN_IF_ERROR(in_range("threads of all engines",
                           int64_t{options.num_engines} * options.num_threads, 0, 1024));
  RETURN_IF_ERROR(in_range("largest batch", options.max_batch, 1, 4096));
  RETURN_IF_ERROR(in_range("tokens of a step", options.max_step_tokens, 1, 65'536));
  RETURN_IF_ERROR(in_range("queue", options.max_queue, 1, 1 << 20));
  if (options.max_context != 0) {
    RETURN_IF_ERROR(in_range("context", options.max_context, 2, 1 << 24));
  }
  if (options.max_step_tokens < options.max_batch) {
    return InvalidArgument("tokens of a step (" + std::to_string(options.max_step_tokens) +
                           ") must not be fewer than the largest batch (" +
                           std::to_string(options.max_batch) + ")");
  }
  return absl::OkStatus();
}

// Pages and served context of one engine's pool.
struct PoolSize {
  int64_t num_pages = 0;  // page 0 included
  int32_t max_context = 0;
};

// Pages of one engine, page 0 included, as asked for; or what max_batch sequences of full context
// need, at most a quarter of the available memory (all of it on a device of its own) shared by the
// engines, at least one sequence of 2,048 positions.
absl::StatusOr<int64_t> NumPages(const EngineOptions& options, int64_t page_bytes,
                                 int64_t sequence_pages, int64_t available, bool is_cuda) {
  if (options.kv_memory_bytes == 0) {
    const int64_t share = (is_cuda ? available : available / 4) / options.num_engines;
    const int64_t least = std::min<int64_t>(sequence_pages, 2048 / kernels::kPageTokens);
    return 1 + std::max(least, std::min(sequence_pages * options.max_batch, share / page_bytes));
  }
  const auto pages =
      static_cast<int64_t>(options.kv_memory_bytes / static_cast<uint64_t>(page_bytes));
  if (pages < 2) {
    return InvalidArgument("KV memory: at least 2 pages of " + std::to_string(page_bytes) +
                           " bytes are needed, got " + std::to_string(options.kv_memory_bytes) +
                           " bytes");
  }
  return std::min(pages, sequence_pages * options.max_batch + 1);
}

// What the weights will take in memory, in the layout of `backend`.
uint64_t WeightBytes(const ModelFile& file, const ModelConfig& config, kernels::Backend backend) {
  std::unordered_set<std::string> placed;
  for (TensorPlace& place : TensorPlaces(config)) placed.insert(std::move(place.name));
  uint64_t bytes = 0;
  for (const FileTensor& tensor : file.tensors()) {
    if (!placed.contains(tensor.name)) continue;
    const bool is_matrix = tensor.rows() > 1;
    if (!is_matrix) {
      bytes += tensor.cols() * sizeof(float);
    } else if (kernels::SupportsWeight(backend, tensor.type)) {
      bytes += static_cast<uint64_t>(kernels::PackedBytes(backend, tensor.type,
                                                          static_cast<int64_t>(tensor.rows()),
                                                          static_cast<int64_t>(tensor.cols())));
    } else {
      bytes += tensor.bytes;  // Weights::Load will refuse it
    }
  }
  return bytes;
}

// What logits, activations and scratch of a device take, about.
uint64_t ScratchBytes(const EngineOptions& options, const ModelConfig& config) {
  const auto batch = static_cast<uint64_t>(options.max_batch);
  const auto tokens = static_cast<uint64_t>(options.max_step_tokens);
  const uint64_t of_logits = batch * static_cast<uint64_t>(config.vocab_size) * 16;
  const uint64_t of_tokens =
      tokens * (static_cast<uint64_t>(config.ffn_width) * 16 +
                static_cast<uint64_t>(config.width + config.num_heads * config.head_size) * 32);
  return of_logits + of_tokens + (uint64_t{1} << 30);
}

// `weight_bytes`: what the weights will take out of the available memory.
absl::StatusOr<PoolSize> SizePool(const EngineOptions& options, const DeviceChoice& device,
                                  const ModelConfig& config, kernels::DType kv_type,
                                  uint64_t weight_bytes) {
  if (config.context_length < 2) {
    return InvalidArgument("context_length: expected at least 2 positions, got " +
                           std::to_string(config.context_length));
  }
  const int32_t wanted = options.max_context > 0 ? options.max_context : config.context_length;
  if (wanted > config.context_length) {
    return InvalidArgument("context: the model has " + std::to_string(config.context_length) +
                           " positions, asked for " + std::to_string(wanted));
  }
  const int64_t page_bytes = KvCache::PageBytes(config, kv_type);
  const int64_t sequence_pages =
      (int64_t{wanted} + kernels::kPageTokens - 1) / kernels::kPageTokens;
  uint64_t memory = AvailableMemory(), taken = weight_bytes;
  if (device.is_cuda()) {
    memory =
        static_cast<uint64_t>(static_cast<double>(device.free_bytes) * options.gpu_memory_fraction);
    taken += ScratchBytes(options, config);
  }
  const auto available = static_cast<int64_t>(memory > taken ? memory - taken : 0);
  ASSIGN_OR_RETURN(const int64_t pages,
                   NumPages(options, page_bytes, sequence_pages, available, device.is_cuda()));
  if (pages > std::numeric_limits<int32_t>::max() / 2) {
    return InvalidArgument("KV memory: at most 2^30 pages, got " + std::to_string(pages));
  }
  if (pages * page_bytes * options.num_engines > available) {
    return ResourceExhausted("KV memory: " + std::to_string(options.num_engines) + " x " +
                             std::to_string(pages) + " pages of " + std::to_string(page_bytes) +
                             " bytes do not fit the " + std::to_string(available) +
                             " bytes that the weights leave available");
  }
  const int64_t positions = (pages - 1) * kernels::kPageTokens;
  if (options.max_context > positions) {
    return InvalidArgument("context: " + std::to_string(options.max_context) +
                           " positions were asked for, the KV pool holds " +
                           std::to_string(positions));
  }
  return PoolSize{pages, static_cast<int32_t>(std::min<int64_t>(wanted, positions))};
}

std::string MostFrequentMatrixType(const ModelFile& file) {
  std::map<std::string, uint64_t> bytes;
  for (const FileTensor& tensor : file.tensors()) {
    if (tensor.dims.size() > 1) bytes[std::string(kernels::Name(tensor.type))] += tensor.bytes;
  }
  const auto most = std::max_element(
      bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == bytes.end() ? "" : most->first;
}

std::string BaseName(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

ModelFacts MakeFacts(const ModelFile& file, const ModelConfig& config, const Weights& weights,
                     const PoolSize& pool, const DeviceRunner::Options& runner,
                     const EngineOptions& options, const std::string& backend) {
  ModelFacts facts;
  facts.name = config.name;
  facts.architecture = config.architecture;
  facts.file = BaseName(file.path());
  facts.weights_digest = weights.digest();
  facts.quantization = MostFrequentMatrixType(file);
  for (const FileTensor& tensor : file.tensors()) {
    facts.num_parameters += static_cast<int64_t>(tensor.rows() * tensor.cols());
  }
  facts.weight_bytes = weights.resident_bytes();
  facts.vocab_size = config.vocab_size;
  facts.context_length = config.context_length;
  facts.num_layers = config.num_layers;
  facts.width = config.width;
  facts.num_heads = config.num_heads;
  facts.num_kv_heads = config.num_kv_heads;
  facts.head_size = config.head_size;
  facts.ffn_width = config.ffn_width;
  facts.backend = backend;
  facts.kv_dtype = runner.kv_type == kernels::DType::kF16 ? "f16" : "f32";
  const bool is_cuda = runner.exec.backend == kernels::Backend::kCuda;
  facts.numerics = (is_cuda ? "exact f16 kv-" : "exact int16 kv-") + facts.kv_dtype;
  facts.max_context = pool.max_context;
  facts.kv_pages = pool.num_pages - 1;
  facts.kv_bytes = pool.num_pages * KvCache::PageBytes(config, runner.kv_type);
  return facts;
}

// What the model has taken of the device it was loaded on. `before`: as it was found.
absl::Status AddDeviceFacts(const DeviceChoice& before, const EngineOptions& options,
                            ModelFacts& facts) {
  if (!before.is_cuda()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const DeviceChoice after, DeviceChoice::Open(options.device));
  facts.device = after.Describe();
  facts.device_free_bytes = after.free_bytes;
  const uint64_t known = facts.weight_bytes + static_cast<uint64_t>(facts.kv_bytes) *
                                                  static_cast<uint64_t>(options.num_engines);
  const uint64_t left = after.free_bytes + known;
  facts.device_workspace_bytes = before.free_bytes > left ? before.free_bytes - left : 0;
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadTokenizer(const ModelFile& file,
                                                               const ModelConfig& config,
                                                               std::vector<std::string>& warnings) {
  absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer = Tokenizer::FromFile(file, &warnings);
  if (absl::IsNotFound(tokenizer.status())) {
    warnings.push_back("the file has no vocabulary: requests must carry token ids");
    return std::shared_ptr<const Tokenizer>();
  }
  if (tokenizer.ok() && (*tokenizer)->vocab_size() > config.vocab_size) {
    return InvalidArgument(
        file.path() + ": tokenizer.ggml.tokens: expected at most " +
        std::to_string(config.vocab_size) + " tokens (rows of token_embd.weight), got " +
        std::to_string((*tokenizer)->vocab_size()) + file.At("tokenizer.ggml.tokens"));
  }
  return tokenizer;
}

// The file's bytes hash to `expected`, 64 hex digits. Reads all of it once more.
absl::Status CheckSha256(const std::string& path, const std::string& expected) {
  std::string wanted = expected;
  for (char& digit : wanted)
    digit = static_cast<char>(std::tolower(static_cast<unsigned char>(digit)));
  if (wanted.size() != 64 || wanted.find_first_not_of("0123456789abcdef") != std::string::npos) {
    return InvalidArgument("sha256 of the model: expected 64 hex digits, got '" +
                           expected.substr(0, 64) + "'");
  }
  ASSIGN_OR_RETURN(const OpenFile file, OpenFile::Open(path));
  std::vector<std::byte> piece(size_t{4} << 20);
  Sha256 hash;
  for (uint64_t at = 0; at < file.bytes(); at += piece.size()) {
    piece.resize(std::min<uint64_t>(piece.size(), file.bytes() - at));
    RETURN_IF_ERROR(file.Read(at, piece));
    hash.Add(piece);
  }
  const std::string actual = Sha256::Hex(hash.Finish());
  if (actual == wanted) return absl::OkStatus();
  return FailedPrecondition(path + ": sha256: expected " + wanted + ", got " + actual);
}

// Tensors that Sluice has no use for: often a sign of a model that is more than its architecture.
absl::Status WarnOfUnused(const ModelFile& file, std::vector<std::string>& warnings) {
  ASSIGN_OR_RETURN(const TensorRoles roles, DescribeTensors(file));
  if (roles.unused.empty()) return absl::OkStatus();
  warnings.push_back(std::to_string(roles.unused.size()) + " tensors are not used, '" +
                     roles.unused.front() + "' first");
  return absl::OkStatus();
}

}  // namespace

std::string_view Name(KvDType type) { return type == KvDType::kF16 ? "f16" : "f32"; }

absl::StatusOr<LoadedModel> LoadModel(const std::string& path, const EngineOptions& options,
                                      int num_lanes,
                                      const std::function<void(const LoadProgress&)>& progress) {
  const auto report = [&](std::string_view phase, uint64_t done, uint64_t total) {
    if (progress) progress({phase, done, total});
  };
  RETURN_IF_ERROR(CheckOptions(options));
  report("open", 0, 0);
  if (!options.model_sha256.empty()) RETURN_IF_ERROR(CheckSha256(path, options.model_sha256));
  ASSIGN_OR_RETURN(std::shared_ptr<const ModelFile> file, ModelFile::Open(path));
  ASSIGN_OR_RETURN(ModelConfig read_config, ModelConfig::FromFile(*file, options.planted_bug));
  const auto config = std::make_shared<const ModelConfig>(std::move(read_config));
  LoadedModel model;
  model.warnings = config->notes;
  RETURN_IF_ERROR(WarnOfUnused(*file, model.warnings));
  ASSIGN_OR_RETURN(model.tokenizer, LoadTokenizer(*file, *config, model.warnings));

  ASSIGN_OR_RETURN(const DeviceChoice device, DeviceChoice::Open(options.device));
  ASSIGN_OR_RETURN(kernels::CpuIsa isa, kernels::DetectCpuIsa());
  if (options.force_avx2) isa = kernels::CpuIsa::kAvx2;
  const int num_threads = ThreadsPerEngine(options);
  const kernels::DType kv_type = device.KvType(options);
  const uint64_t weight_bytes = WeightBytes(*file, *config, device.backend);
  ASSIGN_OR_RETURN(const PoolSize pool, SizePool(options, device, *config, kv_type, weight_bytes));
  ASSIGN_OR_RETURN(std::shared_ptr<const Weights> weights,
                   Weights::Load(*file, *config,
                                 {.backend = device.backend,
                                  .num_threads = num_threads * options.num_engines,
                                  .planted_bug = options.planted_bug,
                                  .lock_memory = options.lock_memory,
                                  .progress = [&](uint64_t done, uint64_t total) {
                                    report("weights", done, total);
                                  }}));

  const DeviceRunner::Options runner_options = {
      .exec = {.backend = device.backend,
               .num_threads = device.is_cuda() ? 1 : num_threads,
               .isa = isa,
               .planted_bug = options.planted_bug,
               // Its blocks wait for each other on all multiprocessors: two would starve each other.
               .persistent_decode = options.num_engines == 1},
      .kv_type = kv_type,
      .num_pages = pool.num_pages,
      .max_tokens = options.max_step_tokens,
      .max_rows = options.max_batch,
      .max_context = pool.max_context};
  report("self-check", 0, 0);
  ASSIGN_OR_RETURN(const ModelConfig strict_config, ModelConfig::FromFile(*file));
  ASSIGN_OR_RETURN(model.self_check,
                   RunSelfCheck(*file, strict_config, runner_options, config, weights));
  if (!model.self_check.passed) model.warnings.push_back(model.self_check.message);

  // While a device computes a step, the next one is planned and launched.
  const int depth = device.is_cuda() ? 1 : 0;
  const SchedulerLimits limits = {.depth = depth,
                                  .max_batch = options.max_batch,
                                  .max_step_tokens = options.max_step_tokens,
                                  .max_queue = options.max_queue,
                                  .num_pages = static_cast<int>(pool.num_pages),
                                  .max_context = pool.max_context,
                                  .f16_kv = kv_type == kernels::DType::kF16};
  const int64_t sequence_pages =
      (pool.max_context + kernels::kPageTokens - 1) / kernels::kPageTokens;
  const Batch::Limits batch_limits = {
      .max_tokens = options.max_step_tokens,
      .max_rows = options.max_batch,
      .max_pages = static_cast<int>(std::min(sequence_pages * options.max_batch, pool.num_pages))};
  DeviceRunner::Options served_options = runner_options;  // the self-check's caches live shortly
  served_options.lock_memory = options.lock_memory;
  auto chunks = std::make_unique<ChunkMailbox>(num_lanes);
  std::vector<std::unique_ptr<Engine>> engines;
  std::string backend;
  for (int i = 0; i < options.num_engines; ++i) {
    ASSIGN_OR_RETURN(std::unique_ptr<DeviceRunner> rank,
                     DeviceRunner::Create(served_options, config, weights));
    backend = device.is_cuda() ? device.name : rank->exec().Describe();
    engines.push_back(std::make_unique<Engine>(
        i, limits, std::make_unique<ModelRunner>(std::move(rank), batch_limits, depth),
        model.tokenizer, chunks.get()));
  }
  model.facts = MakeFacts(*file, *config, *weights, pool, runner_options, options, backend);
  RETURN_IF_ERROR(AddDeviceFacts(device, options, model.facts));
  model.dispatcher = std::make_unique<Dispatcher>(std::move(engines), std::move(chunks));
  return model;
}

}  // namespace sluice::engine
