#include "engine/model/weights.h"

#include <algorithm>
#include <atomic>
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

constexpr size_t kAlignment = 256;  // of matrices and vectors in their memory
size_t Padded(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

void AddToEach(float added, std::span<float> values) {
  if (added == 0.0f) return;  // keeps -0
  for (float& value : values) value += added;
}

}  // namespace

// One load: tasks are shared out among threads, the largest first; each thread reads the pieces of
// its task in order into memory of its lane, hashes them while they are in cache and hands them on
// to be repacked: at once on the CPU, behind its back on CUDA.
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
    bool is_vector = false;          // f32; neither: rotary factors, only hashed
    size_t memory_offset = 0;        // in Weights::matrix_memory_ or vector_memory_
  };
  // One tensor of the file.
  struct Job {
    const FileTensor* tensor = nullptr;
    std::vector<Part> parts;  // all its rows, in order
    Sha256::Digest digest = {};
  };
  // What one thread does in a go: all of a tensor that is hashed; else some rows of one of its
  // parts, so that a few large tensors keep all threads busy.
  struct Task {
    Job* job = nullptr;
    const Part* part = nullptr;  // null: all
    int64_t first_row = 0;       // of the part
    int64_t num_rows = 0;
    uint64_t bytes = 0;
  };
  // What the loader made of a place.
  struct Held {
    const PackedWeight* matrix = nullptr;
    int64_t vector_offset = -1;  // in vector_memory_
  };

  absl::Status Plan();
  void PlanTasks();
  absl::Status CheckTypes() const;
  size_t PackedSize(const Job& job, const Part& part) const;
  int64_t PieceRows(const Job& job, const Part& part) const;
  absl::Status Allocate();
  absl::Status LockMemory() const;
  absl::Status RunTasks();
  void Work(int lane);
  absl::Status Run(const Task& task, int lane);
  absl::Status RunRows(const Job& job, const Part& part, int64_t begin, int64_t end, int lane,
                       Sha256* hash);
  void FillVector(const Job& job, const Part& part, const std::byte* stored, int64_t values,
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

  // Small enough to stay in a core's cache between read, hash and repack; on CUDA a few calls of
  // the driver are made for each.
  static constexpr int64_t kPieceBytes = int64_t{1} << 20;
  static constexpr int64_t kCudaPieceBytes = int64_t{2} << 20;
  static constexpr int64_t kTaskBytes = int64_t{32} << 20;  // of tensors that are not hashed
  static constexpr int64_t kPanelRows = 16;  // pieces are whole panels of PackWeightRows

  const ModelFile& file_;
  const ModelConfig& config_;
  const Weights::LoadOptions& options_;
  Weights& weights_;

  std::vector<TensorPlace> places_;
  std::vector<Job> jobs_;    // in file order
  std::vector<Task> tasks_;  // largest first
  std::vector<Held> held_;   // [(1 + num_layers) * kNumTensorParts]
  std::unique_ptr<kernels::WeightFeed> feed_;
  Buffer vectors_on_host_;  // filled here and copied at once, where vector_memory_ is a device's
  std::byte* vector_values_ = nullptr;
  Sha256::Digest metadata_digest_ = {};
  uint64_t total_bytes_ = 0;
  size_t vector_bytes_ = 0;

  std::atomic<size_t> next_task_{0};
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
  for (const TensorPlace& place : places_) {
    // The factors are part of the config's frequencies already.
    if (IsRopeFactors(place.part) && !options_.compute_digest) continue;
    if (file_.FindTensor(place.name) == nullptr) continue;
    places_of[place.name].push_back(&place);
  }
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
        part.is_vector = true;
        part.memory_offset = vector_bytes_;
        held.vector_offset = static_cast<int64_t>(vector_bytes_);
        vector_bytes_ += Padded(tensor.cols() * sizeof(float));
      } else {
        part.matrix = weights_.matrices_.emplace_back(std::make_unique<PackedWeight>()).get();
        held.matrix = part.matrix;
      }
    }
  }
  weights_.tensor_bytes_ = total_bytes_;
  if (options_.compute_digest) total_bytes_ += file_.metadata_bytes();
  RETURN_IF_ERROR(CheckTypes());
  PlanTasks();
  return Allocate();
}

