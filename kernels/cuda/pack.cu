#include <cuda_fp16.h>

#include <atomic>

#include "kernels/cuda/device.h"
#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/stored_block.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr int kPackThreads = 128;

// Two neighbouring values of a row of F32, F16 or BF16 as floats; k is even. Rows of an even number
// of columns begin at multiples of 4 bytes, like the memory they lie in.
__device__ float2 stored_pair(DType type, const uint8_t* row, int k, int cols) {
  if (type == DType::kF32) {
    const float* values = reinterpret_cast<const float*>(row) + k;
    return {values[0], k + 1 < cols ? values[1] : 0.0f};
  }
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(row) + k;
  const uint32_t bits = cols % 2 == 0  ? *reinterpret_cast<const uint32_t*>(halves)
                        : k + 1 < cols ? halves[0] | halves[1] << 16
                                       : halves[0];
  if (type == DType::kBF16) {
    return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
  }
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}

// The power of two that brings a row's largest value into [2^14, 2^15); 1 for a row of zeros or of
// values that are not finite. One warp a row of the piece.
__global__ void find_row_factors(DType type, const uint8_t* stored, int64_t row_bytes, int num_rows,
                                 int cols, float* factors) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= num_rows) return;
  float most = 0.0f;
  for (int k = threadIdx.x % 32 * 2; k < cols; k += 64) {
    const float2 pair = stored_pair(type, stored + row * row_bytes, k, cols);
    most = fmaxf(most, fmaxf(fabsf(pair.x), fabsf(pair.y)));
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  }
  if (threadIdx.x % 32 != 0) return;
  int exponent = 0;
  const bool usable = most > 0.0f && most <= 3.0e38f;
  if (usable) frexpf(most, &exponent);  // most in [2^(e-1), 2^e)
  exponent = max(-100, min(100, exponent - 15));
  factors[row] = usable ? ldexpf(1.0f, exponent) : 1.0f;
}

// F32, F16 and BF16: one lane of one unit of one tile a thread, which stores four times 16 bytes.
__global__ void pack_halves(PackedLayout layout, const uint8_t* stored, int64_t row_bytes,
                            int num_rows, int first_tile, std::byte* packed) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int lane = thread % 32;
  const int unit = thread / 32 % layout.units;
  const int tile = thread / 32 / layout.units;
  if (tile >= (num_rows + kTileRows - 1) / kTileRows) return;
  const int64_t index = static_cast<int64_t>(first_tile + tile) * layout.units + unit;
  uint4* chunk = reinterpret_cast<uint4*>(packed + UnitAt(index, layout.unit_bytes, 0));
  float inverse[2] = {1.0f, 1.0f};  // of the factors, powers of two, of the lane's two rows
  for (int r = 0; r < 2 && layout.type != DType::kF16; ++r) {
    const int row = tile * kTileRows + lane / 4 + r * 8;
    const float* factors = reinterpret_cast<const float*>(packed + layout.rows_at);
    if (row < num_rows) inverse[r] = 1.0f / factors[first_tile * kTileRows + row];
  }
  for (int j = 0; j < 4; ++j) {
    uint32_t words[4];
    for (int pair = 0; pair < 4; ++pair) {
      const int row = tile * kTileRows + lane / 4 + pair % 2 * 8;
      const int k = unit * kUnitCols + j * 16 + pair / 2 * 8 + lane % 4 * 2;
      float2 values = {0.0f, 0.0f};
      if (row < num_rows && k < layout.cols) {
        values = stored_pair(layout.type, stored + row * row_bytes, k, layout.cols);
      }
      const __half2 halves =
          __floats2half2_rn(values.x * inverse[pair % 2], values.y * inverse[pair % 2]);
      words[pair] = *reinterpret_cast<const uint32_t*>(&halves);
    }
    chunk[j * 32 + lane] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// Other types: the same. `stored` are the piece's rows; tile 0 is its first.
__global__ void pack_units(PackedLayout layout, const uint8_t* stored, int64_t row_bytes,
                           int num_rows, int first_tile, std::byte* packed) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int lane = thread % 32;
  const int unit = thread / 32 % layout.units;
  const int tile = thread / 32 / layout.units;
  if (tile >= (num_rows + kTileRows - 1) / kTileRows) return;
  const DType type = layout.type;
  const int64_t index = static_cast<int64_t>(first_tile + tile) * layout.units + unit;
  std::byte* chunk = packed + UnitAt(index, layout.unit_bytes, layout.super_bytes);
  const int block_values = layout.super_bytes != 0 ? 256 : 32;
  const int block_bytes = row_bytes / (layout.cols / block_values);

  uint32_t nibbles[4] = {}, twos[2] = {}, ones = 0;
  uint32_t bytes[4][2] = {};
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < 8; ++i) {
      const int pair = i / 2;
      const int row = tile * kTileRows + lane / 4 + pair % 2 * 8;
      const int k = unit * kUnitCols + j * 16 + pair / 2 * 8 + lane % 4 * 2 + i % 2;
      const bool inside = row < num_rows && k < layout.cols;
      const uint8_t* from = stored + row * row_bytes;
      const uint32_t quant =
          inside ? stored_quant(type, from + k / block_values * block_bytes, k % block_values) : 0;
      nibbles[j] |= (quant & 15) << (4 * pair + 16 * (i % 2));
      twos[j / 2] |= ((type == DType::kQ6_K ? quant >> 4 : quant) & 3)
                     << (2 * (4 * (j % 2) + pair) + 16 * (i % 2));
      ones |= (quant >> (type == DType::kQ3_K ? 2 : 4) & 1) << (4 * j + pair + 16 * (i % 2));
      bytes[j][pair / 2] |= quant << (16 * (pair % 2) + 8 * (i % 2));
    }
  }
  uint32_t* words = reinterpret_cast<uint32_t*>(chunk);
  if (type == DType::kQ8_0) {
    for (int j = 0; j < 4; ++j) {
      uint32_t* to = words + (j / 2 * 32 + lane) * 4 + j % 2 * 2;
      to[0] = bytes[j][0];
      to[1] = bytes[j][1];
    }
    return;
  }
  int at = 0;  // words
  if (layout.quant_bytes >= 512) {
    for (int j = 0; j < 4; ++j) words[lane * 4 + j] = nibbles[j];
    at = 128;
  }
  if (type == DType::kQ6_K || type == DType::kQ2_K || type == DType::kQ3_K) {
    words[at + lane * 2] = twos[0];
    words[at + lane * 2 + 1] = twos[1];
    at += 64;
  }
  if (type == DType::kQ5_0 || type == DType::kQ5_1 || type == DType::kQ5_K ||
      type == DType::kQ3_K) {
    words[at + lane] = ones;
  }
}

