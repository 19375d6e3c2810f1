#include "engine/model/weights.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <optional>
#include <span>
#include <thread>
#include <unordered_map>
#include <utility>

#include "engine/base/mutex.h"
#include "engine/base/status.h"
#include "engine/model/sha256.h"
#include "engine/model/tensor_places.h"
#include "engine/model_file/model_file.h"

namespace sluice::engine {

using kernels::Buffer;
using kernels::DType;
using kernels::PackedWeight;

namespace {

void AddToEach(float added, std::span<float> values) {
  if (added == 0.0f) return;  // keeps -0
  for (float& value : values) value += added;
}

}  // namespace

// One load: tensors are shared out among threads, the largest first; each thread reads the pieces
// of its tensor in order into a buffer of its own, hashes and repacks them while they are in cache.
class WeightsLoader {
 public:
  WeightsLoader(const ModelFile& file, const ModelConfig& config,
                const Weights::LoadOptions& options, Weights& weights)
      : file_(file), config_(config), options_(options), weights_(weights) {}

  absl::Status Load();

 private:
  // What becomes of some rows of a tensor.
  struct Part {
    int64_t first_row = 0;
    int64_t num_rows = 0;
    PackedWeight* matrix = nullptr;  // filled by the job, or
    size_t memory_offset = 0;        // of the matrix in Weights::matrix_memory_
    Buffer* vector = nullptr;        // f32; neither: rotary factors, only hashed
  };
  // One tensor of the file.
  struct Job {
    const FileTensor* tensor = nullptr;
    std::vector<Part> parts;  // all its rows, in order
    Sha256::Digest digest = {};
  };
  // What the loader made of a place.
  struct Held {
    const PackedWeight* matrix = nullptr;
    const Buffer* vector = nullptr;
  };

  absl::Status Plan();
  absl::Status CheckTypes() const;
  size_t PackedSize(const Job& job, const Part& part) const;
  absl::Status AllocateMatrices();
  void Work();
  absl::Status Run(Job& job, Buffer& staging);
  absl::Status RunPart(const Job& job, const Part& part, Buffer& staging, Sha256& hash);
  absl::Status FillVector(const Job& job, const Part& part, const std::byte* stored, int64_t values,
                          int64_t first);
  absl::Status HashMetadata();
  void Report(uint64_t bytes);
  void Fail(const absl::Status& status);
  void Wire();
  Held& HeldAt(TensorPart part, int layer);
  const float* Vector(TensorPart part, int layer);
  kernels::Linear LinearOf(TensorPart weight, std::optional<TensorPart> bias, int layer);
  kernels::Norm NormOf(TensorPart weight, std::optional<TensorPart> bias, int layer);
  void SetDigest();

  // Small enough to stay in a core's cache between read, hash and repack.
  static constexpr int64_t kPieceBytes = int64_t{1} << 20;
  static constexpr int64_t kPanelRows = 16;  // pieces are whole panels of PackWeightRows

  const ModelFile& file_;
  const ModelConfig& config_;
  const Weights::LoadOptions& options_;
  Weights& weights_;

  std::vector<TensorPlace> places_;
  std::vector<Job> jobs_;     // in file order
  std::vector<size_t> turn_;  // indices of jobs_, largest first
  std::vector<Held> held_;    // [(1 + num_layers) * kNumTensorParts]
  Sha256::Digest metadata_digest_ = {};
  uint64_t total_bytes_ = 0;

