#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <future>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "engine/available_memory.h"
#include "engine/base/status.h"
#include "engine/chat/chat_encoder.h"
#include "engine/device_choice.h"
#include "engine/engine.h"
#include "engine/gguf/gguf_text.h"
#include "engine/model/sha256.h"
#include "engine/model/tensor_places.h"
#include "engine/model_file/model_file.h"
#include "engine/model_file/open_file.h"
#include "engine/model_runner.h"
#include "engine/pool_size.h"
#include "engine/self_check.h"
#include "engine/warm_up.h"

namespace sluice::engine {
namespace {

int ThreadsPerEngine(const EngineOptions& options) {
  if (options.num_threads > 0) return options.num_threads;
  const int cores = std::max(1u, std::thread::hardware_concurrency());
  return std::max(1, cores / options.num_engines);
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

// What is there for KV caches once weights of `weight_bytes` are loaded.
MemoryOffer OfferOf(const EngineOptions& options, const DeviceChoice& device,
                    const ModelConfig& config, uint64_t weight_bytes) {
  MemoryOffer offer;
  uint64_t memory = AvailableMemory(), taken = weight_bytes;
  if (device.is_cuda()) {
    memory =
        static_cast<uint64_t>(static_cast<double>(device.free_bytes) * options.gpu_memory_fraction);
    taken += ScratchBytes(options, config);
    offer.all_for_kv = true;
    offer.facts = "; the device has " + std::to_string(device.free_bytes) + " of " +
                  std::to_string(device.total_bytes) + " bytes free";
  }
  offer.bytes = static_cast<int64_t>(memory > taken ? memory - taken : 0);
  return offer;
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
  // The CPU has nothing faster than what is exact.
  const std::string arithmetic = !is_cuda                ? "exact int16 kv-"
                                 : options.fast_numerics ? "fast f16 kv-"
                                                         : "exact f16 kv-";
  facts.numerics = arithmetic + facts.kv_dtype;
  facts.max_context = pool.max_context;
  facts.kv_pages = pool.num_pages - 1;
  facts.kv_bytes = pool.num_pages * KvCache::PageBytes(config, runner.kv_type);
  return facts;
}

// What the model has taken of the device it was loaded on. `before`: as it was found, less what
// kernels take.
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

absl::StatusOr<std::string> ReadTemplateFile(const std::string& path) {
  ASSIGN_OR_RETURN(const OpenFile file, OpenFile::Open(path));
  const uint64_t most = chat::Limits().max_template_bytes;
  if (file.bytes() > most) {
    return InvalidArgument(path + ": expected a chat template of at most " + std::to_string(most) +
                           " bytes, got " + std::to_string(file.bytes()));
  }
  std::string text(file.bytes(), '\0');
  RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(text))));
  return text;
}

std::string NoTemplateText(const Tokenizer& tokenizer) {
  const std::string& name = tokenizer.first_template_name();
  if (name.empty()) return "the model's file has no chat template";
  return "the model's file has chat templates by name only, " + Quoted(name) +
         " first, and none named 'default'";
}

// A bad template of the model's file costs its chat only; one that was asked for by name must work.
absl::Status LoadChat(const EngineOptions& options, LoadedModel& model) {
  const bool is_named = !options.chat_template_path.empty();
  if (model.tokenizer == nullptr) {
    model.chat_error = "the model has no vocabulary: send token_ids";
    return is_named ? InvalidArgument("chat template: the model has no vocabulary")
                    : absl::OkStatus();
  }
  std::string named;
  if (is_named) {
    ASSIGN_OR_RETURN(named, ReadTemplateFile(options.chat_template_path));
  }
  const std::string& source = is_named ? named : model.tokenizer->chat_template();
  if (source.empty() && !is_named) {
    model.chat_error = NoTemplateText(*model.tokenizer);
    return absl::OkStatus();
  }
  const std::string tool_use = is_named ? "" : model.tokenizer->tool_use_template();
  auto chat = ChatEncoder::Create(source, model.tokenizer, tool_use);
  if (chat.ok()) {
    model.chat = *std::move(chat);
    const absl::Status usable = model.chat->CheckToolUse();
    if (!usable.ok()) model.warnings.push_back(Message(usable) + "; no chat with tools");
    return absl::OkStatus();
  }
  if (is_named) return Prefix(options.chat_template_path, chat.status());
  model.chat_error = "the model's chat template is not usable: " + Message(chat.status());
  model.warnings.push_back("tokenizer.chat_template: " + Message(chat.status()) + "; no chat");
  return absl::OkStatus();
}

