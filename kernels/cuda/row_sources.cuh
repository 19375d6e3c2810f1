#pragma once

// Where operand rows come from: each function fills values[0, units * 64) in shared memory with one
// row in f32, zeros behind its columns, and ends with a barrier. All 256 threads; `shared` holds 16
// floats. The same bits whether a kernel of rows or the prologue of a product calls it.

#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/operand_rows.cuh"
#include "kernels/cuda/rows.h"

namespace sluice::kernels::cuda {

// What an RMS norm multiplies values by, of the sum of their squares.
__device__ __forceinline__ float inverse_rms(float squares, int cols, float epsilon) {
  return rsqrtf(__fadd_rn(__fdiv_rn(squares, static_cast<float>(cols)), epsilon));
}

// That factor of a row, and how large its outcome gets.
struct RmsFactors {
  float inverse = 1.0f;
  float most = 0.0f;  // of |values * weight| * inverse
};
// Of values[0, units * 64), zeros behind `cols`; a thread goes through quads of them ascending. All
// 256 threads; `shared` holds 16 floats.
__device__ __forceinline__ RmsFactors rms_factors(const float* values, int cols, int units,
                                                  const DeviceNorm& norm, float* shared) {
  float squares = 0.0f;
  float most = 0.0f;
  for (int k = 4 * threadIdx.x; k < units * kUnitCols; k += 4 * kRowThreads) {
#pragma unroll
    for (int i = k; i < k + 4; ++i) {
      if (i >= cols) break;
      squares = __fmaf_rn(values[i], values[i], squares);
      most = fmaxf(most, fabsf(__fmul_rn(values[i], norm.weight[i])));
    }
  }
  const float2 both = block_sum_max(squares, most, shared);
  const float inverse = inverse_rms(both.x, cols, norm.epsilon);
  return {inverse, __fmul_rn(both.y, inverse)};
}

// values[0, cols) becomes its norm, zeros stay behind it; all 256 threads; `shared` holds 16
// floats. Returns the row's operand shift.
__device__ inline int norm_values(float* values, int cols, int units, const DeviceNorm& norm,
                                  float* shared) {
  if (norm.kind == NormKind::kRms && norm.bias == nullptr) {
    const RmsFactors factors = rms_factors(values, cols, units, norm, shared);
    for (int k = threadIdx.x; k < cols; k += kRowThreads) {
      values[k] = __fmul_rn(__fmul_rn(values[k], factors.inverse), norm.weight[k]);
    }
    __syncthreads();
    return shift_of(factors.most);
  }
  float mean = 0.0f;
  if (norm.kind == NormKind::kLayer) {
    float sum = 0.0f;
    for (int k = threadIdx.x; k < cols; k += kRowThreads) sum = __fadd_rn(sum, values[k]);
    mean = __fdiv_rn(block_sum(sum, shared), static_cast<float>(cols));
  }
  float squares = 0.0f;
  for (int k = threadIdx.x; k < cols; k += kRowThreads) {
    const float x = __fsub_rn(values[k], mean);
    squares = __fmaf_rn(x, x, squares);
  }
  squares = block_sum(squares, shared);
  const float inverse = inverse_rms(squares, cols, norm.epsilon);
  for (int k = threadIdx.x; k < cols; k += kRowThreads) {
    float x = __fmul_rn(__fmul_rn(__fsub_rn(values[k], mean), inverse), norm.weight[k]);
    if (norm.bias != nullptr) x = __fadd_rn(x, norm.bias[k]);
    values[k] = x;
  }
  __syncthreads();
  return operand_shift(values, units, shared);
}

// values[0, cols) from device memory that another kernel wrote, many quads on their way at a time.
__device__ inline void load_row(const float* source, int cols, float* values) {
  if (cols % 4 != 0 || reinterpret_cast<uintptr_t>(source) % 16 != 0) {
    for (int k = threadIdx.x; k < cols; k += kRowThreads) values[k] = __ldcg(source + k);
    return;
  }
  constexpr int kAtOnce = 8;
  const auto* from = reinterpret_cast<const float4*>(source);
  auto* to = reinterpret_cast<float4*>(values);
  for (int first = threadIdx.x; first < cols / 4; first += kAtOnce * kRowThreads) {
    float4 quads[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int quad = first + i * kRowThreads;
      if (quad < cols / 4) quads[i] = __ldcg(from + quad);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int quad = first + i * kRowThreads;
      if (quad < cols / 4) to[quad] = quads[i];
    }
  }
}

__device__ inline void clear_padding(float* values, int cols, int units) {
  for (int k = cols + threadIdx.x; k < units * kUnitCols; k += kRowThreads) values[k] = 0.0f;
}

// Returns the row's operand shift.
__device__ inline int load_norm_row(const NormRowsArgs& args, int row, float* values,
                                    float* shared) {
  const int64_t from = args.indices != nullptr ? args.indices[row] : row;
  const float* source = args.source + from * args.cols;
  load_row(source, args.cols, values);
  clear_padding(values, args.cols, args.out.units);
  __syncthreads();
  if (args.norm.weight == nullptr) return operand_shift(values, args.out.units, shared);
  return norm_values(values, args.cols, args.out.units, args.norm, shared);
}

// `copy` receives the row in f32 when it is not null.
__device__ inline void load_gate_row(const GateRowsArgs& args, int row, float* values,
                                     float* copy) {
  const int64_t begin = static_cast<int64_t>(row) * args.cols;
  const bool gelu = args.activation == GateActivation::kGeluTanh;
  for (int k = threadIdx.x; k < args.cols; k += kRowThreads) {
    const float up = __ldcg(args.up + begin + k);
    const float gate = args.gate == nullptr ? up : __ldcg(args.gate + begin + k);
    float value = gelu ? gelu_tanh_f32(gate) : silu_f32(gate);
    if (args.gate != nullptr) value = __fmul_rn(value, up);
    values[k] = value;
    if (copy != nullptr) copy[begin + k] = value;
  }
  clear_padding(values, args.cols, args.out.units);
  __syncthreads();
}

// The outcome of one head of a token from its splits [first, last], `stride` floats apart: out [D].
// One warp. Every lane makes the factors of one of 32 splits, then they go through the splits
// ascending, each with columns of its own.
__device__ inline void merge_splits(const float* partials, int64_t stride, int first, int last,
                                    int head_size, float* out) {
  constexpr int kColumns = 8;  // of a lane: D is at most 256
  const int lane = threadIdx.x % 32;
  float most = kNoKeys;
  float sum = 0.0f;
  float value[kColumns] = {};
  for (int base = first; base <= last; base += 32) {
    const float* partial = partials + base * stride;
    float part_most = kNoKeys;
    float part_sum = 0.0f;
    if (base + lane <= last) {
      part_most = __ldcg(partial + lane * stride);
      part_sum = __ldcg(partial + lane * stride + 1);
    }
    float most_so_far = fmaxf(most, part_most);
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const float other = __shfl_up_sync(~0u, most_so_far, offset);
      if (lane >= offset) most_so_far = fmaxf(most_so_far, other);
    }
    const float before = __shfl_up_sync(~0u, most_so_far, 1);
    const float2 own_factors = merge_factors(lane == 0 ? most : before, part_most);
    const int count = min(32, last - base + 1);
    for (int i = 0; i < count; ++i) {
      const float2 factors =
          make_float2(__shfl_sync(~0u, own_factors.x, i), __shfl_sync(~0u, own_factors.y, i));
      sum = merge_value(sum, __shfl_sync(~0u, part_sum, i), factors);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int d = lane + 32 * c;
        if (d >= head_size) break;
        value[c] = merge_value(value[c], __ldcg(partial + i * stride + 2 + d), factors);
      }
    }
    most = __shfl_sync(~0u, most_so_far, 31);
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int d = lane + 32 * c;
    if (d < head_size) out[d] = __fdiv_rn(value[c], sum);
  }
}

