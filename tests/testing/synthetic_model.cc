#include "tests/testing/synthetic_model.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <utility>

#include "engine/base/status.h"
#include "tests/testing/byte_vocabulary.h"
#include "tests/testing/random_blocks.h"

namespace sluice::testing {
namespace {

using engine::InvalidArgument;
using engine::MetadataArray;
using engine::MetadataKey;
using engine::TensorRecord;
using kernels::DType;

struct FileType {
  const char* name;
  DType type;
  uint32_t number;  // general.file_type, as llama.cpp counts
};
constexpr FileType kFileTypes[] = {
    {"f16", DType::kF16, 1},    {"bf16", DType::kBF16, 32},   {"q8_0", DType::kQ8_0, 7},
    {"q4_0", DType::kQ4_0, 2},  {"q4_1", DType::kQ4_1, 3},    {"q5_0", DType::kQ5_0, 8},
    {"q5_1", DType::kQ5_1, 9},  {"q4_k_m", DType::kQ4_K, 15}, {"q5_k_m", DType::kQ5_K, 17},
    {"q2_k", DType::kQ2_K, 10}, {"q3_k_s", DType::kQ3_K, 11}, {"q6_k", DType::kQ6_K, 18},
};

absl::StatusOr<FileType> FileTypeNamed(const std::string& name) {
  std::string names;
  for (const FileType& type : kFileTypes) {
    if (name == type.name) return type;
    names += (names.empty() ? "" : ", ") + std::string(type.name);
  }
  return InvalidArgument("types: expected one of " + names + ", got '" + name + "'");
}

bool IsFloat(DType type) { return type == DType::kF16 || type == DType::kBF16; }

// What llama-quantize takes for a row that is no multiple of a K quant's block.
DType FittingRow(DType type, int cols) {
  if (cols % kernels::Traits(type).block_values == 0) return type;
  if (type == DType::kQ2_K || type == DType::kQ3_K) return DType::kIQ4_NL;
  if (type == DType::kQ4_K) return DType::kQ5_0;
  if (type == DType::kQ5_K) return DType::kQ5_1;
  return DType::kQ8_0;
}

bool UsesMoreBits(int layer, int layers) {
  return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

// Adds the tensors of a spec in file order.
class TensorLister {
 public:
  TensorLister(const SyntheticSpec& spec, DType type) : spec_(spec), type_(type) {}

  void Matrix(const std::string& name, int cols, int rows, DType type) {
    tensors_.push_back(
        {name, {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)}, FittingRow(type, cols)});
  }
  void Vector(const std::string& name, int size) {
    tensors_.push_back({name, {static_cast<uint64_t>(size)}, DType::kF32});
  }

  // The matrix that makes the logits.
  DType HeadType() const {
    if (IsFloat(type_) || type_ == DType::kQ8_0) return type_;
    return spec_.width % kernels::Traits(type_).block_values != 0 ? DType::kQ8_0 : DType::kQ6_K;
  }

  void Layer(int layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const int head_size = spec_.width / spec_.heads, kv_rows = spec_.kv_heads * head_size;
    const bool mixed = type_ == DType::kQ4_K || type_ == DType::kQ5_K;
    const bool two = type_ == DType::kQ2_K;
    const DType better = mixed && UsesMoreBits(layer, spec_.layers) ? DType::kQ6_K
                         : two                                      ? DType::kQ3_K
                                                                    : type_;
    const bool shared = spec_.heads >= 4 * spec_.kv_heads;
    Vector(prefix + "attn_norm.weight", spec_.width);
    Matrix(prefix + "attn_q.weight", spec_.width, spec_.width, type_);
    Matrix(prefix + "attn_k.weight", spec_.width, kv_rows, type_);
    Matrix(prefix + "attn_v.weight", spec_.width, kv_rows, two && shared ? DType::kQ4_K : better);
    if (spec_.architecture == "qwen2") {
      Vector(prefix + "attn_q.bias", spec_.width);
      Vector(prefix + "attn_k.bias", kv_rows);
      Vector(prefix + "attn_v.bias", kv_rows);
    }
    Matrix(prefix + "attn_output.weight", spec_.width, spec_.width, two ? DType::kQ3_K : type_);
    Vector(prefix + "ffn_norm.weight", spec_.width);
    Matrix(prefix + "ffn_gate.weight", spec_.width, spec_.ffn_width, type_);
    Matrix(prefix + "ffn_up.weight", spec_.width, spec_.ffn_width, type_);
    Matrix(prefix + "ffn_down.weight", spec_.ffn_width, spec_.width, better);
  }

  std::vector<TensorRecord> Take() { return std::move(tensors_); }

 private:
  const SyntheticSpec& spec_;
  const DType type_;
  std::vector<TensorRecord> tensors_;
};

std::vector<MetadataKey> Keys(const SyntheticSpec& spec, uint32_t file_type) {
  const auto count = [](int value) { return static_cast<uint32_t>(value); };
  const std::string prefix = spec.architecture + ".";
  ByteVocabulary vocabulary = ByteVocabulary::Make(spec.vocab_size);
  return {
      {"general.architecture", spec.architecture},
      {"general.name", spec.name},
      {"general.file_type", file_type},
      {"general.quantization_version", uint32_t{2}},
      {prefix + "context_length", count(spec.context_length)},
      {prefix + "embedding_length", count(spec.width)},
      {prefix + "block_count", count(spec.layers)},
      {prefix + "feed_forward_length", count(spec.ffn_width)},
      {prefix + "attention.head_count", count(spec.heads)},
      {prefix + "attention.head_count_kv", count(spec.kv_heads)},
      {prefix + "attention.layer_norm_rms_epsilon", spec.norm_epsilon},
      {prefix + "rope.freq_base", spec.rope_base},
      {prefix + "rope.dimension_count", count(spec.width / spec.heads)},
      {prefix + "vocab_size", count(spec.vocab_size)},
      {"tokenizer.ggml.model", std::string("gpt2")},
      {"tokenizer.ggml.pre", std::string(spec.architecture == "qwen2" ? "qwen2" : "smollm")},
      {"tokenizer.ggml.tokens", MetadataArray(std::move(vocabulary.tokens))},
      {"tokenizer.ggml.token_type", MetadataArray(std::move(vocabulary.types))},
      {"tokenizer.ggml.merges", MetadataArray(std::move(vocabulary.merges))},
      {"tokenizer.ggml.bos_token_id", vocabulary.bos},
      {"tokenizer.ggml.eos_token_id", vocabulary.eos},
      {"tokenizer.ggml.add_bos_token", false},
  };
}

// Draws the bytes of tensors piece by piece, a piece on all threads. Norms are near 1, biases near
// 0, matrices such that inputs of unit variance give outputs of unit variance.
class TensorFiller {
 public:
  TensorFiller(uint64_t seed, int num_threads) : seed_(seed), num_threads_(num_threads) {}

