// rope_store: a block has 16 consecutive tokens and one head of Q, K or V, a warp a token at a
// time, after all tokens' values and rotations have been asked for. Grid (tokens / 16, H + 2 G),
// 256 threads, about 16 (2 D + 4) floats of shared memory. Neighbouring tokens of a row lie in one
// page, so that lanes which go through the tokens of K's one d write whole sectors.
// Figures: docs/performance.md.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/head_rows.cuh"
#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/operand_rows.cuh"
#include "kernels/cuda/shared_tiles.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr int kTokens = 16;  // of a block

// Floats from token to token in shared memory: multiples of four, heads spread over the banks.
__host__ __device__ constexpr int HeadStride(int head_size) { return (head_size + 7) / 4 * 4; }
__host__ __device__ constexpr int RotationStride(int half) { return (2 * half + 3) / 4 * 4; }

__device__ void store_kv(const KvLayer& kv, std::byte* base, int64_t at, float value) {
  if (kv.type == DType::kF32) {
    reinterpret_cast<float*>(base)[at] = value;
  } else if (kv.type == DType::kBF16) {
    reinterpret_cast<__nv_bfloat16*>(base)[at] = __float2bfloat16_rn(value);
  } else {
    reinterpret_cast<__half*>(base)[at] = __float2half_rn(value);
  }
}

// Requests n floats. One warp; 16 bytes at a time, or 4 where they are not at such places.
__device__ __forceinline__ void request_floats(float* to, const float* from, int n, bool by_four,
                                               int lane) {
  if (by_four) {
    for (int i = 4 * lane; i < n; i += 128) copy_async(shared_address(to + i), from + i, true);
  } else {
    for (int i = lane; i < n; i += 32) to[i] = __ldcg(from + i);
  }
}

// V of one token, `begin` its place among the values of the cache. One warp.
__device__ void store_value(const KvLayer& kv, int64_t begin, const float* head, int head_size,
                            int lane) {
  if (kv.type != DType::kF16 || head_size % 8 != 0) {
    for (int d = lane; d < head_size; d += 32) store_kv(kv, kv.v, begin + d, head[d]);
    return;
  }
  for (int d = 8 * lane; d < head_size; d += 256) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __half2 pair = __floats2half2_rn(head[d + 2 * i], head[d + 2 * i + 1]);
      memcpy(&words[i], &pair, 4);
    }
    *reinterpret_cast<uint4*>(reinterpret_cast<__half*>(kv.v) + begin + d) =
        make_uint4(words[0], words[1], words[2], words[3]);
  }
}

__global__ void __launch_bounds__(kRowThreads)
    rope_store(const __grid_constant__ RopeStoreArgs args) {
  extern __shared__ __align__(16) float heads[];  // [16][D + 4], then rotations [16][half][2]
  __shared__ int64_t page_begins[kTokens];        // where the page of each token begins, or -1
  __shared__ int slots[kTokens];
  let_next_start();
  const int first = static_cast<int>(blockIdx.x) * kTokens;
  const int num_tokens = min(kTokens, args.num_tokens - first);
  const int h = static_cast<int>(blockIdx.y);
  const int all_heads = args.num_heads + 2 * args.num_kv_heads;
  const bool is_query = h < args.num_heads;
  const bool is_key = !is_query && h < args.num_heads + args.num_kv_heads;
  const int kv_head = h - args.num_heads - (is_key ? 0 : args.num_kv_heads);
  const int head_size = args.head_size;
  const int stride = HeadStride(head_size);
  const int rotation_stride = RotationStride(args.half);
  float* rotations = heads + kTokens * stride;
  // All rows of memory begin at multiples of 16 bytes.
  const bool by_four = head_size % 4 == 0 && args.half % 2 == 0;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (!is_query && threadIdx.x < num_tokens) {
    const int t = first + static_cast<int>(threadIdx.x);
    const int position = args.positions[t];
    const int page = args.pages[args.page_begins[args.token_rows[t]] + position / kPageTokens];
    page_begins[threadIdx.x] =
        (int64_t{page} * args.num_kv_heads + kv_head) * head_size * kPageTokens;
    slots[threadIdx.x] = position % kPageTokens;
  }
  wait_for_previous();
  for (int i = warp; i < num_tokens; i += kRowThreads / 32) {
    const int64_t t = first + i;
    request_floats(heads + i * stride, args.qkv + (t * all_heads + h) * head_size, head_size,
                   by_four, lane);
    if (is_query || is_key) {
      request_floats(rotations + i * rotation_stride,
                     reinterpret_cast<const float*>(args.rotations + t * args.half), 2 * args.half,
                     by_four, lane);
    }
  }
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  for (int i = warp; i < num_tokens; i += kRowThreads / 32) {
    const int64_t t = first + i;
    float* head = heads + i * stride;
    if (is_query || is_key) {
      const DeviceNorm& norm = is_query ? args.q_norm : args.k_norm;
      if (norm.weight != nullptr) norm_head(head, head_size, norm, lane);
      const auto* turns = reinterpret_cast<const float2*>(rotations + i * rotation_stride);
      rotate_head(head, args.style, args.half, lane, [&](int pair) { return turns[pair]; });
      __syncwarp();
    }
    if (is_query) {
      float* to = args.q_out + (t * args.num_heads + h) * head_size;
      if (by_four) {
        for (int d = 4 * lane; d < head_size; d += 128) {
          *reinterpret_cast<float4*>(to + d) = *reinterpret_cast<const float4*>(head + d);
        }
      } else {
        for (int d = lane; d < head_size; d += 32) to[d] = head[d];
      }
    } else if (!is_key) {
      store_value(args.kv, page_begins[i] + slots[i] * head_size, head, head_size, lane);
    }
  }
  if (!is_key) return;
  __syncthreads();
  // Tokens are the faster index: those of a page lie side by side.
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * head_size; i += kRowThreads) {
    const int token = i % kTokens;
    const int d = i / kTokens;
    if (token >= num_tokens) continue;
    store_kv(args.kv, args.kv.k, page_begins[token] + d * kPageTokens + slots[token],
             heads[token * stride + d]);
  }
}

const KernelModule kModule(rope_store);

}  // namespace

absl::Status LaunchRopeStore(const RopeStoreArgs& args, cudaStream_t stream) {
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>((args.num_tokens + kTokens - 1) / kTokens),
                   static_cast<unsigned>(args.num_heads + 2 * args.num_kv_heads)),
      .block = dim3(kRowThreads),
      .shared_bytes = sizeof(float) * kTokens *
                      static_cast<size_t>(HeadStride(args.head_size) + RotationStride(args.half))};
  return ToStatus(Launch(stream, shape, rope_store, args), "rope_store");
}

}  // namespace sluice::kernels::cuda
