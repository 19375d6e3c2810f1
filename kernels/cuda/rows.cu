// One block of 256 threads a token (embedding, norms, gates, rotation): reads and writes a few rows
// of f32, all of them in L2. Figures: docs/performance.md.

#include <cuda_bf16.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/row_sources.cuh"
#include "kernels/cuda/rows.h"

namespace sluice::kernels::cuda {
namespace {

__device__ float low_half(uint32_t word) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffff)));
}
__device__ float high_half(uint32_t word) { return low_half(word >> 16); }

// ---- single values of a packed weight, by the formats' definitions

__device__ int packed_quant(const PackedView& w, const uint32_t* chunk, int lane, int j, int p,
                            int second) {
  const int pair_bit = 16 * second;
  int at = 0;
  uint32_t quant = 0;
  int bits = 0;
  const bool nibbles = w.type != DType::kQ2_K && w.type != DType::kQ3_K;
  if (w.type == DType::kQ8_0) {
    const uint32_t word = chunk[(j / 2 * 32 + lane) * 4 + j % 2 * 2 + p / 2];
    return static_cast<int>(word >> (16 * (p % 2) + 8 * second) & 0xff) - 128;
  }
  if (nibbles) {
    quant = chunk[lane * 4 + j] >> (4 * p + pair_bit) & 15;
    at = 128;
    bits = 4;
  }
  if (w.type == DType::kQ2_K || w.type == DType::kQ3_K || w.type == DType::kQ6_K) {
    const uint32_t word = chunk[at + lane * 2 + j / 2];
    quant |= (word >> (2 * (4 * (j % 2) + p) + pair_bit) & 3) << bits;
    at += 64;
    bits += 2;
  }
  if (w.type == DType::kQ3_K || w.type == DType::kQ5_K || w.type == DType::kQ5_0 ||
      w.type == DType::kQ5_1) {
    quant |= (chunk[at + lane] >> (4 * j + p + pair_bit) & 1) << bits;
  }
  return static_cast<int>(quant);
}

__device__ float packed_value(const PackedView& w, int row, int k) {
  const int tile = row / kTileRows;
  const int unit = k / kUnitCols;
  const int j = k % kUnitCols / 16;
  const int p = row % 16 / 8 + k % 16 / 8 * 2;
  const int lane = row % 8 * 4 + k % 8 / 2;
  const int second = k % 2;
  const int64_t index = static_cast<int64_t>(tile) * w.units + unit;
  if (w.type == DType::kF32 || w.type == DType::kF16 || w.type == DType::kBF16) {
    const auto* chunk = reinterpret_cast<const __half*>(w.quants + index * 2048);
    const float value = __half2float(chunk[(j * 32 + lane) * 8 + p * 2 + second]);
    return w.row_factors == nullptr ? value : __fmul_rn(value, w.row_factors[row]);
  }
  const bool fifth = w.type == DType::kQ5_0 || w.type == DType::kQ5_1 || w.type == DType::kQ5_K;
  const int bytes = w.type == DType::kQ8_0   ? 1024
                    : w.type == DType::kQ6_K ? 768
                    : w.type == DType::kQ3_K ? 384
                    : w.type == DType::kQ2_K ? 256
                    : fifth                  ? 640
                                             : 512;
  const auto* chunk = reinterpret_cast<const uint32_t*>(w.quants + index * bytes);
  const int quant = packed_quant(w, chunk, lane, j, p, second);
  const float q = static_cast<float>(quant);
  const int64_t scale_row = index * kTileRows + row % kTileRows;
  const uint32_t word = w.scales[scale_row];
  switch (w.type) {
    case DType::kQ4_1:
    case DType::kQ5_1: {
      const uint32_t dm = w.scales[scale_row * 2 + j / 2];
      return __fadd_rn(__fmul_rn(low_half(dm), q), high_half(dm));
    }
    case DType::kQ4_0:
      return __fmul_rn(low_half(word >> (j / 2 * 16)), q - 8.0f);
    case DType::kQ5_0:
      return __fmul_rn(low_half(word >> (j / 2 * 16)), q - 16.0f);
    case DType::kQ8_0:
      return __fmul_rn(low_half(word >> (j / 2 * 16)), q);
    case DType::kIQ4_NL: {
      constexpr int8_t kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
      return __fmul_rn(low_half(word >> (j / 2 * 16)), static_cast<float>(kLevels[quant]));
    }
    default:
      break;
  }
  const uint32_t super =
      w.supers[(static_cast<int64_t>(tile) * (w.units / 4) + unit / 4) * kTileRows +
               row % kTileRows];
  if (w.type == DType::kQ4_K || w.type == DType::kQ5_K || w.type == DType::kQ2_K) {
    const bool two = w.type == DType::kQ2_K;
    const uint32_t scale = two ? word >> (8 * j) & 15 : word >> (j / 2 * 16) & 0xff;
    const uint32_t minimum = two ? word >> (8 * j + 4) & 15 : word >> (j / 2 * 16 + 8) & 0xff;
    const float s = __fmul_rn(low_half(super), static_cast<float>(scale));
    const float m = __fmul_rn(high_half(super), static_cast<float>(minimum));
    return __fsub_rn(__fmul_rn(s, q), m);
  }
  const float offset = w.type == DType::kQ6_K ? 32.0f : 4.0f;
  const float s =
      __fmul_rn(low_half(super), static_cast<float>(static_cast<int8_t>(word >> (8 * j) & 0xff)));
  return __fmul_rn(s, q - offset);
}

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
      const double angle = __fmul_rn(position, rope.inverse_frequencies[i]);
      double sine, cosine;
      sincos(angle, &sine, &cosine);
      rope.rotations[static_cast<int64_t>(t) * rope.half + i] = make_float2(
          static_cast<float>(cosine * rope.magnitude), static_cast<float>(sine * rope.magnitude));
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

