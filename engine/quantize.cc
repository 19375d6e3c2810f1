#include "engine/quantize.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"
#include "engine/gguf/gguf_writer.h"
#include "engine/model/architecture.h"
#include "engine/model_file/model_file.h"
#include "kernels/core/quantize.h"
#include "kernels/core/worker_pool.h"
#include "kernels/ops.h"

namespace sluice::engine {
namespace {

using kernels::DType;

struct QuantizedType {
  const char* name;
  DType type;
  uint32_t file_type;  // general.file_type of a file whose matrices are mostly of it
};
constexpr QuantizedType kQuantizedTypes[] = {{"q8_0", DType::kQ8_0, 7},
                                             {"q4_0", DType::kQ4_0, 2},
                                             {"q4_1", DType::kQ4_1, 3},
                                             {"q5_0", DType::kQ5_0, 8},
                                             {"q5_1", DType::kQ5_1, 9}};
constexpr uint32_t kQuantizationVersion = 2;  // of the blocks' layout; 2 since May 2023

// Whole blocks of every type; with its copy in f32 and its result a few MiB.
constexpr uint64_t kPieceValues = uint64_t{1} << 20;
constexpr uint64_t kChunkValues = uint64_t{1} << 15;  // of a piece, for one thread

struct TensorPlan {
  const FileTensor* source = nullptr;
  TensorRecord target;
  uint64_t rotated_heads = 0;  // of Q or K in Hugging Face's order; 0: rows stay where they are

  bool IsCopied() const { return target.type == source->type && source->added == 0.0f; }
};

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

bool IsFloat(DType type) { return !kernels::Traits(type).quantized; }

// Matrices of products; norms of heads and what routes tokens stay exact, as in other tools.
bool IsMatrix(const FileTensor& tensor) {
  return tensor.dims.size() == 2 && tensor.name.ends_with(".weight") &&
         !Contains(tensor.name, "_norm.weight") && !Contains(tensor.name, "ffn_gate_inp") &&
         !Contains(tensor.name, "position_embd");
}

std::string Several(const std::vector<const FileTensor*>& tensors) {
  std::string text =
      std::to_string(tensors.size()) + (tensors.size() == 1 ? " tensor" : " tensors");
  text += " (" + tensors.front()->name + " " + tensors.front()->ShapeString();
  return text + (tensors.size() > 1 ? ", ...)" : ")");
}

class Quantization {
 public:
  Quantization(const ModelFile& file, const QuantizeOptions& options)
      : file_(file), options_(options), pool_(NumThreads(options)) {}

  absl::StatusOr<QuantizeReport> Run(const std::string& out);

