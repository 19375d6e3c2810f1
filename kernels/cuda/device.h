#pragma once

// The few things that every CUDA source of this folder needs: errors as statuses, device memory as
// Buffers, launches with programmatic dependent launch.

#include <cuda_runtime.h>

#include <cstdint>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/core/buffer.h"

namespace sluice::kernels::cuda {

// INTERNAL "WHAT: CUDA error N (name): text"; RESOURCE_EXHAUSTED for memory.
absl::Status ToStatus(cudaError_t error, std::string_view what);

// Zero-filled device memory on `device`, freed with the Buffer. RESOURCE_EXHAUSTED with the bytes
// asked for and the bytes free.
absl::StatusOr<Buffer> AllocateOnDevice(int device, size_t bytes);
// Page-locked host memory, zero-filled unless `clear` is false.
absl::StatusOr<Buffer> AllocatePinned(size_t bytes, bool clear = true);

// One launch: grid, block, dynamic shared memory, blocks of a cluster along x. With `dependent`,
// the kernel may start before its predecessor in the stream has ended (compute capability 9.0): it
// calls cudaGridDependencySynchronize() before it touches anything but weights.
struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  bool dependent = true;
  unsigned cluster = 1;
};

// True when the kernels that the calling thread's device runs have been compiled for compute
// capability 9.0 or later: code for earlier ones does not wait for its predecessor, and a device
// that compiles it from PTX would let it begin before that has ended.
bool KernelsWait();

// Lets a kernel have so many bytes of dynamic shared memory on the current device. Never takes any
// away: engines launch the same kernels in different shapes from threads of their own.
cudaError_t AllowShared(const void* kernel, size_t bytes);

template <typename... KernelArgs, typename... Args>
cudaError_t Launch(cudaStream_t stream, const LaunchShape& shape, void (*kernel)(KernelArgs...),
                   Args&&... args) {
  const cudaError_t allowed =
      AllowShared(reinterpret_cast<const void*>(kernel), shape.shared_bytes);
  if (allowed != cudaSuccess) return allowed;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (shape.dependent && KernelsWait()) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = shape.cluster;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
}

#ifdef __CUDACC__
// The beginning of every kernel of a chain: lets the next one start, and waits for the previous.
// Only weights may be touched before wait_for_previous.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}
#endif

}  // namespace sluice::kernels::cuda