  // Values that are drawn with one seed: whole blocks of every type.
  static constexpr int64_t kValues = 2048 * 256;

  void Fill(size_t index, const TensorRecord& tensor, uint64_t offset, std::span<std::byte> out) {
    if (tensor.type == DType::kF32) return FillVector(tensor, out);
    const RandomBlocks& blocks = BlocksOf(tensor);
    const auto unit = static_cast<uint64_t>(kernels::RowBytes(tensor.type, kValues));
    std::atomic<uint64_t> next{0};
    const auto draw = [&] {
      for (uint64_t at; (at = next.fetch_add(unit)) < out.size();) {
        const uint64_t place = (offset + at) / unit;
        blocks.Fill((seed_ << 48) ^ (uint64_t{index} << 32) ^ place,
                    out.subspan(at, std::min<uint64_t>(unit, out.size() - at)));
      }
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < num_threads_; ++i) threads.emplace_back(draw);
    draw();
    for (std::thread& thread : threads) thread.join();
  }

 private:
  static void FillVector(const TensorRecord& tensor, std::span<std::byte> out) {
    const bool is_norm = tensor.name.find("norm") != std::string::npos;
    std::vector<float> values(out.size() / sizeof(float));
    for (size_t i = 0; i < values.size(); ++i) {
      const float wave = std::sin(0.7f * static_cast<float>(i) + static_cast<float>(i % 7));
      values[i] = is_norm ? 1.0f + 0.1f * wave : 0.1f * wave;
    }
    std::memcpy(out.data(), values.data(), out.size());
  }

  const RandomBlocks& BlocksOf(const TensorRecord& tensor) {
    std::unique_ptr<RandomBlocks>& blocks = blocks_[{tensor.type, tensor.dims[0]}];
    if (!blocks) {
      const float sigma = 1.0f / std::sqrt(static_cast<float>(tensor.dims[0]));
      blocks = std::make_unique<RandomBlocks>(tensor.type, sigma);
    }
    return *blocks;
  }

