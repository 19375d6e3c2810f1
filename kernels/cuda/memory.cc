// Devices, their memory, and weights in it.

#include <string>

#include "kernels/core/check.h"
#include "kernels/core/status.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_check.h"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/rows.h"

namespace sluice::kernels::cuda {
namespace {

// Makes the device that holds `memory` the calling thread's.
absl::Status UseDeviceOf(const void* memory) {
  cudaPointerAttributes attributes = {};
  RETURN_IF_ERROR(ToStatus(cudaPointerGetAttributes(&attributes, memory), "finding a device"));
  return ToStatus(cudaSetDevice(attributes.device), "choosing the device");
}

DeviceQuery::Driver DriverState(cudaError_t error, int driver_version) {
  switch (error) {
    case cudaSuccess:
      return DeviceQuery::Driver::kWorks;
    case cudaErrorInsufficientDriver:
      return driver_version == 0 ? DeviceQuery::Driver::kNone : DeviceQuery::Driver::kTooOld;
    case cudaErrorNoDevice:
      return DeviceQuery::Driver::kNoDevice;
    case cudaErrorSystemDriverMismatch:
      return DeviceQuery::Driver::kMismatch;
    default:
      return DeviceQuery::Driver::kOtherError;
  }
}

absl::StatusOr<DeviceQuery> Query(int device) {
  DeviceQuery query;
  query.runtime_version = CUDART_VERSION;
  query.built_for = SLUICE_CUDA_ARCHITECTURES;
  RETURN_IF_ERROR(ToStatus(cudaDriverGetVersion(&query.driver_version), "the driver's version"));
  const cudaError_t error = cudaGetDeviceCount(&query.num_devices);
  query.driver = DriverState(error, query.driver_version);
  const absl::Status found = ToStatus(error, "looking for devices");
  query.error = std::string(found.message());
  if (error != cudaSuccess || device < 0 || device >= query.num_devices) return query;
  cudaDeviceProp properties;
  RETURN_IF_ERROR(ToStatus(cudaGetDeviceProperties(&properties, device), "a device's properties"));
  query.name = properties.name;
  query.major = properties.major;
  query.minor = properties.minor;
  return query;
}

}  // namespace

absl::StatusOr<DeviceFacts> OpenDevice(int device) {
  auto query = Query(device);
  if (!query.ok()) return query.status();
  RETURN_IF_ERROR(CheckDevice(device, *query));
  const std::string subject = "cuda:" + std::to_string(device) + ": ";
  RETURN_IF_ERROR(ToStatus(cudaSetDevice(device), subject + "choosing it"));
  const cudaError_t kernels = FindKernels();
  query->has_kernels = kernels != cudaErrorNoKernelImageForDevice &&
                       kernels != cudaErrorInvalidDeviceFunction &&
                       kernels != cudaErrorUnsupportedPtxVersion;
  RETURN_IF_ERROR(CheckDevice(device, *query));
  RETURN_IF_ERROR(ToStatus(kernels, subject + "loading the kernels"));
  DeviceFacts facts;
  facts.name = query->name;
  facts.major = query->major;
  facts.minor = query->minor;
  facts.own_kernels = facts.major == 9 && HasWgmmaCode();
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
