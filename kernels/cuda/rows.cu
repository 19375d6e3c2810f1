// One block of 256 threads a token (embedding, norms, gates): reads and writes a few rows
// of f32, all of them in L2. Figures: docs/performance.md.

#include "kernels/cuda/device.h"
#include "kernels/cuda/head_rows.cuh"
#include "kernels/cuda/packed_value.cuh"
#include "kernels/cuda/row_sources.cuh"
#include "kernels/cuda/rows.h"

namespace sluice::kernels::cuda {
namespace {

__global__ void __launch_bounds__(kRowThreads)
    embed_tokens(const __grid_constant__ EmbedArgs args) {
  let_next_start();
  wait_for_previous();
  const int t = blockIdx.x;
  int token = args.tokens[t];
  if (token < 0) token = __ldcg(args.previous_tokens + ~token);
  token = max(0, min(args.table.rows - 1, token));
  float* out = args.residual + static_cast<int64_t>(t) * args.table.cols;
  for (int k = threadIdx.x; k < args.table.cols; k += kRowThreads) {
    out[k] = __fmul_rn(args.scale, packed_value(args.table, token, k));
  }
  const float position = static_cast<float>(args.positions[t]);
  for (int r = 0; r < args.num_ropes; ++r) {
    const EmbedArgs::RopeTable& rope = args.ropes[r];
    for (int i = threadIdx.x; i < rope.half; i += kRowThreads) {
      rope.rotations[static_cast<int64_t>(t) * rope.half + i] =
          rotation_of(position, rope.inverse_frequencies[i], rope.magnitude);
    }
  }
}

__global__ void unpack_row(PackedView weight, int row, float* out) {
  for (int k = threadIdx.x; k < weight.cols; k += blockDim.x) out[k] = packed_value(weight, row, k);
}

__global__ void __launch_bounds__(kRowThreads)
    norm_rows(const __grid_constant__ NormRowsArgs args) {
  extern __shared__ float values[];
  __shared__ float shared[16];
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.x;
  const int shift = load_norm_row(args, row, values, shared);
  write_operand_row(values, shift, row, args.out);
}

// Operands of wide rows as they are: a row in the registers of a block of 1,024 threads, eight
// columns at a time. 64 rows of 18,944 columns keep half a card busy for one latency of L2.
constexpr int kWideThreads = 1024;
constexpr int kWideChunks = 4;  // of a thread
constexpr int kMostWideCols = 8 * kWideChunks * kWideThreads;

__global__ void __launch_bounds__(kWideThreads)
    wide_rows(const __grid_constant__ NormRowsArgs args) {
  __shared__ float of_warps[32];
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.x;
  const float* source = args.source + static_cast<int64_t>(row) * args.cols;
  float4 values[kWideChunks][2] = {};
  float most = 0.0f;
#pragma unroll
  for (int c = 0; c < kWideChunks; ++c) {
    const int chunk = static_cast<int>(threadIdx.x) + c * kWideThreads;
    if (chunk * 8 >= args.cols) continue;
    const auto* from = reinterpret_cast<const float4*>(source + chunk * 8);
    values[c][0] = __ldcg(from);
    values[c][1] = __ldcg(from + 1);
  }
#pragma unroll
  for (int c = 0; c < kWideChunks; ++c) {
#pragma unroll
    for (const float4& v : values[c]) {
      most = fmaxf(fmaxf(most, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
    }
  }
  const auto over_lanes = [](float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      value = fmaxf(value, __shfl_xor_sync(~0u, value, offset));
    }
    return value;
  };
  most = over_lanes(most);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = most;
  __syncthreads();
  const int shift = shift_of(over_lanes(of_warps[threadIdx.x % 32]));
  if (threadIdx.x == 0) args.out.factors[row] = power_of_two(-shift);
#pragma unroll
  for (int c = 0; c < kWideChunks; ++c) {
    const int chunk = static_cast<int>(threadIdx.x) + c * kWideThreads;
    if (chunk >= args.out.units * 8) continue;
    *operand_place(args.out, row, chunk) =
        operand_chunk(values[c][0], values[c][1], power_of_two(shift));
  }
}

__global__ void __launch_bounds__(kRowThreads)
    gate_rows(const __grid_constant__ GateRowsArgs args) {
  extern __shared__ float values[];
  __shared__ float shared[16];
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.x;
  load_gate_row(args, row, values, args.values);
  write_operand_row(values, operand_shift(values, args.out.units, shared), row, args.out);
}

__global__ void __launch_bounds__(kRowThreads) add_norm(const __grid_constant__ AddNormArgs args) {
  extern __shared__ float values[];
  __shared__ float shared[16];
  let_next_start();
  wait_for_previous();
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * args.cols;
  for (int k = threadIdx.x; k < args.cols; k += kRowThreads) {
    values[k] = __ldcg(args.source + begin + k);
  }
  const int units = (args.cols + kUnitCols - 1) / kUnitCols;
  clear_padding(values, args.cols, units);
  __syncthreads();
  norm_values(values, args.cols, units, args.norm, shared);
  for (int k = threadIdx.x; k < args.cols; k += kRowThreads) {
    float* to = args.residual + begin + k;
    *to = __fadd_rn(__ldcg(to), __fmul_rn(args.scale, values[k]));
  }
}

__global__ void cap_logits(float* logits, int64_t n, float scale, float softcap) {
  let_next_start();
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float x = __fmul_rn(scale, __ldcg(logits + i));
  logits[i] = softcap > 0.0f ? soft_cap(x, softcap) : x;
}

// Rows of up to 56,000 values.
template <typename Args>
absl::Status LaunchRows(void (*kernel)(Args), const Args& args, int num_rows, int cols,
                        std::string_view name, cudaStream_t stream) {
  const size_t bytes = static_cast<size_t>((cols + kUnitCols - 1) / kUnitCols) * kUnitCols * 4;
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(num_rows)),
                             .block = dim3(kRowThreads),
                             .shared_bytes = bytes};
  return ToStatus(Launch(stream, shape, kernel, args), name);
}

}  // namespace