  const uint64_t seed_;
  const int num_threads_;
  std::map<std::pair<DType, uint64_t>, std::unique_ptr<RandomBlocks>> blocks_;
};

// Fills and writes all tensors; a piece is drawn while the one before is written.
absl::Status WriteTensors(const std::vector<TensorRecord>& tensors, TensorFiller& filler,
                          engine::GgufWriter& writer) {
  constexpr int64_t kPieceUnits = 64;
  std::vector<std::byte> pieces[2];
  std::thread writing;
  absl::Status written;
  size_t turn = 0;
  for (size_t i = 0; i < tensors.size() && written.ok(); ++i) {
    const uint64_t bytes = tensors[i].bytes();
    const auto piece_bytes = static_cast<uint64_t>(
        kernels::RowBytes(tensors[i].type, kPieceUnits * TensorFiller::kValues));
    for (uint64_t at = 0; at < bytes && written.ok(); at += piece_bytes) {
      std::vector<std::byte>& piece = pieces[turn++ % 2];
      piece.resize(std::min(piece_bytes, bytes - at));
      filler.Fill(i, tensors[i], at, piece);
      if (writing.joinable()) writing.join();
      if (written.ok()) {
        writing =
            std::thread([&writer, &written, &piece, i] { written = writer.Append(i, piece); });
      }
    }
  }
  if (writing.joinable()) writing.join();
  return written;
}

}  // namespace

std::vector<std::string> SyntheticTypes() {
  std::vector<std::string> names;
  for (const FileType& type : kFileTypes) names.emplace_back(type.name);
  return names;
}

absl::StatusOr<SyntheticSpec> SyntheticShape(const std::string& name) {
  const SyntheticSpec specs[] = {
      {.name = "smollm2-135m",
       .architecture = "llama",
       .layers = 30,
       .width = 576,
       .heads = 9,
       .kv_heads = 3,
       .ffn_width = 1536,
       .vocab_size = 49152,
       .context_length = 8192,
       .norm_epsilon = 1e-5f,
       .rope_base = 100000.0f},
      {.name = "qwen2.5-0.5b",
       .architecture = "qwen2",
       .layers = 24,
       .width = 896,
       .heads = 14,
       .kv_heads = 2,
       .ffn_width = 4864,
       .vocab_size = 151936,
       .context_length = 32768,
       .rope_base = 1000000.0f},
      {.name = "qwen2.5-1.5b",
       .architecture = "qwen2",
       .layers = 28,
       .width = 1536,
       .heads = 12,
       .kv_heads = 2,
       .ffn_width = 8960,
       .vocab_size = 151936,
       .context_length = 32768,
       .rope_base = 1000000.0f},
      {.name = "qwen2.5-3b",
       .architecture = "qwen2",
       .layers = 36,
       .width = 2048,
       .heads = 16,
       .kv_heads = 2,
       .ffn_width = 11008,
       .vocab_size = 151936,
       .context_length = 32768,
       .rope_base = 1000000.0f},
      {.name = "qwen2.5-7b",
       .architecture = "qwen2",
       .layers = 28,
       .width = 3584,
       .heads = 28,
       .kv_heads = 4,
       .ffn_width = 18944,
       .vocab_size = 152064,
       .context_length = 32768,
       .rope_base = 1000000.0f,
       .tied_head = false},
  };
  std::string names;
  for (const SyntheticSpec& spec : specs) {
    if (spec.name == name) return spec;
    names += (names.empty() ? "" : ", ") + spec.name;
  }
  return engine::NotFound("shape: expected one of " + names + ", got '" + name + "'");
}

absl::StatusOr<std::vector<TensorRecord>> SyntheticTensors(const SyntheticSpec& spec) {
  ASSIGN_OR_RETURN(const FileType type, FileTypeNamed(spec.types));
  if (spec.width % 32 != 0 || spec.ffn_width % 32 != 0 || spec.width % spec.heads != 0) {
    return InvalidArgument("widths: expected multiples of 32 and of the number of heads");
  }
  TensorLister lister(spec, type.type);
  lister.Matrix("token_embd.weight", spec.width, spec.vocab_size,
                spec.tied_head ? lister.HeadType() : type.type);
  for (int layer = 0; layer < spec.layers; ++layer) lister.Layer(layer);
  lister.Vector("output_norm.weight", spec.width);
  if (!spec.tied_head) {
    lister.Matrix("output.weight", spec.width, spec.vocab_size, lister.HeadType());
  }
  return lister.Take();
}

absl::StatusOr<SyntheticReport> WriteSyntheticModel(const SyntheticSpec& spec,
                                                    const std::string& path, int num_threads) {
  ASSIGN_OR_RETURN(const std::vector<TensorRecord> tensors, SyntheticTensors(spec));
  ASSIGN_OR_RETURN(const FileType type, FileTypeNamed(spec.types));
  ASSIGN_OR_RETURN(engine::GgufWriter writer,
                   engine::GgufWriter::Create(path, /*replace=*/true, /*alignment=*/32,
                                              Keys(spec, type.number), tensors));
  TensorFiller filler(spec.seed, std::max(1, num_threads));
  RETURN_IF_ERROR(WriteTensors(tensors, filler, writer));
  RETURN_IF_ERROR(writer.Publish());
  SyntheticReport report = {.file_bytes = writer.file_bytes()};
  for (const TensorRecord& tensor : tensors) {
    report.tensor_bytes += tensor.bytes();
    const bool read = spec.tied_head || tensor.name != "token_embd.weight";
    if (read) report.step_bytes += tensor.bytes();
  }
  return report;
}

}  // namespace sluice::testing
