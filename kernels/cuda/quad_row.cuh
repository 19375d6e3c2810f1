#pragma once

// Operand rows of up to kMostRowQuads * 1,024 columns, made in registers: a row has 256 threads,
// each with four neighbouring columns of every 1,024. Blocks of one row, or of two whose operands
// are exchanged in shared memory before they are written: sixteen bytes of a row and sixteen of the
// next are one sector of memory, and written each for itself they took twice as long.

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/operand_rows.cuh"

namespace sluice::kernels::cuda {

inline constexpr int kMostRowQuads = 8;

// How many quads of a row of `cols` a thread has; 0 when they are too many, or not whole ones.
inline int RowQuads(int cols) {
  if (cols % 4 != 0) return 0;
  for (const int quads : {1, 2, 4, kMostRowQuads}) {
    if (cols <= quads * 4 * kRowThreads) return quads;
  }
  return 0;
}

template <int kQuads, int kRows>
class QuadRow {
 public:
  // Of a block, besides the registers.
  struct Shared {
    float reduce[kRows][16];
    uint4 operands[kRows == 1 ? 1 : kRows][kRows == 1 ? 1 : kQuads * kRowThreads / 2 + 4];
  };

  float4 quads[kQuads];

  // Which of the block's rows the thread works on.
  __device__ static int row() {
    return kRows == 1 ? 0 : static_cast<int>(threadIdx.x) / kRowThreads;
  }

  // Zeros behind `cols`.
  template <typename Load>
  __device__ __forceinline__ void load(const float* from, int cols, const Load& load) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      quads[i] =
          column(i) < cols ? load(reinterpret_cast<const float4*>(from + column(i))) : float4{};
    }
  }

  // with(value) of each of the thread's, ascending.
  template <typename With>
  __device__ __forceinline__ void for_each(const With& with) const {
#pragma unroll
    for (const float4& quad : quads) {
      with(quad.x);
      with(quad.y);
      with(quad.z);
      with(quad.w);
    }
  }
  __device__ __forceinline__ float most() const {
    float most = 0.0f;
    for_each([&](float value) { most = fmaxf(most, fabsf(value)); });
    return most;
  }

  // The sum of x and the maximum of y over the row's threads, in the order of block_sum_max.
  __device__ static __forceinline__ float2 sum_max(float x, float y, Shared& shared) {
    x = warp_sum(x);
    y = warp_max(y);
    float* reduce = shared.reduce[row()];
    if (threadIdx.x % 32 == 0) {
      reduce[thread() / 32] = x;
      reduce[8 + thread() / 32] = y;
    }
    __syncthreads();
    return sum_max_of_warps(reduce);
  }

  // Writes the values times 2^shift as the operand rows from `first` on, of `num_rows` in all.
  __device__ __forceinline__ void write(int shift, int first, int num_rows, const OperandRows& out,
                                        Shared& shared) const {
    const float scale = power_of_two(shift);
    const bool exists = first + row() < num_rows;
    if (exists && thread() == 0) out.factors[first + row()] = power_of_two(-shift);
    const int chunks = out.units * kUnitCols / 8;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int k = column(i);
      if (k >= 8 * chunks) break;
      const float4& q = quads[i];
      const uint2 words = {half2_bits(__fmul_rn(q.x, scale), __fmul_rn(q.y, scale)),
                           half2_bits(__fmul_rn(q.z, scale), __fmul_rn(q.w, scale))};
      uint4* chunk = kRows == 1 ? operand_place(out, first, k / 8) : shared.operands[row()] + k / 8;
      reinterpret_cast<uint2*>(chunk)[k / 4 % 2] = words;
    }
    if constexpr (kRows > 1) {
      __syncthreads();
      for (int i = threadIdx.x; i < kRows * chunks; i += kRows * kRowThreads) {
        const int to = i % kRows;
        if (first + to < num_rows) {
          *operand_place(out, first + to, i / kRows) = shared.operands[to][i / kRows];
        }
      }
    }
  }

 private:
  __device__ static int thread() { return static_cast<int>(threadIdx.x) % kRowThreads; }
  __device__ static int column(int i) { return 4 * thread() + i * 4 * kRowThreads; }
  __device__ static __forceinline__ uint32_t half2_bits(float x, float y) {
    const __half2 pair = __floats2half2_rn(x, y);
    return static_cast<uint32_t>(__half_as_ushort(pair.y)) << 16 | __half_as_ushort(pair.x);
  }
};

}  // namespace sluice::kernels::cuda