absl::Status LaunchEmbed(const EmbedArgs& args, cudaStream_t stream) {
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(args.num_tokens)),
                             .block = dim3(kRowThreads)};
  return ToStatus(Launch(stream, shape, embed_tokens, args), "embed_tokens");
}

absl::Status LaunchUnpackRow(const PackedView& weight, int64_t row, float* out,
                             cudaStream_t stream) {
  unpack_row<<<1, kRowThreads, 0, stream>>>(weight, static_cast<int>(row), out);
  return ToStatus(cudaGetLastError(), "unpack_row");
}

absl::Status LaunchNormRows(const NormRowsArgs& args, cudaStream_t stream) {
  if (args.norm.weight == nullptr && args.indices == nullptr && args.cols > 4096 &&
      args.cols <= kMostWideCols && args.cols % 8 == 0 &&
      reinterpret_cast<uintptr_t>(args.source) % 16 == 0) {
    const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(args.num_rows)),
                               .block = dim3(kWideThreads)};
    return ToStatus(Launch(stream, shape, wide_rows, args), "wide_rows");
  }
  return LaunchRows(norm_rows, args, args.num_rows, args.cols, "norm_rows", stream);
}

absl::Status LaunchGateRows(const GateRowsArgs& args, cudaStream_t stream) {
  return LaunchRows(gate_rows, args, args.num_rows, args.cols, "gate_rows", stream);
}

absl::Status LaunchAddNorm(const AddNormArgs& args, cudaStream_t stream) {
  return LaunchRows(add_norm, args, args.num_rows, args.cols, "add_norm", stream);
}

absl::Status LaunchCapLogits(float* logits, int64_t n, float scale, float softcap,
                             cudaStream_t stream) {
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>((n + 255) / 256)),
                             .block = dim3(256)};
  return ToStatus(Launch(stream, shape, cap_logits, logits, n, scale, softcap), "cap_logits");
}

}  // namespace sluice::kernels::cuda