// A token's heads, merged where they lie in splits. `copy` receives those when it is not null.
__device__ inline void load_attention_row(const AttentionArgs& args, int row, float* values,
                                          float* copy) {
  const int head_size = static_cast<int>(args.kv.head_size);
  const int cols = args.num_heads * head_size;
  const int64_t begin = static_cast<int64_t>(row) * cols;
  const int slot = args.slots[row];
  if (slot < 0) {
    load_row(args.values + begin, cols, values);
  } else {
    const int position = args.positions[row];
    const int first = args.op.window > 0 ? max(0, position - args.op.window + 1) : 0;
    const int64_t head_stride = head_size + 2;
    const bool lone = first / kSplitKeys == position / kSplitKeys;
    if (lone) {  // merging one split with nothing gives that split to the bit
      const float* heads =
          args.partials + (int64_t{slot} + first / kSplitKeys) * args.num_heads * head_stride;
#pragma unroll 4
      for (int i = threadIdx.x; i < cols; i += kRowThreads) {
        const float* part = heads + i / head_size * head_stride;
        values[i] = __fdiv_rn(__ldcg(part + 2 + i % head_size), __ldcg(part + 1));
      }
    }
    for (int head = threadIdx.x / 32; !lone && head < args.num_heads; head += kRowThreads / 32) {
      const float* partials = args.partials + (int64_t{slot} * args.num_heads + head) * head_stride;
      merge_splits(partials, args.num_heads * head_stride, first / kSplitKeys,
                   position / kSplitKeys, head_size, values + head * head_size);
    }
    __syncthreads();
    for (int i = threadIdx.x; copy != nullptr && i < cols; i += kRowThreads) {
      copy[begin + i] = values[i];
    }
  }
  clear_padding(values, cols, args.out.units);
  __syncthreads();
}

}  // namespace sluice::kernels::cuda