  std::atomic<size_t> next_turn_{0};
  std::atomic<bool> failed_{false};
  Mutex mutex_;
  uint64_t done_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status first_error_ ABSL_GUARDED_BY(mutex_);
};

absl::Status WeightsLoader::Plan() {
  RETURN_IF_ERROR(CheckTensors(file_, config_));
  places_ = TensorPlaces(config_);
  held_.resize(static_cast<size_t>(1 + config_.num_layers) * kNumTensorParts);
  std::unordered_map<std::string_view, std::vector<const TensorPlace*>> places_of;
  size_t num_vectors = 0;
  for (const TensorPlace& place : places_) {
    // The factors are part of the config's frequencies already.
    const bool is_hashed_only = IsRopeFactors(place.part);
    if (is_hashed_only && !options_.compute_digest) continue;
    if (file_.FindTensor(place.name) == nullptr) continue;
    places_of[place.name].push_back(&place);
    num_vectors += place.is_vector && !is_hashed_only ? 1 : 0;
  }
  weights_.vectors_.resize(num_vectors);
  size_t vector = 0;
  for (const FileTensor& tensor : file_.tensors()) {
    const auto found = places_of.find(tensor.name);
    if (found == places_of.end()) continue;
    Job& job = jobs_.emplace_back();
    job.tensor = &tensor;
    total_bytes_ += tensor.bytes;
    for (const TensorPlace* place : found->second) {
      Part& part = job.parts.emplace_back();
      part.first_row = place->first_row;
      part.num_rows = place->rows;
      if (IsRopeFactors(place->part)) continue;
      Held& held = HeldAt(place->part, place->layer);
      if (place->is_vector) {
        held.vector = part.vector = &weights_.vectors_[vector++];
      } else {
        part.matrix = weights_.matrices_.emplace_back(std::make_unique<PackedWeight>()).get();
        held.matrix = part.matrix;
      }
    }
  }
  if (options_.compute_digest) total_bytes_ += file_.metadata_bytes();
  turn_.resize(jobs_.size());
  std::iota(turn_.begin(), turn_.end(), size_t{0});
  std::stable_sort(turn_.begin(), turn_.end(), [this](size_t a, size_t b) {
    return jobs_[a].tensor->bytes > jobs_[b].tensor->bytes;
  });
  RETURN_IF_ERROR(CheckTypes());
  return AllocateMatrices();
}

// Before anything is read, so that a model that cannot be served is refused at once.
absl::Status WeightsLoader::CheckTypes() const {
  for (const Job& job : jobs_) {
    if (job.parts.front().matrix == nullptr ||
        kernels::SupportsWeight(options_.backend, job.tensor->type)) {
      continue;
    }
    return Unimplemented(file_.path() + ": tensor '" + job.tensor->name + "': backend " +
                         std::string(kernels::Name(options_.backend)) +
                         " has no products for its type, got " + job.tensor->ShapeString() +
                         job.tensor->At());
  }
  return absl::OkStatus();
}

size_t WeightsLoader::PackedSize(const Job& job, const Part& part) const {
  return static_cast<size_t>(kernels::PackedBytes(options_.backend, job.tensor->type, part.num_rows,
                                                  static_cast<int64_t>(job.tensor->cols())));
}

// One Buffer for all, in the order of the file: matrices of a few hundred KiB each would not get
// the huge pages that reading them at full speed needs.
absl::Status WeightsLoader::AllocateMatrices() {
  constexpr size_t kAlignment = 64;
  size_t bytes = 0;
  for (Job& job : jobs_) {
    for (Part& part : job.parts) {
      if (part.matrix == nullptr) continue;
      part.memory_offset = bytes;
      bytes += (PackedSize(job, part) + kAlignment - 1) / kAlignment * kAlignment;
    }
  }
  ASSIGN_OR_RETURN(weights_.matrix_memory_, kernels::AllocateMemory(options_.backend, bytes));
  return absl::OkStatus();
}

void WeightsLoader::Report(uint64_t bytes) {
  MutexLock lock(mutex_);
  done_bytes_ += bytes;
  if (options_.progress) options_.progress(done_bytes_, total_bytes_);
}

void WeightsLoader::Fail(const absl::Status& status) {
  MutexLock lock(mutex_);
  if (first_error_.ok()) first_error_ = status;
  failed_.store(true, std::memory_order_relaxed);
}

absl::Status WeightsLoader::RunPart(const Job& job, const Part& part, Buffer& staging,
                                    Sha256& hash) {
  const FileTensor& tensor = *job.tensor;
  const auto cols = static_cast<int64_t>(tensor.cols());
  const int64_t row_bytes = kernels::RowBytes(tensor.type, cols);
  const int64_t panels = std::max<int64_t>(1, kPieceBytes / (row_bytes * kPanelRows));
  const int64_t piece_rows = std::min(part.num_rows, panels * kPanelRows);
  const auto piece_bytes = static_cast<size_t>(piece_rows * row_bytes);
  if (staging.size() < piece_bytes) {
    ASSIGN_OR_RETURN(staging,
                     Buffer::Allocate(std::max(piece_bytes, static_cast<size_t>(kPieceBytes))));
  }
  for (int64_t first = 0; first < part.num_rows; first += piece_rows) {
    if (failed_.load(std::memory_order_relaxed)) return absl::OkStatus();
    const int64_t num_rows = std::min(piece_rows, part.num_rows - first);
    const std::span<std::byte> piece(staging.bytes(), static_cast<size_t>(num_rows * row_bytes));
    const int64_t begin = (part.first_row + first) * row_bytes;
    RETURN_IF_ERROR(file_.Read(tensor.offset + static_cast<uint64_t>(begin), piece));
    if (options_.compute_digest) hash.Add(piece);
    if (part.matrix != nullptr) {
      RETURN_IF_ERROR(kernels::PackWeightRows(*part.matrix, first, num_rows, piece.data()));
    } else if (part.vector != nullptr) {
      RETURN_IF_ERROR(FillVector(job, part, piece.data(), num_rows * cols, first * cols));
    }
    Report(piece.size());
  }
  return absl::OkStatus();
}

absl::Status WeightsLoader::FillVector(const Job& job, const Part& part, const std::byte* stored,
                                       int64_t values, int64_t first) {
  std::vector<float> dequantized(static_cast<size_t>(values));
  kernels::DequantizeStored(job.tensor->type, stored, values, dequantized.data());
  AddToEach(job.tensor->added, dequantized);
  return kernels::CopyToBackend(options_.backend, part.vector->as<float>() + first,
                                dequantized.data(), dequantized.size() * sizeof(float));
}

absl::Status WeightsLoader::Run(Job& job, Buffer& staging) {
  const FileTensor& tensor = *job.tensor;
  Sha256 hash;
  for (const Part& part : job.parts) {
    if (part.matrix != nullptr) {
      ASSIGN_OR_RETURN(
          *part.matrix,
          kernels::PlaceWeight(
              options_.backend, tensor.type, part.num_rows, static_cast<int64_t>(tensor.cols()),
              weights_.matrix_memory_.Part(part.memory_offset, PackedSize(job, part))));
    } else if (part.vector != nullptr) {
      ASSIGN_OR_RETURN(*part.vector,
                       kernels::AllocateMemory(options_.backend, tensor.cols() * sizeof(float)));
    }
    RETURN_IF_ERROR(RunPart(job, part, staging, hash));
  }
  if (options_.compute_digest) job.digest = hash.Finish();
  return absl::OkStatus();
}

void WeightsLoader::Work() {
  Buffer staging;
  while (!failed_.load(std::memory_order_relaxed)) {
    const size_t turn = next_turn_.fetch_add(1, std::memory_order_relaxed);
    if (turn >= turn_.size()) return;
    Job& job = jobs_[turn_[turn]];
    if (const absl::Status status = Run(job, staging); !status.ok()) {
      Fail(Prefix("loading tensor '" + job.tensor->name + "'", status));
    }
  }
}

absl::Status WeightsLoader::HashMetadata() {
  std::vector<std::byte> piece;
  Sha256 hash;
  for (uint64_t at = 0; at < file_.metadata_bytes(); at += piece.size()) {
    piece.resize(std::min<uint64_t>(file_.metadata_bytes() - at, kPieceBytes));
    RETURN_IF_ERROR(file_.Read(at, piece));
    hash.Add(piece);
    Report(piece.size());
  }
  metadata_digest_ = hash.Finish();
  return absl::OkStatus();
}

WeightsLoader::Held& WeightsLoader::HeldAt(TensorPart part, int layer) {
  return held_[static_cast<size_t>(layer + 1) * kNumTensorParts + static_cast<size_t>(part)];
}

const float* WeightsLoader::Vector(TensorPart part, int layer) {
  const Buffer* vector = HeldAt(part, layer).vector;
  return vector == nullptr ? nullptr : vector->as<float>();
}

kernels::Linear WeightsLoader::LinearOf(TensorPart weight, std::optional<TensorPart> bias,
                                        int layer) {
  kernels::Linear linear;
  linear.weight = HeldAt(weight, layer).matrix;
  if (bias.has_value()) linear.bias = Vector(*bias, layer);
  return linear;
}

kernels::Norm WeightsLoader::NormOf(TensorPart weight, std::optional<TensorPart> bias, int layer) {
  return {.weight = Vector(weight, layer),
          .bias = bias.has_value() ? Vector(*bias, layer) : nullptr,
          .epsilon = config_.norm_epsilon,
          .kind = bias.has_value() ? config_.norm_kind : kernels::NormKind::kRms};
}

void WeightsLoader::Wire() {
  using enum TensorPart;
  weights_.layers_.resize(static_cast<size_t>(config_.num_layers));
  for (int i = 0; i < config_.num_layers; ++i) {
    LayerWeights& layer = weights_.layers_[static_cast<size_t>(i)];
    layer.attention_norm = NormOf(kAttentionNorm, kAttentionNormBias, i);
    layer.q = LinearOf(kQuery, kQueryBias, i);
    layer.k = LinearOf(kKey, kKeyBias, i);
    layer.v = LinearOf(kValue, kValueBias, i);
    if (kernels::IsPlanted(options_.planted_bug, kernels::PlantedBug::kKeyBiasDropped)) {
      layer.k.bias = nullptr;
    }
    layer.q_head_norm = NormOf(kQueryNorm, std::nullopt, i);
    layer.k_head_norm = NormOf(kKeyNorm, std::nullopt, i);
    layer.attention_output = LinearOf(kAttentionOutput, kAttentionOutputBias, i);
    layer.attention_output.name = "attention_output";
    layer.attention_post_norm = NormOf(kAttentionPostNorm, std::nullopt, i);
    layer.ffn_norm = NormOf(kFfnNorm, kFfnNormBias, i);
    layer.gate = LinearOf(kGate, std::nullopt, i);
    layer.up = LinearOf(kUp, kUpBias, i);
    layer.down = LinearOf(kDown, kDownBias, i);
    layer.down.name = "ffn_down";
    layer.ffn_post_norm = NormOf(kFfnPostNorm, std::nullopt, i);
  }
  weights_.output_norm_ = NormOf(kOutputNorm, kOutputNormBias, -1);
  weights_.token_embedding_ = HeldAt(kTokenEmbedding, -1).matrix;
  weights_.head_ = LinearOf(config_.tied_head ? kTokenEmbedding : kOutput, std::nullopt, -1);
  for (const auto& matrix : weights_.matrices_) weights_.resident_bytes_ += matrix->storage.size();
  for (const Buffer& vector : weights_.vectors_) weights_.resident_bytes_ += vector.size();
}

void WeightsLoader::SetDigest() {
  Sha256 hash;
  hash.Add(metadata_digest_);
  for (const Job& job : jobs_) hash.Add(job.digest);
  weights_.digest_ = Sha256::Hex(hash.Finish());
}

absl::Status WeightsLoader::Load() {
  RETURN_IF_ERROR(Plan());
  // Before anything is read: whoever may not lock hears it at once.
  if (options_.lock_memory) RETURN_IF_ERROR(Prefix("weights", weights_.matrix_memory_.Lock()));
  if (options_.compute_digest) RETURN_IF_ERROR(HashMetadata());
  std::vector<std::thread> threads;
  const auto num_threads =
      std::min(static_cast<size_t>(std::max(1, options_.num_threads)), jobs_.size());
  for (size_t i = 1; i < num_threads; ++i) threads.emplace_back([this] { Work(); });
  Work();
  for (std::thread& thread : threads) thread.join();
  {
    MutexLock lock(mutex_);
    RETURN_IF_ERROR(first_error_);
  }
  if (options_.lock_memory) {
    for (const Buffer& vector : weights_.vectors_) {
      RETURN_IF_ERROR(Prefix("weights", vector.Lock()));
    }
  }
  RETURN_IF_ERROR(file_.CheckUnchanged());
  Wire();
  if (options_.compute_digest) SetDigest();
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const Weights>> Weights::Load(const ModelFile& file,
                                                             const ModelConfig& config,
                                                             const LoadOptions& options) {
  std::shared_ptr<Weights> weights(new Weights());
  WeightsLoader loader(file, config, options, *weights);
  RETURN_IF_ERROR(loader.Load());
  return std::shared_ptr<const Weights>(std::move(weights));
}

}  // namespace sluice::engine
