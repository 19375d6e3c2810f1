#include "engine/model/weights.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <span>
#include <thread>
#include <unordered_map>
#include <utility>

#include "engine/base/hash.h"
#include "engine/base/mutex.h"
#include "engine/base/status.h"
#include "engine/model/sha256.h"
#include "engine/model/tensor_places.h"
#include "engine/model_file/model_file.h"

namespace sluice::engine {

using kernels::Buffer;
using kernels::DType;
using kernels::PackedWeight;

// One load: tensors are shared out among threads, the largest first; each thread reads the pieces
// of its tensor in order into a buffer of its own, hashes and repacks them while they are in cache.
class WeightsLoader {
 public:
  WeightsLoader(const ModelFile& file, const ModelConfig& config,
                const Weights::LoadOptions& options, Weights& weights)
      : file_(file), config_(config), options_(options), weights_(weights) {}

  absl::Status Load();

 private:
  // What becomes of one tensor of the file.
  struct Job {
    const FileTensor* tensor = nullptr;
    PackedWeight* matrix = nullptr;  // filled by the job, or
    size_t memory_offset = 0;        // of the matrix in Weights::matrix_memory_
    Buffer* vector = nullptr;        // f32; neither: only hashed
    Sha256::Digest digest = {};
  };

  absl::Status Plan();
  absl::Status CheckTypes() const;
  absl::Status AllocateMatrices();
  void Work();
  absl::Status Run(Job& job, Buffer& staging);
  absl::Status RunPieces(Job& job, Buffer& staging);
  absl::Status HashMetadata();
  void Report(uint64_t bytes);
  void Fail(const absl::Status& status);
  void Wire();
  const float* Vector(const std::string& name) const;
  kernels::Linear LinearOf(const std::string& weight, const std::string& bias) const;
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
  std::unordered_map<std::string, size_t, StringHash, StringEqual> job_of_;
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
  std::unordered_map<std::string_view, const TensorPlace*> place_of;
  size_t num_matrices = 0, num_vectors = 0;
  for (const TensorPlace& place : places_) {
    // The factors are part of the config's frequencies already.
    if (place.part == TensorPart::kRopeFactors || file_.FindTensor(place.name) == nullptr) continue;
    place_of[place.name] = &place;
    ++(place.is_vector ? num_vectors : num_matrices);
  }
  weights_.matrices_.reserve(num_matrices);
  weights_.vectors_.resize(num_vectors);
  size_t vector = 0;
  for (const FileTensor& tensor : file_.tensors()) {
    const auto found = place_of.find(tensor.name);
    if (found == place_of.end() && !options_.compute_digest) continue;
    Job& job = jobs_.emplace_back();
    job.tensor = &tensor;
    total_bytes_ += tensor.bytes;
    job_of_[tensor.name] = jobs_.size() - 1;
    if (found == place_of.end()) continue;
    if (found->second->is_vector) {
      job.vector = &weights_.vectors_[vector++];
    } else {
      job.matrix = weights_.matrices_.emplace_back(std::make_unique<PackedWeight>()).get();
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
    if (job.matrix == nullptr || kernels::SupportsWeight(options_.backend, job.tensor->type)) {
      continue;
    }
    return Unimplemented(file_.path() + ": tensor '" + job.tensor->name + "': backend " +
                         std::string(kernels::Name(options_.backend)) +
                         " has no products for its type, got " + job.tensor->ShapeString() +
                         job.tensor->At());
  }
  return absl::OkStatus();
}

// One Buffer for all, in the order of the file: matrices of a few hundred KiB each would not get
// the huge pages that reading them at full speed needs.
absl::Status WeightsLoader::AllocateMatrices() {
  constexpr size_t kAlignment = 64;
  size_t bytes = 0;
  for (Job& job : jobs_) {
    if (job.matrix == nullptr) continue;
    job.memory_offset = bytes;
    const auto packed = static_cast<size_t>(kernels::PackedBytes(
        options_.backend, job.tensor->type, static_cast<int64_t>(job.tensor->rows()),
        static_cast<int64_t>(job.tensor->cols())));
    bytes += (packed + kAlignment - 1) / kAlignment * kAlignment;
  }
  ASSIGN_OR_RETURN(weights_.matrix_memory_, Buffer::Allocate(bytes));
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

absl::Status WeightsLoader::RunPieces(Job& job, Buffer& staging) {
  const FileTensor& tensor = *job.tensor;
  const auto cols = static_cast<int64_t>(tensor.cols());
  const auto rows = static_cast<int64_t>(tensor.rows());
  const int64_t row_bytes = kernels::RowBytes(tensor.type, cols);
  const int64_t panels = std::max<int64_t>(1, kPieceBytes / (row_bytes * kPanelRows));
  const int64_t piece_rows = std::min(rows, panels * kPanelRows);
  const auto piece_bytes = static_cast<size_t>(piece_rows * row_bytes);
  if (staging.size() < piece_bytes) {
    ASSIGN_OR_RETURN(staging,
                     Buffer::Allocate(std::max(piece_bytes, static_cast<size_t>(kPieceBytes))));
  }
  Sha256 hash;
  for (int64_t first = 0; first < rows; first += piece_rows) {
    if (failed_.load(std::memory_order_relaxed)) return absl::OkStatus();
    const int64_t num_rows = std::min(piece_rows, rows - first);
    const std::span<std::byte> piece(staging.bytes(), static_cast<size_t>(num_rows * row_bytes));
    RETURN_IF_ERROR(file_.Read(tensor.offset + static_cast<uint64_t>(first * row_bytes), piece));
    if (options_.compute_digest) hash.Add(piece);
    if (job.matrix != nullptr) {
      kernels::PackWeightRows(*job.matrix, first, num_rows, piece.data());
    } else if (job.vector != nullptr) {
      kernels::DequantizeStored(tensor.type, piece.data(), num_rows * cols,
                                job.vector->as<float>() + first * cols);
    }
    Report(piece.size());
  }
  if (options_.compute_digest) job.digest = hash.Finish();
  return absl::OkStatus();
}

absl::Status WeightsLoader::Run(Job& job, Buffer& staging) {
  const FileTensor& tensor = *job.tensor;
  if (job.matrix != nullptr) {
    const auto rows = static_cast<int64_t>(tensor.rows());
    const auto cols = static_cast<int64_t>(tensor.cols());
    const auto bytes =
        static_cast<size_t>(kernels::PackedBytes(options_.backend, tensor.type, rows, cols));
    ASSIGN_OR_RETURN(*job.matrix,
                     kernels::PlaceWeight(options_.backend, tensor.type, rows, cols,
                                          weights_.matrix_memory_.Part(job.memory_offset, bytes)));
  } else if (job.vector != nullptr) {
    ASSIGN_OR_RETURN(*job.vector, Buffer::Allocate(tensor.cols() * sizeof(float)));
  }
  return RunPieces(job, staging);
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

const float* WeightsLoader::Vector(const std::string& name) const {
  const auto found = job_of_.find(name);
  if (found == job_of_.end() || jobs_[found->second].vector == nullptr) return nullptr;
  return jobs_[found->second].vector->as<float>();
}

kernels::Linear WeightsLoader::LinearOf(const std::string& weight, const std::string& bias) const {
  kernels::Linear linear;
  linear.weight = jobs_[job_of_.find(weight)->second].matrix;
  linear.bias = Vector(bias);
  return linear;
}

void WeightsLoader::Wire() {
  weights_.layers_.resize(static_cast<size_t>(config_.num_layers));
  for (size_t i = 0; i < weights_.layers_.size(); ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    const auto linear = [&](const std::string& name) {
      return LinearOf(prefix + name + ".weight", prefix + name + ".bias");
    };
    LayerWeights& layer = weights_.layers_[i];
    layer.attention_norm = Vector(prefix + "attn_norm.weight");
    layer.q = linear("attn_q");
    layer.k = linear("attn_k");
    layer.v = linear("attn_v");
    if (kernels::IsPlanted(options_.planted_bug, kernels::PlantedBug::kKeyBiasDropped)) {
      layer.k.bias = nullptr;
    }
    layer.q_head_norm = Vector(prefix + "attn_q_norm.weight");
    layer.k_head_norm = Vector(prefix + "attn_k_norm.weight");
    layer.attention_output = linear("attn_output");
    layer.attention_output.name = "attention_output";
    layer.ffn_norm = Vector(prefix + "ffn_norm.weight");
    layer.gate = linear("ffn_gate");
    layer.up = linear("ffn_up");
    layer.down = linear("ffn_down");
    layer.down.name = "ffn_down";
  }
  weights_.output_norm_ = Vector("output_norm.weight");
  weights_.token_embedding_ = jobs_[job_of_.find("token_embd.weight")->second].matrix;
  weights_.head_.weight = weights_.token_embedding_;
  if (!config_.tied_head) weights_.head_ = LinearOf("output.weight", "output.bias");
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