 private:
  static int NumThreads(const QuantizeOptions& options) {
    if (options.num_threads > 0) return options.num_threads;
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  absl::Status Plan();
  absl::Status PlanRotation();
  std::vector<MetadataKey> Keys() const;
  absl::Status WriteTensor(size_t index, GgufWriter& writer);
  absl::Status ReadPiece(const TensorPlan& plan, uint64_t first, uint64_t count);
  absl::Status Convert(const TensorPlan& plan, uint64_t first, uint64_t count);

  const ModelFile& file_;
  const QuantizeOptions& options_;
  kernels::WorkerPool pool_;
  std::vector<TensorPlan> plans_;
  std::string dropped_key_;  // what is no longer true of the file written
  QuantizeReport report_;
  uint64_t bytes_done_ = 0;
  // One piece: as read, in f32, as written.
  std::vector<std::byte> stored_, made_;
  std::vector<float> values_;
};

absl::Status Quantization::Plan() {
  std::vector<const FileTensor*> quantized, partial;
  const std::string_view output =
      file_.FindTensor("output.weight") != nullptr ? "output.weight" : "token_embd.weight";
  const auto block = static_cast<uint64_t>(kernels::Traits(options_.type).block_values);
  for (const FileTensor& tensor : file_.tensors()) {
    TensorPlan plan{&tensor, {tensor.name, tensor.dims, tensor.type}};
    if (!IsFloat(tensor.type)) {
      quantized.push_back(&tensor);
    } else if (IsMatrix(tensor)) {
      const bool kept = options_.keep_output && tensor.name == output;
      if (kept) report_.notes.push_back(Several({&tensor}) + " kept as asked");
      const bool whole = tensor.cols() % block == 0;
      if (!whole && !kept) partial.push_back(&tensor);
      if (whole && !kept) plan.target.type = options_.type;
    } else {
      plan.target.type = DType::kF32;
    }
    if (plan.target.type == options_.type && IsFloat(tensor.type)) ++report_.num_quantized;
    report_.num_values += plan.target.values();
    report_.tensor_bytes += plan.target.bytes();
    plans_.push_back(std::move(plan));
  }
  if (report_.num_values == 0) return InvalidArgument(file_.path() + ": holds no tensors");
  if (!quantized.empty()) {
    const std::string what = Several(quantized) + " quantised already";
    if (options_.only_floats) {
      return FailedPrecondition(file_.path() + ": expected only F32, F16 and BF16 tensors, got " +
                                what);
    }
    report_.notes.push_back(what + ": copied as they are");
  }
  if (!partial.empty()) {
    report_.notes.push_back(Several(partial) + " of rows that are no multiple of " +
                            std::to_string(block) + " values: kept");
  }
  report_.num_tensors = static_cast<int>(plans_.size());
  return PlanRotation();
}

// What is said as a fact of a directory becomes what every reader of GGUF takes for granted.
absl::Status Quantization::PlanRotation() {
  ASSIGN_OR_RETURN(const std::optional<std::string_view> architecture,
                   file_.GetString("general.architecture"));
  if (!architecture.has_value()) return absl::OkStatus();
  const std::string prefix = std::string(*architecture) + ".";
  const std::string key = prefix + "tensor_data_layout";
  ASSIGN_OR_RETURN(const std::optional<std::string_view> layout, file_.GetString(key));
  if (layout != kHuggingFaceLayout) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::optional<uint64_t> heads,
                   file_.GetUint(prefix + "attention.head_count"));
  ASSIGN_OR_RETURN(const std::optional<uint64_t> kv_heads,
                   file_.GetUint(prefix + "attention.head_count_kv"));
  dropped_key_ = key;
  for (TensorPlan& plan : plans_) {
    const bool is_query = Contains(plan.source->name, ".attn_q.");
    if (!is_query && !Contains(plan.source->name, ".attn_k.")) continue;
    plan.rotated_heads = is_query ? heads.value_or(0) : kv_heads.value_or(heads.value_or(0));
    const uint64_t rows = plan.source->dims.back();
    if (plan.rotated_heads == 0 || rows % (2 * plan.rotated_heads) != 0 ||
        plan.source->dims.size() > 2 || !IsFloat(plan.source->type)) {
      return InvalidArgument(file_.path() + ": " + Quoted(plan.source->name) +
                             ": expected an even number of rows for each of " +
                             std::to_string(plan.rotated_heads) + " heads, got shape " +
                             plan.source->ShapeString() + plan.source->At());
    }
  }
  return absl::OkStatus();
}

std::vector<MetadataKey> Quantization::Keys() const {
  std::vector<MetadataKey> keys;
  for (const ModelFile::Entry& entry : file_.entries()) {
    if (entry.key != dropped_key_) keys.push_back({entry.key, entry.value});
  }
  if (report_.num_quantized == 0) return keys;
  const auto set = [&keys](const char* key, uint32_t value) {
    const auto found = std::find_if(keys.begin(), keys.end(),
                                    [key](const MetadataKey& other) { return other.key == key; });
    if (found == keys.end()) {
      keys.push_back({key, value});
    } else {
      found->value = value;
    }
  };
  for (const QuantizedType& type : kQuantizedTypes) {
    if (type.type == options_.type) set("general.file_type", type.file_type);
  }
  set("general.quantization_version", kQuantizationVersion);
  return keys;
}

// Values [first, first + count) of the tensor as it will be written, in the source's type.
absl::Status Quantization::ReadPiece(const TensorPlan& plan, uint64_t first, uint64_t count) {
  const FileTensor& tensor = *plan.source;
  const auto bytes_of = [&](uint64_t values) {
    return static_cast<uint64_t>(kernels::RowBytes(tensor.type, static_cast<int64_t>(values)));
  };
  stored_.resize(bytes_of(count));
  const std::span<std::byte> out(stored_);
  if (plan.rotated_heads == 0) return file_.Read(tensor.offset + bytes_of(first), out);
  const uint64_t cols = tensor.dims.size() == 1 ? 1 : tensor.cols();
  const uint64_t half = tensor.dims.back() / plan.rotated_heads / 2;
  for (uint64_t done = 0; done < count;) {
    // Pairs of neighbours were rows j and j + half of their head.
    const uint64_t row = (first + done) / cols, col = (first + done) % cols;
    const uint64_t in_head = row % (2 * half);
    const uint64_t from = row - in_head + in_head / 2 + in_head % 2 * half;
    const uint64_t part = std::min(cols - col, count - done);
    RETURN_IF_ERROR(file_.Read(tensor.offset + bytes_of(from * cols + col),
                               out.subspan(bytes_of(done), bytes_of(part))));
    done += part;
  }
  return absl::OkStatus();
}

// What ReadPiece has read, in the target's type.
absl::Status Quantization::Convert(const TensorPlan& plan, uint64_t first, uint64_t count) {
  const DType from = plan.source->type, to = plan.target.type;
  values_.resize(count);
  made_.resize(static_cast<size_t>(kernels::RowBytes(to, static_cast<int64_t>(count))));
  const auto num_chunks = static_cast<int64_t>((count + kChunkValues - 1) / kChunkValues);
  std::vector<int64_t> bad(static_cast<size_t>(num_chunks), -1);
  pool_.ParallelFor(num_chunks, [&](int64_t chunk, int) {
    const int64_t begin = chunk * static_cast<int64_t>(kChunkValues);
    const int64_t part =
        std::min(static_cast<int64_t>(kChunkValues), static_cast<int64_t>(count) - begin);
    float* const values = values_.data() + begin;
    kernels::DequantizeStored(from, stored_.data() + kernels::RowBytes(from, begin), part, values);
    if (const float added = plan.source->added; added != 0.0f) {
      for (float* value = values; value != values + part; ++value) *value += added;
    }
    std::byte* const out = made_.data() + kernels::RowBytes(to, begin);
    if (to == DType::kF32) {
      std::memcpy(out, values, static_cast<size_t>(part) * sizeof(float));
      return;
    }
    const int64_t good = kernels::QuantizeBlocks(to, values, part, out);
    if (good < part) bad[static_cast<size_t>(chunk)] = begin + good;
  });
  for (const int64_t at : bad) {
    if (at < 0) continue;
    const uint64_t value = first + static_cast<uint64_t>(at);
    return InvalidArgument(file_.path() + ": tensor " + Quoted(plan.source->name) +
                           ": expected values that blocks of " + std::string(kernels::Name(to)) +
                           " can hold, got " + std::to_string(values_[static_cast<size_t>(at)]) +
                           " at row " + std::to_string(value / plan.target.dims[0]) + ", column " +
                           std::to_string(value % plan.target.dims[0]));
  }
  return absl::OkStatus();
}

absl::Status Quantization::WriteTensor(size_t index, GgufWriter& writer) {
  const TensorPlan& plan = plans_[index];
  const uint64_t total = plan.target.values();
  for (uint64_t first = 0; first < total; first += kPieceValues) {
    const uint64_t count = std::min(kPieceValues, total - first);
    RETURN_IF_ERROR(ReadPiece(plan, first, count));
    if (plan.IsCopied()) {
      RETURN_IF_ERROR(writer.Append(index, stored_));
    } else {
      RETURN_IF_ERROR(Convert(plan, first, count));
      RETURN_IF_ERROR(writer.Append(index, made_));
    }
    bytes_done_ += plan.IsCopied() ? stored_.size() : made_.size();
    if (options_.progress && !options_.progress(bytes_done_, report_.tensor_bytes)) {
      return Cancelled("interrupted: nothing was written");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<QuantizeReport> Quantization::Run(const std::string& out) {
  RETURN_IF_ERROR(Plan());
  std::vector<TensorRecord> records;
  for (const TensorPlan& plan : plans_) records.push_back(plan.target);
  ASSIGN_OR_RETURN(GgufWriter writer,
                   GgufWriter::Create(out, options_.replace, file_.alignment(), Keys(), records));
  for (size_t i = 0; i < plans_.size(); ++i) RETURN_IF_ERROR(WriteTensor(i, writer));
  RETURN_IF_ERROR(file_.CheckUnchanged());
  RETURN_IF_ERROR(writer.Publish());
  report_.bytes_in = file_.file_bytes();
  report_.bytes_out = writer.file_bytes();
  return std::move(report_);
}

// By what they are, not by name: a link or another spelling of the path is the same file.
bool SameFile(const std::string& a, const std::string& b) {
  struct stat first {
  }, second{};
  return stat(a.c_str(), &first) == 0 && stat(b.c_str(), &second) == 0 &&
         first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

}  // namespace

std::vector<std::string> QuantizedTypeNames() {
  std::vector<std::string> names;
  for (const QuantizedType& type : kQuantizedTypes) names.emplace_back(type.name);
  return names;
}

std::optional<DType> QuantizedTypeNamed(std::string_view name) {
  for (const QuantizedType& type : kQuantizedTypes) {
    if (name == type.name) return type.type;
  }
  return std::nullopt;
}

absl::StatusOr<QuantizeReport> QuantizeModel(const std::string& in, const std::string& out,
                                             const QuantizeOptions& options) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const ModelFile> file, ModelFile::Open(in));
  bool same = SameFile(in, out);
  for (const std::string& name : file->FileNames()) same = same || SameFile(in + "/" + name, out);
  if (same) return InvalidArgument(out + ": expected another file than what is read");
  return Quantization(*file, options).Run(out);
}

}  // namespace sluice::engine
