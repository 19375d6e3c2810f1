#include "kernels/cuda/device.h"

#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace sluice::kernels::cuda {
namespace {

void FreeDevice(std::byte* bytes, size_t) { cudaFree(bytes); }
void FreePinned(std::byte* bytes, size_t) { cudaFreeHost(bytes); }

}  // namespace

absl::Status ToStatus(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  // What a launch left behind is reported here and not once more by the next call; an error that
  // has poisoned the context stays whatever is asked.
  cudaGetLastError();
  const std::string message = std::string(what) + ": CUDA error " +
                              std::to_string(static_cast<int>(error)) + " (" +
                              cudaGetErrorName(error) + "): " + cudaGetErrorString(error);
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

cudaError_t AllowShared(const void* kernel, size_t bytes) {
  // What any kernel may have, together with the little that some declare themselves.
  constexpr size_t kAlways = size_t{32} << 10;
  if (bytes <= kAlways) return cudaSuccess;
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, size_t> allowed;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const std::lock_guard lock(mutex);
  size_t& most = allowed[{device, kernel}];
  if (bytes <= most) return cudaSuccess;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error == cudaSuccess) most = bytes;
  return error;
}

absl::StatusOr<Buffer> AllocateOnDevice(int device, size_t bytes) {
  if (absl::Status status = ToStatus(cudaSetDevice(device), "choosing the device"); !status.ok()) {
    return status;
  }
  void* memory = nullptr;
  const size_t size = bytes == 0 ? 1 : bytes;
  if (const cudaError_t error = cudaMalloc(&memory, size); error != cudaSuccess) {
    if (error != cudaErrorMemoryAllocation) return ToStatus(error, "device memory");
    cudaGetLastError();
    size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    return absl::ResourceExhaustedError("device memory: asked for " + std::to_string(bytes) +
                                        " bytes, " + std::to_string(free_bytes) + " of " +
                                        std::to_string(total_bytes) + " are free");
  }
  Buffer buffer = Buffer::Adopt(static_cast<std::byte*>(memory), bytes, FreeDevice);
  absl::Status status = ToStatus(cudaMemset(memory, 0, size), "clearing device memory");
  if (status.ok()) status = ToStatus(cudaDeviceSynchronize(), "clearing device memory");
  if (!status.ok()) return status;
  return buffer;
}

absl::StatusOr<Buffer> AllocatePinned(size_t bytes, bool clear) {
  void* memory = nullptr;
  const size_t size = bytes == 0 ? 1 : bytes;
  absl::Status status = ToStatus(cudaMallocHost(&memory, size), "page-locked host memory");
  if (!status.ok()) return status;
  if (clear) __builtin_memset(memory, 0, size);
  return Buffer::Adopt(static_cast<std::byte*>(memory), bytes, FreePinned);
}

}  // namespace sluice::kernels::cuda