void WeightsLoader::PlanTasks() {
  for (Job& job : jobs_) {
    if (options_.compute_digest) {
      tasks_.push_back({.job = &job, .bytes = job.tensor->bytes});
      continue;
    }
    const int64_t row_bytes =
        kernels::RowBytes(job.tensor->type, static_cast<int64_t>(job.tensor->cols()));
    const int64_t panels = std::max<int64_t>(1, kTaskBytes / (row_bytes * kPanelRows));
    for (const Part& part : job.parts) {
      for (int64_t first = 0; first < part.num_rows; first += panels * kPanelRows) {
        const int64_t rows = std::min(panels * kPanelRows, part.num_rows - first);
        tasks_.push_back({&job, &part, first, rows, static_cast<uint64_t>(rows * row_bytes)});
      }
    }
  }
  std::stable_sort(tasks_.begin(), tasks_.end(),
                   [](const Task& a, const Task& b) { return a.bytes > b.bytes; });
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

int64_t WeightsLoader::PieceRows(const Job& job, const Part& part) const {
  const int64_t row_bytes =
      kernels::RowBytes(job.tensor->type, static_cast<int64_t>(job.tensor->cols()));
  const int64_t bytes = options_.backend == kernels::Backend::kCuda ? kCudaPieceBytes : kPieceBytes;
  const int64_t panels = std::max<int64_t>(1, bytes / (row_bytes * kPanelRows));
  return std::min(part.num_rows, panels * kPanelRows);
}

// One Buffer for all matrices, in the order of the file: matrices of a few hundred KiB each would
// not get the huge pages that reading them at full speed needs.
absl::Status WeightsLoader::Allocate() {
  size_t matrix_bytes = 0;
  for (Job& job : jobs_) {
    for (Part& part : job.parts) {
      if (part.matrix == nullptr) continue;
      part.memory_offset = matrix_bytes;
      matrix_bytes += Padded(PackedSize(job, part));
    }
  }
  absl::StatusOr<Buffer> matrices = kernels::AllocateMemory(options_.backend, matrix_bytes);
  if (!matrices.ok()) return Prefix("weights", matrices.status());
  weights_.matrix_memory_ = *std::move(matrices);
  absl::StatusOr<Buffer> vectors = kernels::AllocateMemory(options_.backend, vector_bytes_);
  if (!vectors.ok()) return Prefix("weights", vectors.status());
  weights_.vector_memory_ = *std::move(vectors);
  weights_.resident_bytes_ = matrix_bytes + vector_bytes_;
  vector_values_ = weights_.vector_memory_.bytes();
  if (options_.backend == kernels::Backend::kCuda) {
    ASSIGN_OR_RETURN(vectors_on_host_, Buffer::Allocate(vector_bytes_));
    vector_values_ = vectors_on_host_.bytes();
  }
  for (Job& job : jobs_) {
    for (Part& part : job.parts) {
      if (part.matrix == nullptr) continue;
      ASSIGN_OR_RETURN(*part.matrix,
                       kernels::PlaceWeight(options_.backend, job.tensor->type, part.num_rows,
                                            static_cast<int64_t>(job.tensor->cols()),
                                            weights_.matrix_memory_.Part(part.memory_offset,
                                                                         PackedSize(job, part))));
    }
  }
  return absl::OkStatus();
}

absl::Status WeightsLoader::LockMemory() const {
  RETURN_IF_ERROR(Prefix("weights", weights_.matrix_memory_.Lock()));
  return Prefix("weights", weights_.vector_memory_.Lock());
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

absl::Status WeightsLoader::RunRows(const Job& job, const Part& part, int64_t begin, int64_t end,
                                    int lane, Sha256* hash) {
  const FileTensor& tensor = *job.tensor;
  const auto cols = static_cast<int64_t>(tensor.cols());
  const int64_t row_bytes = kernels::RowBytes(tensor.type, cols);
  const int64_t piece_rows = PieceRows(job, part);
  for (int64_t first = begin; first < end; first += piece_rows) {
    if (failed_.load(std::memory_order_relaxed)) return absl::OkStatus();
    const int64_t num_rows = std::min(piece_rows, end - first);
    ASSIGN_OR_RETURN(std::byte* const memory, feed_->Next(lane));
    const std::span<std::byte> piece(memory, static_cast<size_t>(num_rows * row_bytes));
    const auto at = static_cast<uint64_t>((part.first_row + first) * row_bytes);
    RETURN_IF_ERROR(file_.Read(tensor.offset + at, piece));
    if (hash != nullptr) hash->Add(piece);
    if (part.matrix != nullptr) {
      RETURN_IF_ERROR(feed_->Pack(lane, *part.matrix, first, num_rows));
    } else if (part.is_vector) {
      FillVector(job, part, memory, num_rows * cols, first * cols);
    }
    Report(piece.size());
  }
  return absl::OkStatus();
}

void WeightsLoader::FillVector(const Job& job, const Part& part, const std::byte* stored,
                               int64_t values, int64_t first) {
  float* const out = reinterpret_cast<float*>(vector_values_ + part.memory_offset) + first;
  kernels::DequantizeStored(job.tensor->type, stored, values, out);
  AddToEach(job.tensor->added, {out, static_cast<size_t>(values)});
}

absl::Status WeightsLoader::Run(const Task& task, int lane) {
  if (task.part != nullptr) {
    return RunRows(*task.job, *task.part, task.first_row, task.first_row + task.num_rows, lane,
                   nullptr);
  }
  Sha256 hash;
  for (const Part& part : task.job->parts) {
    RETURN_IF_ERROR(RunRows(*task.job, part, 0, part.num_rows, lane, &hash));
  }
  task.job->digest = hash.Finish();
  return absl::OkStatus();
}

void WeightsLoader::Work(int lane) {
  while (!failed_.load(std::memory_order_relaxed)) {
    const size_t next = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (next >= tasks_.size()) return;
    const Task& task = tasks_[next];
    if (const absl::Status status = Run(task, lane); !status.ok()) {
      Fail(Prefix("loading tensor '" + task.job->tensor->name + "'", status));
    }
  }
}

absl::Status WeightsLoader::RunTasks() {
  size_t piece_bytes = 0;
  for (const Job& job : jobs_) {
    const int64_t row_bytes =
        kernels::RowBytes(job.tensor->type, static_cast<int64_t>(job.tensor->cols()));
    for (const Part& part : job.parts) {
      piece_bytes = std::max(piece_bytes, static_cast<size_t>(PieceRows(job, part) * row_bytes));
    }
  }
  const auto num_lanes = static_cast<int>(
      std::min(static_cast<size_t>(std::max(1, options_.num_threads)), tasks_.size()));
  ASSIGN_OR_RETURN(feed_, kernels::WeightFeed::Create(options_.backend, num_lanes, piece_bytes));
  std::vector<std::thread> threads;
  for (int lane = 1; lane < num_lanes; ++lane) threads.emplace_back([this, lane] { Work(lane); });
  Work(0);
  for (std::thread& thread : threads) thread.join();
  {
    MutexLock lock(mutex_);
    RETURN_IF_ERROR(first_error_);
  }
  RETURN_IF_ERROR(feed_->Finish());
  if (vectors_on_host_.size() == 0) return absl::OkStatus();
  return kernels::CopyToBackend(options_.backend, weights_.vector_memory_.bytes(),
                                vectors_on_host_.bytes(), vectors_on_host_.size());
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
  const int64_t offset = HeldAt(part, layer).vector_offset;
  if (offset < 0) return nullptr;
  return reinterpret_cast<const float*>(weights_.vector_memory_.bytes() + offset);
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
  if (options_.lock_memory) RETURN_IF_ERROR(LockMemory());
  if (options_.compute_digest) RETURN_IF_ERROR(HashMetadata());
  RETURN_IF_ERROR(RunTasks());
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
