#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

#include "kernels/cuda/packed_weight.h"

namespace sluice::kernels::cuda {

// Repacks rows [first_row, first_row + num_rows) on the device: `stored_on_device` are the rows as
// in a file. first_row is a multiple of 16; `packed` was zero-filled. Asynchronous.
absl::Status PackRows(const PackedLayout& layout, std::byte* packed, int64_t first_row,
                      int64_t num_rows, const std::byte* stored_on_device, cudaStream_t stream);

// Whether this program has code for the current device: what CUDA says of one of its kernels.
cudaError_t FindKernels();

}  // namespace sluice::kernels::cuda