// One row of one unit a thread.
__global__ void pack_scales(PackedLayout layout, const uint8_t* stored, int64_t row_bytes,
                            int num_rows, int first_tile, std::byte* packed) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int row = thread % kTileRows;
  const int unit = thread / kTileRows % layout.units;
  const int tile = thread / kTileRows / layout.units;
  if (tile * kTileRows + row >= num_rows) return;
  const uint8_t* from = stored + (tile * kTileRows + row) * row_bytes;
  const int64_t index = static_cast<int64_t>(first_tile + tile) * layout.units + unit;
  std::byte* chunk = packed + UnitAt(index, layout.unit_bytes, layout.super_bytes);
  uint32_t* scales =
      reinterpret_cast<uint32_t*>(chunk + layout.quant_bytes) + row * layout.scale_words;
  if (layout.super_bytes != 0) {  // K-quants
    const int block_bytes = row_bytes / (layout.cols / 256);
    const uint8_t* block = from + unit / 4 * block_bytes;
    scales[0] = stored_super_scales(layout.type, block, unit % 4);
    if (unit % kBlockUnits == 0) {
      std::byte* supers = packed + SupersAt(index, layout.unit_bytes);
      reinterpret_cast<uint32_t*>(supers)[row] = stored_super_d(layout.type, block);
    }
    return;
  }
  const int block_bytes = row_bytes / (layout.cols / 32);
  const uint8_t* first = from + unit * 2 * block_bytes;
  const bool second = unit * kUnitCols + 32 < layout.cols;
  if (layout.scale_words == 2) {
    scales[0] = stored_half(first) | stored_half(first + 2) << 16;
    const uint8_t* next = first + block_bytes;
    scales[1] = second ? stored_half(next) | stored_half(next + 2) << 16 : 0;
  } else {
    scales[0] = stored_half(first) | (second ? stored_half(first + block_bytes) << 16 : 0);
  }
}

unsigned Blocks(int64_t threads) {
  return static_cast<unsigned>((threads + kPackThreads - 1) / kPackThreads);
}

const KernelModule kModule(pack_halves);

}  // namespace

absl::Status PackRows(const PackedLayout& layout, std::byte* packed, int64_t first_row,
                      int64_t num_rows, const std::byte* stored_on_device, cudaStream_t stream) {
  const auto* stored = reinterpret_cast<const uint8_t*>(stored_on_device);
  const int64_t row_bytes = RowBytes(layout.type, layout.cols);
  const int rows = static_cast<int>(num_rows);
  const int first_tile = static_cast<int>(first_row / kTileRows);
  const int64_t tiles = (num_rows + kTileRows - 1) / kTileRows;
  if (layout.bytes > layout.rows_at) {
    float* factors = reinterpret_cast<float*>(packed + layout.rows_at) + first_row;
    find_row_factors<<<Blocks(num_rows * 32), kPackThreads, 0, stream>>>(
        layout.type, stored, row_bytes, rows, layout.cols, factors);
  }
  if (layout.scale_words == 0) {
    pack_halves<<<Blocks(tiles * layout.units * 32), kPackThreads, 0, stream>>>(
        layout, stored, row_bytes, rows, first_tile, packed);
  } else {
    pack_units<<<Blocks(tiles * layout.units * 32), kPackThreads, 0, stream>>>(
        layout, stored, row_bytes, rows, first_tile, packed);
    pack_scales<<<Blocks(tiles * layout.units * kTileRows), kPackThreads, 0, stream>>>(
        layout, stored, row_bytes, rows, first_tile, packed);
  }
  return ToStatus(cudaGetLastError(), "packing weights");
}

cudaError_t FindKernels() {
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, pack_units);
}

bool KernelsWait() {
  constexpr int kMostDevices = 64;
  static std::atomic<int8_t> known[kMostDevices];  // 0: not yet, 1: no, 2: yes
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMostDevices) return false;
  if (const int8_t answer = known[device].load(std::memory_order_relaxed); answer != 0) {
    return answer == 2;
  }
  cudaFuncAttributes attributes = {};
  if (cudaFuncGetAttributes(&attributes, pack_units) != cudaSuccess) return false;
  const bool wait = attributes.ptxVersion >= 90;
  known[device].store(wait ? 2 : 1, std::memory_order_relaxed);
  return wait;
}

}  // namespace sluice::kernels::cuda
