// Memory of a backend, and bringing a step's arrays into it.

#include <cstring>
#include <string>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/ops.h"

namespace sluice::kernels {

absl::StatusOr<DeviceFacts> OpenDevice(int index) { return cuda::OpenDevice(index); }

absl::StatusOr<int> LoadKernels() { return cuda::LoadKernels(); }

absl::StatusOr<Buffer> AllocateMemory(Backend backend, size_t bytes) {
  return backend == Backend::kCuda ? cuda::AllocateMemory(bytes) : Buffer::Allocate(bytes);
}

absl::Status CopyToBackend(Backend backend, void* to, const void* from, size_t bytes) {
  if (backend == Backend::kCuda) return cuda::CopyToDevice(to, from, bytes);
  if (bytes > 0) std::memcpy(to, from, bytes);
  return absl::OkStatus();
}

absl::Status CopyFromBackend(Backend backend, void* to, const void* from, size_t bytes) {
  if (backend == Backend::kCuda) return cuda::CopyFromDevice(to, from, bytes);
  if (bytes > 0) std::memcpy(to, from, bytes);
  return absl::OkStatus();
}

absl::StatusOr<Activation> AllocateActivation(Backend backend, int64_t max_rows, int64_t cols) {
  if (backend != Backend::kCuda) return Activation::Allocate(backend, max_rows, cols);
  if (max_rows < 1 || cols < 1) {
    return absl::InvalidArgumentError("activation: expected at least one row and column, got [" +
                                      std::to_string(max_rows) + ", " + std::to_string(cols) + "]");
  }
  return cuda::AllocateActivation(max_rows, cols);
}

WeightFeed::WeightFeed(int num_lanes, size_t piece_bytes)
    : piece_bytes_(piece_bytes), lanes_(static_cast<size_t>(num_lanes)) {}
WeightFeed::~WeightFeed() = default;

absl::StatusOr<std::unique_ptr<WeightFeed>> WeightFeed::Create(Backend backend, int num_lanes,
                                                               size_t piece_bytes) {
  std::unique_ptr<WeightFeed> feed(new WeightFeed(num_lanes, piece_bytes));
  if (backend == Backend::kCuda) {
    auto ring = cuda::MakeUploadRing(num_lanes, piece_bytes);
    if (!ring.ok()) return ring.status();
    feed->ring_ = std::move(*ring);
  }
  return feed;
}

absl::StatusOr<std::byte*> WeightFeed::Next(int lane) {
  if (ring_ != nullptr) return cuda::NextPiece(*ring_, lane);
  Buffer& memory = lanes_[static_cast<size_t>(lane)];
  if (memory.size() < piece_bytes_) {
    auto allocated = Buffer::Allocate(piece_bytes_);
    if (!allocated.ok()) return allocated.status();
    memory = std::move(*allocated);
  }
  return memory.bytes();
}

absl::Status WeightFeed::Pack(int lane, PackedWeight& weight, int64_t first_row, int64_t num_rows) {
  if (ring_ != nullptr) return cuda::PackPiece(*ring_, lane, weight, first_row, num_rows);
  return PackWeightRows(weight, first_row, num_rows, lanes_[static_cast<size_t>(lane)].bytes());
}

absl::Status WeightFeed::Finish() {
  return ring_ != nullptr ? cuda::FinishPieces(*ring_) : absl::OkStatus();
}

absl::Status CopyPages(Exec& exec, std::span<const KvLayer> layers, std::span<const int32_t> from,
                       std::span<const int32_t> to) {
  if (from.size() != to.size()) {
    return absl::InvalidArgumentError("CopyPages: expected as many target pages as source pages (" +
                                      std::to_string(from.size()) + "), got " +
                                      std::to_string(to.size()));
  }
  for (const KvLayer& layer : layers) {
    for (size_t i = 0; i < from.size(); ++i) {
      for (const int32_t page : {from[i], to[i]}) {
        if (page < 0 || page >= layer.num_pages) {
          return absl::InvalidArgumentError("CopyPages: expected a page in [0, " +
                                            std::to_string(layer.num_pages) + "), got " +
                                            std::to_string(page));
        }
      }
    }
  }
  if (exec.backend() == Backend::kCuda) return cuda::CopyPages(exec, layers, from, to);
  for (const KvLayer& layer : layers) {
    const size_t bytes =
        static_cast<size_t>(KvPageBytes(layer.type, layer.num_kv_heads, layer.head_size) / 2);
    for (size_t i = 0; i < from.size(); ++i) {
      if (from[i] == to[i]) continue;
      const size_t source = static_cast<size_t>(from[i]) * bytes;
      const size_t target = static_cast<size_t>(to[i]) * bytes;
      std::memcpy(layer.k + target, layer.k + source, bytes);
      std::memcpy(layer.v + target, layer.v + source, bytes);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<BatchView> UploadBatch(Exec& exec, const BatchView& host) {
  if (exec.backend() != Backend::kCuda) return host;
  if (exec.workspace() == nullptr) {
    return absl::FailedPreconditionError("UploadBatch: ReserveWorkspace must come first");
  }
  const WorkspaceShape& shape = exec.workspace_shape();
  if (host.num_tokens < 1 || host.num_tokens > shape.max_tokens || host.num_rows < 1 ||
      host.num_rows > shape.max_rows || host.num_logit_rows > shape.max_logit_rows) {
    return absl::InvalidArgumentError(
        "UploadBatch: expected 1 to " + std::to_string(shape.max_tokens) + " tokens, 1 to " +
        std::to_string(shape.max_rows) + " rows and at most " +
        std::to_string(shape.max_logit_rows) + " logit rows, got " +
        std::to_string(host.num_tokens) + ", " + std::to_string(host.num_rows) + " and " +
        std::to_string(host.num_logit_rows));
  }
  return cuda::UploadBatch(exec, host);
}

absl::Status RunStep(Exec& exec, const BatchView& batch, const std::function<absl::Status()>& ops) {
  if (exec.backend() != Backend::kCuda || exec.observer() != nullptr) return ops();
  return cuda::RunStep(exec, batch, ops);
}

std::vector<int64_t> RowsOfGraphs(const Exec& exec) {
  if (exec.backend() != Backend::kCuda) return {};
  SLUICE_KERNEL_CHECK(exec.workspace() != nullptr, "ReserveWorkspace comes first");
  return cuda::RowsOfGraphs(exec);
}

}  // namespace sluice::kernels