// The file's bytes hash to `expected`, which CheckOptions has seen. Reads all of it once more.
absl::Status CheckSha256(const std::string& path, const std::string& expected) {
  std::string wanted = expected;
  for (char& digit : wanted)
    digit = static_cast<char>(std::tolower(static_cast<unsigned char>(digit)));
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

// How long the phases of a start took, one after the other.
class PhaseClock {
 public:
  void End(const char* phase) {
    const auto now = std::chrono::steady_clock::now();
    char text[64];
    std::snprintf(text, sizeof text, "%s%s %.2f s", line_.empty() ? "" : ", ", phase,
                  Seconds(now - begin_));
    line_ += text;
    begin_ = now;
  }
  std::string Line() const { return "start-up: " + line_; }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::string line_;
};

// What is known of a model before its weights are read. A device comes up meanwhile: its context
// takes as long as a vocabulary of 150,000 tokens.
struct OpenedModel {
  std::shared_ptr<const ModelFile> file;
  std::shared_ptr<const ModelConfig> config;  // as options.planted_bug has it
  std::shared_ptr<const ModelConfig> strict_config;
  std::shared_ptr<const Tokenizer> tokenizer;
  DeviceChoice device;
};

absl::StatusOr<OpenedModel> OpenModel(const std::string& path, const EngineOptions& options,
                                      std::vector<std::string>& warnings) {
  // Opened once more below, where its errors are told and it becomes this thread's.
  std::future<absl::Status> device_is_up =
      std::async(options.device == "cpu" ? std::launch::deferred : std::launch::async, [&options] {
        const auto device = DeviceChoice::Open(options.device);
        return device.ok() && device->own_kernels ? kernels::LoadKernels().status()
                                                  : absl::OkStatus();
      });
  OpenedModel model;
  ASSIGN_OR_RETURN(model.file, ModelFile::Open(path));
  ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::FromFile(*model.file, options.planted_bug));
  ASSIGN_OR_RETURN(ModelConfig strict_config, ModelConfig::FromFile(*model.file));
  model.config = std::make_shared<const ModelConfig>(std::move(config));
  model.strict_config = std::make_shared<const ModelConfig>(std::move(strict_config));
  warnings = model.config->notes;
  RETURN_IF_ERROR(WarnOfUnused(*model.file, warnings));
  ASSIGN_OR_RETURN(model.tokenizer, LoadTokenizer(*model.file, *model.config, warnings));
  RETURN_IF_ERROR(device_is_up.get());
  ASSIGN_OR_RETURN(model.device, DeviceChoice::Open(options.device));
  return model;
}

// Starts the engines of a model whose weights are there.
absl::StatusOr<std::unique_ptr<Dispatcher>> StartEngines(
    const EngineOptions& options, const OpenedModel& opened, const PoolSize& pool,
    const DeviceRunner::Options& runner_options, const std::shared_ptr<const Weights>& weights,
    int num_lanes, std::string& backend) {
  // While a device computes a step, the next one is planned and launched.
  const int depth = opened.device.is_cuda() ? 1 : 0;
  const SchedulerLimits limits = {.depth = depth,
                                  .max_batch = options.max_batch,
                                  .max_step_tokens = options.max_step_tokens,
                                  .max_queue = options.max_queue,
                                  .num_pages = static_cast<int>(pool.num_pages),
                                  .max_context = pool.max_context,
                                  .prefix_cache = options.prefix_cache,
                                  .f16_kv = runner_options.kv_type == kernels::DType::kF16};
  const int64_t sequence_pages =
      (pool.max_context + kernels::kPageTokens - 1) / kernels::kPageTokens;
  // Sequences may share pages: together their tables may name more than the pool has.
  const Batch::Limits batch_limits = {
      .max_tokens = options.max_step_tokens,
      .max_rows = options.max_batch,
      .max_pages = static_cast<int>(
          std::min<int64_t>(std::min<int64_t>(sequence_pages, pool.num_pages) * options.max_batch,
                            std::numeric_limits<int32_t>::max()))};
  DeviceRunner::Options served_options = runner_options;  // the self-check's caches live shortly
  served_options.lock_memory = options.lock_memory;
  auto chunks = std::make_unique<ChunkMailbox>(num_lanes);
  std::vector<std::unique_ptr<Engine>> engines;
  for (int i = 0; i < options.num_engines; ++i) {
    ASSIGN_OR_RETURN(std::unique_ptr<DeviceRunner> rank,
                     DeviceRunner::Create(served_options, opened.config, weights));
    RETURN_IF_ERROR(WarmUp(*rank));
    backend = opened.device.is_cuda() ? opened.device.name : rank->exec().Describe();
    engines.push_back(std::make_unique<Engine>(
        i, limits, std::make_unique<ModelRunner>(std::move(rank), batch_limits, depth),
        opened.tokenizer, chunks.get()));
  }
  return std::make_unique<Dispatcher>(std::move(engines), std::move(chunks));
}

}  // namespace

