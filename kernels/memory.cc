// Memory of a backend, and bringing a step's arrays into it.

#include <cstring>
#include <string>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/ops.h"

namespace sluice::kernels {

absl::StatusOr<DeviceFacts> OpenDevice(int index) { return cuda::OpenDevice(index); }

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

}  // namespace sluice::kernels