// One warp: the RMS norm of head [D] in shared memory.
__device__ void norm_head(float* head, int head_size, const DeviceNorm& norm, int lane) {
  float squares = 0.0f;
  for (int i = lane; i < head_size; i += 32) squares = __fmaf_rn(head[i], head[i], squares);
  squares = warp_sum(squares);
  const float variance = __fadd_rn(__fdiv_rn(squares, static_cast<float>(head_size)), norm.epsilon);
  const float inverse = rsqrtf(variance);
  for (int i = lane; i < head_size; i += 32) {
    head[i] = __fmul_rn(__fmul_rn(head[i], inverse), norm.weight[i]);
  }
  __syncwarp();
}

__device__ void store_kv(const KvLayer& kv, std::byte* base, int64_t at, float value) {
  if (kv.type == DType::kF32) {
    reinterpret_cast<float*>(base)[at] = value;
  } else if (kv.type == DType::kBF16) {
    reinterpret_cast<__nv_bfloat16*>(base)[at] = __float2bfloat16_rn(value);
  } else {
    reinterpret_cast<__half*>(base)[at] = __float2half_rn(value);
  }
}

// A block has one token, a warp one head at a time.
__global__ void __launch_bounds__(kRowThreads)
    rope_store(const __grid_constant__ RopeStoreArgs args) {
  extern __shared__ float heads[];  // [8 warps][D]
  let_next_start();
  wait_for_previous();
  const int t = blockIdx.x;
  const int lane = threadIdx.x % 32;
  const int head_size = args.head_size;
  float* head = heads + threadIdx.x / 32 * head_size;
  const int num_heads = args.num_heads + 2 * args.num_kv_heads;
  const int position = args.positions[t];
  const int page = args.pages[args.page_begins[args.token_rows[t]] + position / kPageTokens];
  const int slot = position % kPageTokens;
  for (int h = blockIdx.y * 8 + threadIdx.x / 32; h < num_heads; h += gridDim.y * 8) {
    const bool is_query = h < args.num_heads;
    const bool is_key = !is_query && h < args.num_heads + args.num_kv_heads;
    const float* from = args.qkv + (static_cast<int64_t>(t) * num_heads + h) * head_size;
    for (int i = lane; i < head_size; i += 32) head[i] = __ldcg(from + i);
    __syncwarp();
    const DeviceNorm& norm = is_query ? args.q_norm : args.k_norm;
    if ((is_query || is_key) && norm.weight != nullptr) norm_head(head, head_size, norm, lane);
    for (int i = lane; (is_query || is_key) && i < args.half; i += 32) {
      const float2 rotation = __ldcg(args.rotations + static_cast<int64_t>(t) * args.half + i);
      const bool interleaved = args.style == RopeStyle::kInterleaved;
      float& first = head[interleaved ? 2 * i : i];
      float& second = head[interleaved ? 2 * i + 1 : i + args.half];
      const float a = first;
      const float b = second;
      first = __fmaf_rn(a, rotation.x, -__fmul_rn(b, rotation.y));
      second = __fmaf_rn(b, rotation.x, __fmul_rn(a, rotation.y));
    }
    __syncwarp();
    if (is_query) {
      float* to = args.q_out + (static_cast<int64_t>(t) * args.num_heads + h) * head_size;
      for (int i = lane; i < head_size; i += 32) to[i] = head[i];
    } else {
      const int g = h - args.num_heads - (is_key ? 0 : args.num_kv_heads);
      const int64_t begin =
          (static_cast<int64_t>(page) * args.num_kv_heads + g) * head_size * kPageTokens;
      for (int i = lane; i < head_size; i += 32) {
        const int64_t at = begin + (is_key ? i * kPageTokens + slot : slot * head_size + i);
        store_kv(args.kv, is_key ? args.kv.k : args.kv.v, at, head[i]);
      }
    }
    __syncwarp();
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

// Shared memory beyond the 48 KB that a kernel has unasked, for rows of up to 56,000 values.
template <typename Kernel>
cudaError_t AllowShared(Kernel kernel, size_t bytes) {
  if (bytes <= (size_t{48} << 10)) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

template <typename Args>
absl::Status LaunchRows(void (*kernel)(Args), const Args& args, int num_rows, int cols,
                        std::string_view name, cudaStream_t stream) {
  const size_t bytes = static_cast<size_t>((cols + kUnitCols - 1) / kUnitCols) * kUnitCols * 4;
  if (const cudaError_t error = AllowShared(kernel, bytes); error != cudaSuccess) {
    return ToStatus(error, name);
  }
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
  return LaunchRows(norm_rows, args, args.num_rows, args.cols, "norm_rows", stream);
}

absl::Status LaunchGateRows(const GateRowsArgs& args, cudaStream_t stream) {
  return LaunchRows(gate_rows, args, args.num_rows, args.cols, "gate_rows", stream);
}

absl::Status LaunchAddNorm(const AddNormArgs& args, cudaStream_t stream) {
  return LaunchRows(add_norm, args, args.num_rows, args.cols, "add_norm", stream);
}

absl::Status LaunchRopeStore(const RopeStoreArgs& args, cudaStream_t stream) {
  // A lone token spreads its heads over blocks.
  const unsigned groups =
      args.num_tokens <= 16 ? static_cast<unsigned>(args.num_heads + 2 * args.num_kv_heads + 7) / 8
                            : 1;
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(args.num_tokens), groups),
                             .block = dim3(kRowThreads),
                             .shared_bytes = size_t{8} * static_cast<size_t>(args.head_size) * 4};
  return ToStatus(Launch(stream, shape, rope_store, args), "rope_store");
}

absl::Status LaunchCapLogits(float* logits, int64_t n, float scale, float softcap,
                             cudaStream_t stream) {
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>((n + 255) / 256)),
                             .block = dim3(256)};
  return ToStatus(Launch(stream, shape, cap_logits, logits, n, scale, softcap), "cap_logits");
}

}  // namespace sluice::kernels::cuda
