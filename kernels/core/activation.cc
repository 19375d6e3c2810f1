#include <string>
#include <utility>

#include "kernels/ops.h"

namespace sluice::kernels {

absl::StatusOr<Activation> Activation::Allocate(Backend backend, int64_t max_rows, int64_t cols) {
  if (max_rows < 1 || cols < 1) {
    return absl::InvalidArgumentError("activation: expected at least one row and column, got [" +
                                      std::to_string(max_rows) + ", " + std::to_string(cols) + "]");
  }
  if (backend == Backend::kCuda) {
    return absl::InvalidArgumentError("activation: AllocateActivation makes those of a device");
  }
  const bool quantized = backend == Backend::kCpu && cols % 32 == 0;
  const int64_t count = max_rows * cols;
  // Each array starts on a cache line.
  const auto line = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  const int64_t values_bytes = line(count * 4);
  const int64_t quants_bytes = quantized ? line(count * 2) : 0;
  const int64_t scales_bytes = quantized ? line(count / 32 * 4) : 0;
  auto storage =
      Buffer::Allocate(static_cast<size_t>(values_bytes + quants_bytes + 2 * scales_bytes));
  if (!storage.ok()) return storage.status();

  Activation activation;
  activation.max_rows = max_rows;
  activation.cols = cols;
  activation.storage_ = std::move(*storage);
  std::byte* bytes = activation.storage_.bytes();
  activation.values = reinterpret_cast<float*>(bytes);
  if (quantized) {
    activation.quants = reinterpret_cast<int16_t*>(bytes + values_bytes);
    activation.scales = reinterpret_cast<float*>(bytes + values_bytes + quants_bytes);
    activation.sums = reinterpret_cast<float*>(bytes + values_bytes + quants_bytes + scales_bytes);
  }
  return activation;
}

}  // namespace sluice::kernels