std::string_view Name(KvDType type) { return type == KvDType::kF16 ? "f16" : "f32"; }

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
  const std::string& sha256 = options.model_sha256;
  const bool is_hash = sha256.size() == 64 &&
                       sha256.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
  if (!sha256.empty() && !is_hash) {
    return InvalidArgument("sha256 of the model: expected 64 hex digits, got '" +
                           sha256.substr(0, 64) + "'");
  }
  return absl::OkStatus();
}

absl::StatusOr<LoadedModel> LoadModel(const std::string& path, const EngineOptions& options,
                                      int num_lanes,
                                      const std::function<void(const LoadProgress&)>& progress) {
  const auto report = [&](std::string_view phase, uint64_t done, uint64_t total) {
    if (progress) progress({phase, done, total});
  };
  RETURN_IF_ERROR(CheckOptions(options));
  PhaseClock clock;
  report("open", 0, 0);
  std::string file_path = path;
  if (!options.model_sha256.empty()) {
    // The file that is hashed is the one that is opened, whatever comes into a directory meanwhile.
    ASSIGN_OR_RETURN(const std::optional<std::string> gguf, ModelFile::GgufPath(path));
    if (!gguf) {
      return InvalidArgument(path +
                             ": sha256: expected one GGUF file, got a directory without one "
                             "or with config.json");
    }
    file_path = *gguf;
    RETURN_IF_ERROR(CheckSha256(file_path, options.model_sha256));
    clock.End("sha256 of the file");
  }
  LoadedModel model;
  ASSIGN_OR_RETURN(const OpenedModel opened, OpenModel(file_path, options, model.warnings));
  const DeviceChoice& device = opened.device;
  model.tokenizer = opened.tokenizer;
  RETURN_IF_ERROR(LoadChat(options, model));
  ASSIGN_OR_RETURN(kernels::CpuIsa isa, kernels::DetectCpuIsa());
  if (options.force_avx2) isa = kernels::CpuIsa::kAvx2;
  const int num_threads = ThreadsPerEngine(options);
  const kernels::DType kv_type = device.KvType(options);
  const uint64_t weight_bytes = WeightBytes(*opened.file, *opened.config, device.backend);
  ASSIGN_OR_RETURN(
      const PoolSize pool,
      SizePool(options, OfferOf(options, device, *opened.config, weight_bytes),
               opened.config->context_length, KvCache::PageBytes(*opened.config, kv_type)));
  clock.End("open");

  // On the CPU inside the self-check; beside the loading of a device, whose memory it does not
  // take.
  std::future<absl::StatusOr<std::vector<float>>> strict =
      std::async(device.is_cuda() ? std::launch::async : std::launch::deferred, [&] {
        return StrictCanary(*opened.file, *opened.strict_config, opened.config->vocab_size,
                            num_threads);
      });
  ASSIGN_OR_RETURN(std::shared_ptr<const Weights> weights,
                   Weights::Load(*opened.file, *opened.config,
                                 {.backend = device.backend,
                                  .num_threads = num_threads * options.num_engines,
                                  .planted_bug = options.planted_bug,
                                  .lock_memory = options.lock_memory,
                                  .progress = [&](uint64_t done, uint64_t total) {
                                    report("weights", done, total);
                                  }}));
  clock.End("weights");

  const DeviceRunner::Options runner_options = {
      .exec = {.backend = device.backend,
               .num_threads = device.is_cuda() ? 1 : num_threads,
               .isa = isa,
               .planted_bug = options.planted_bug,
               // Its blocks wait for each other on all multiprocessors: two would starve each
               // other.
               .persistent_decode = options.num_engines == 1 ? kernels::PersistentDecode::kAuto
                                                             : kernels::PersistentDecode::kOff,
               .fast_numerics = options.fast_numerics},
      .kv_type = kv_type,
      .num_pages = pool.num_pages,
      .max_tokens = options.max_step_tokens,
      .max_rows = options.max_batch,
      .max_context = pool.max_context};
  report("self-check", 0, 0);
  ASSIGN_OR_RETURN(model.self_check,
                   RunSelfCheck(*opened.strict_config, runner_options, opened.config, weights,
                                [&] { return strict.get(); }));
  if (!model.self_check.passed) model.warnings.push_back(model.self_check.message);
  clock.End("self-check");

  std::string backend;
  ASSIGN_OR_RETURN(model.dispatcher, StartEngines(options, opened, pool, runner_options, weights,
                                                  num_lanes, backend));
  clock.End("engines");
  model.facts =
      MakeFacts(*opened.file, *opened.config, *weights, pool, runner_options, options, backend);
  model.notes.push_back(clock.Line());
  if (device.is_cuda()) {
    model.notes.push_back("weights: " + std::to_string(weights->resident_bytes()) +
                          " bytes on the device, " + std::to_string(weights->tensor_bytes()) +
                          " in the file");
  }
  RETURN_IF_ERROR(AddDeviceFacts(device, options, model.facts));
  return model;
}

}  // namespace sluice::engine
