#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"

namespace sluice::kernels {

// Whether QuantizeBlocks makes blocks of `type`: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1.
bool CanQuantize(DType type);

// Rounds `count` values to the nearest that blocks of `type` hold, and stores them as a file does:
// RowBytes(type, count) bytes. `count` is a multiple of 32. Gives the bytes that the format's
// reference gives (quantize_row_*_ref of ggml-quants.c, and gguf.quants in Python): the scale is
// kept as a half, quants are computed from the scale in f32. Where the reference is undefined (a
// scale so small that its inverse is infinite) the quants are those of zero.
//
// Returns `count`, or the index of the first value that the type cannot hold: NaN, infinite, or the
// largest of a block whose scale or minimum exceeds a half (65504). What is stored of its block
// means nothing then.
int64_t QuantizeBlocks(DType type, const float* values, int64_t count, std::byte* stored);

}  // namespace sluice::kernels
