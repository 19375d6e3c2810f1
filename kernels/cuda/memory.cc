// Devices, their memory, and weights in it.

#include <string>

#include "kernels/core/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/rows.h"

namespace sluice::kernels::cuda {
namespace {

#define RETURN_IF_ERROR(expr)                                         \
  do {                                                                \
    if (absl::Status status_ = (expr); !status_.ok()) return status_; \
  } while (false)

constexpr int kLeastMajor = 8;  // compute capability

// Makes the device that holds `memory` the calling thread's.
absl::Status UseDeviceOf(const void* memory) {
  cudaPointerAttributes attributes = {};
  RETURN_IF_ERROR(ToStatus(cudaPointerGetAttributes(&attributes, memory), "finding a device"));
  return ToStatus(cudaSetDevice(attributes.device), "choosing the device");
}

}  // namespace

absl::StatusOr<DeviceFacts> OpenDevice(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  const std::string subject = "cuda:" + std::to_string(device) + ": ";
  if (error != cudaSuccess) {
    return absl::FailedPreconditionError(subject +
                                         "no usable NVIDIA driver: " + cudaGetErrorString(error));
  }
  if (device < 0 || device >= count) {
    return absl::FailedPreconditionError(subject + "expected a device below " +
                                         std::to_string(count) + ", the number found");
  }
  cudaDeviceProp properties;
  RETURN_IF_ERROR(ToStatus(cudaGetDeviceProperties(&properties, device), subject + "properties"));
  if (properties.major < kLeastMajor) {
    return absl::FailedPreconditionError(
        subject + properties.name + ": expected compute capability 8.0 or more, got " +
        std::to_string(properties.major) + "." + std::to_string(properties.minor));
  }
  RETURN_IF_ERROR(ToStatus(cudaSetDevice(device), subject + "choosing it"));
  DeviceFacts facts;
  facts.name = properties.name;
  facts.major = properties.major;
  facts.minor = properties.minor;
  size_t free_bytes = 0, total_bytes = 0;
  RETURN_IF_ERROR(ToStatus(cudaMemGetInfo(&free_bytes, &total_bytes), subject + "its memory"));
  facts.free_bytes = free_bytes;
  facts.total_bytes = total_bytes;
  return facts;
}

absl::StatusOr<Buffer> AllocateMemory(size_t bytes) {
  int device = 0;
  RETURN_IF_ERROR(ToStatus(cudaGetDevice(&device), "the current device"));
  return AllocateOnDevice(device, bytes);
}

absl::Status CopyToDevice(void* to, const void* from, size_t bytes) {
  RETURN_IF_ERROR(
      ToStatus(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "copying to the device"));
  // From pageable memory the call may return once the bytes are staged, and streams of the backend
  // do not wait for the default one.
  return ToStatus(cudaStreamSynchronize(cudaStreamLegacy), "copying to the device");
}

absl::Status CopyFromDevice(void* to, const void* from, size_t bytes) {
  // Streams of the backend do not wait for this copy, nor it for them.
  RETURN_IF_ERROR(ToStatus(cudaDeviceSynchronize(), "waiting for the device"));
  return ToStatus(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "copying from the device");
}

absl::StatusOr<Activation> AllocateActivation(int64_t max_rows, int64_t cols) {
  const auto padded = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
  const int64_t values_bytes = padded(max_rows * cols * 4);
  const int64_t operand_bytes = padded(OperandBytes(max_rows, cols));
  auto storage =
      AllocateMemory(static_cast<size_t>(values_bytes + operand_bytes + padded(max_rows * 4)));
  if (!storage.ok()) return storage.status();
  std::byte* bytes = storage->bytes();
  Activation activation(*std::move(storage));
  activation.max_rows = max_rows;
  activation.cols = cols;
  activation.values = reinterpret_cast<float*>(bytes);
  activation.operands = bytes + values_bytes;
  activation.factors = reinterpret_cast<float*>(bytes + values_bytes + operand_bytes);
  return activation;
}

bool SupportsWeight(DType) { return true; }

int64_t PackedBytes(DType type, int64_t rows, int64_t cols) {
  return PackedLayout::Of(type, rows, cols).bytes;
}

absl::Status PackWeightRows(PackedWeight& weight, int64_t first_row, int64_t num_rows,
                            const std::byte* stored) {
  RETURN_IF_ERROR(UseDeviceOf(weight.storage.bytes()));
  const auto bytes = static_cast<size_t>(num_rows * RowBytes(weight.type, weight.cols));
  const cudaStream_t stream = cudaStreamPerThread;
  void* staging = nullptr;
  RETURN_IF_ERROR(ToStatus(cudaMallocAsync(&staging, bytes, stream), "staging weights"));
  absl::Status status = ToStatus(
      cudaMemcpyAsync(staging, stored, bytes, cudaMemcpyHostToDevice, stream), "uploading weights");
  if (status.ok()) {
    status =
        PackRows(PackedLayout::Of(weight.type, weight.rows, weight.cols), weight.storage.bytes(),
                 first_row, num_rows, static_cast<const std::byte*>(staging), stream);
  }
  cudaFreeAsync(staging, stream);
  if (!status.ok()) return status;
  return ToStatus(cudaStreamSynchronize(stream), "packing weights");
}

absl::Status UnpackWeightRow(const PackedWeight& weight, int64_t row, float* out_on_host) {
  SLUICE_KERNEL_CHECK(row >= 0 && row < weight.rows, "the row is one of the weight's");
  RETURN_IF_ERROR(UseDeviceOf(weight.storage.bytes()));
  const auto bytes = static_cast<size_t>(weight.cols) * sizeof(float);
  auto values = AllocateMemory(bytes);
  if (!values.ok()) return values.status();
  RETURN_IF_ERROR(LaunchUnpackRow(
      ViewOf(PackedLayout::Of(weight.type, weight.rows, weight.cols), weight.storage.bytes()), row,
      values->as<float>(), cudaStreamPerThread));
  RETURN_IF_ERROR(ToStatus(cudaStreamSynchronize(cudaStreamPerThread), "unpacking a row"));
  return CopyFromDevice(out_on_host, values->bytes(), bytes);
}

}  // namespace sluice::kernels::cuda
