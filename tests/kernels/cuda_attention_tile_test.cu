// One tile of 64 keys: a warp and a block give equal bits, close to the definition in double.

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/cuda/attention_tile.cuh"

namespace sluice::kernels::cuda {
namespace {

struct TileCase {
  int head_size = 64;
  int first_key = 64;
  int position = 127;  // of the first query; the others see one key more or less
  int end = 128;
  int window = 0;
  float softcap = 0.0f;
};

template <int kHead>
struct TileMemory {
  QueryRows<kHead> rows;
  BlockTile tile;
  uint4 keys[TileShape<kHead>::kKeyBytes / 16];
  uint4 values[TileShape<kHead>::kValueBytes / 16];
};

__device__ int position_of(const TileCase& c, int query) { return c.position - query % 3; }

template <int kHead>
__global__ void __launch_bounds__(256)
    attend_one(KvLayer kv, const int32_t* pages, const float* q, PagedAttentionArgs op, TileCase c,
               bool by_block, float* parts) {
  extern __shared__ __align__(16) std::byte memory[];
  auto& shared = *reinterpret_cast<TileMemory<kHead>*>(memory);
  const PagedHead head(kv, pages, 1);
  const uint32_t keys = shared_address(shared.keys);
  const uint32_t values = shared_address(shared.values);
  load_keys_async<kHead, 256>(keys, head, c.first_key, c.end, threadIdx.x);
  load_values_async<kHead, 256>(values, head, c.first_key, 0, c.end, threadIdx.x);
  commit_copies();
  for (int row = threadIdx.x / 32; row < kTileQueries; row += 8) {
    if (row == 13) {
      fill_no_query<kHead>(shared.rows, row);
      continue;
    }
    const int position = position_of(c, row);
    const int first = op.window > 0 ? max(0, position - op.window + 1) : 0;
    fill_query<kHead>(shared.rows, row, c.head_size, first, position, [&](int d) {
      return make_float2(q[row * c.head_size + d], q[row * c.head_size + d + 1]);
    });
  }
  wait_for_copies<0>();
  __syncthreads();
  const int stride = c.head_size + 2;
  if (by_block) {
    attend_tile_by_block<kHead>(shared.rows, keys, values, c.first_key, op, c.head_size,
                                shared.tile, parts, stride, kTileQueries);
  } else if (threadIdx.x < 32) {
    attend_tile<kHead>(SharedQueries<kHead>(shared.rows), LaneQueries(shared.rows, op.scale), keys,
                       values, c.first_key, op, c.head_size, parts, stride, kTileQueries);
  } else if (kHead <= 128 && threadIdx.x < 64) {
    // Another warp from queries held in registers, behind the first one's parts.
    if constexpr (kHead <= 128) {
      attend_tile<kHead>(HeldQueries<kHead>(shared.rows), LaneQueries(shared.rows, op.scale), keys,
                         values, c.first_key, op, c.head_size, parts + kTileQueries * stride,
                         stride, kTileQueries);
    }
  }
}

void Expect(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

// Memory that host and device both have a copy of.
template <typename T>
struct Mirror {
  std::vector<T> host;
  T* device = nullptr;

  explicit Mirror(std::vector<T> values) : host(std::move(values)) {
    Expect(cudaMalloc(reinterpret_cast<void**>(&device), host.size() * sizeof(T)));
    Expect(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Mirror() { cudaFree(device); }
  void Fetch() {
    Expect(cudaMemcpy(host.data(), device, host.size() * sizeof(T), cudaMemcpyDeviceToHost));
  }
};

class CudaAttentionTileTest : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    int num_devices = 0;
    if (cudaGetDeviceCount(&num_devices) != cudaSuccess || num_devices == 0) {
      cudaGetLastError();
      GTEST_SKIP() << "no CUDA device";
    }
  }
};

constexpr int kPages = 9;

// A part by its definition, for query `row`.
std::vector<double> Reference(const TileCase& c, const PagedAttentionArgs& op, const float* q,
                              const std::vector<__half>& k, const std::vector<__half>& v,
                              const std::vector<int32_t>& pages, int row) {
  const int d_count = c.head_size;
  const int position = c.position - row % 3;
  const int first = op.window > 0 ? std::max(0, position - op.window + 1) : 0;
  std::vector<double> scores(kTileKeys, -INFINITY);
  double most = -INFINITY;
  for (int j = 0; j < kTileKeys; ++j) {
    const int key = c.first_key + j;
    if (key < first || key > position) continue;
    const int64_t begin = (int64_t{pages[static_cast<size_t>(key / 16)]} * 2 + 1) * d_count * 16;
    double dot = 0.0;
    for (int d = 0; d < d_count; ++d) {
      dot += double{q[row * d_count + d]} *
             __half2float(k[static_cast<size_t>(begin + d * 16 + key % 16)]);
    }
    dot *= op.scale;
    scores[static_cast<size_t>(j)] =
        op.softcap > 0.0f ? op.softcap * std::tanh(dot / op.softcap) : dot;
    most = std::max(most, scores[static_cast<size_t>(j)]);
  }
  std::vector<double> part(static_cast<size_t>(d_count) + 2, 0.0);
  part[0] = most;
  for (int j = 0; j < kTileKeys; ++j) {
    const double weight = std::exp(scores[static_cast<size_t>(j)] - most);
    if (!(weight > 0.0)) continue;
    part[1] += weight;
    const int key = c.first_key + j;
    const int64_t begin = (int64_t{pages[static_cast<size_t>(key / 16)]} * 2 + 1) * d_count * 16;
    for (int d = 0; d < d_count; ++d) {
      part[static_cast<size_t>(d) + 2] +=
          weight * __half2float(v[static_cast<size_t>(begin + key % 16 * d_count + d)]);
    }
  }
  return part;
}

template <int kHead>
void Run(const TileCase& c, std::mt19937& random) {
  std::normal_distribution<float> normal;
  const size_t values = size_t{kPages} * 2 * static_cast<size_t>(c.head_size) * 16;
  std::vector<__half> k_values(values), v_values(values);
  for (__half& x : k_values) x = __float2half(normal(random));
  for (__half& x : v_values) x = __float2half(normal(random));
  std::vector<float> q_values(size_t{kTileQueries} * static_cast<size_t>(c.head_size));
  for (float& x : q_values) x = std::ldexp(normal(random), static_cast<int>(random() % 4));
  std::vector<int32_t> page_values = {3, 8, 1, 6, 2, 7, 4, 5};
  // Whatever lies at or beyond the end was never written.
  for (int key = c.end; key < 8 * 16; ++key) {
    const int64_t begin =
        (int64_t{page_values[static_cast<size_t>(key / 16)]} * 2 + 1) * c.head_size * 16;
    for (int d = 0; d < c.head_size; ++d) {
      k_values[static_cast<size_t>(begin + d * 16 + key % 16)] = __float2half(NAN);
      v_values[static_cast<size_t>(begin + key % 16 * c.head_size + d)] = __float2half(NAN);
    }
  }
  const Mirror<__half> k(k_values), v(v_values);
  const Mirror<float> q(q_values);
  const Mirror<int32_t> pages(page_values);
  KvLayer kv;
  kv.num_pages = kPages;
  kv.num_kv_heads = 2;
  kv.head_size = c.head_size;
  kv.k = reinterpret_cast<std::byte*>(k.device);
  kv.v = reinterpret_cast<std::byte*>(v.device);
  const PagedAttentionArgs op = {1.0f / std::sqrt(static_cast<float>(c.head_size)), c.softcap,
                                 c.window};
  const size_t count = size_t{kTileQueries} * static_cast<size_t>(c.head_size + 2);
  std::vector<float> poison(2 * count, -12345.0f);
  Mirror<float> by_warp(poison), by_block(poison);
  const auto bytes = static_cast<int>(sizeof(TileMemory<kHead>));
  Expect(
      cudaFuncSetAttribute(attend_one<kHead>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  attend_one<kHead><<<1, 256, static_cast<size_t>(bytes)>>>(kv, pages.device, q.device, op, c,
                                                            false, by_warp.device);
  attend_one<kHead><<<1, 256, static_cast<size_t>(bytes)>>>(kv, pages.device, q.device, op, c, true,
                                                            by_block.device);
  Expect(cudaGetLastError());
  Expect(cudaDeviceSynchronize());
  by_warp.Fetch();
  by_block.Fetch();
  for (size_t i = 0; i < count; ++i) {
    ASSERT_EQ(0, std::memcmp(&by_warp.host[i], &by_block.host[i], 4))
        << "query " << i / (count / 16) << " at " << i % (count / 16) << ": " << by_warp.host[i]
        << " by a warp, " << by_block.host[i] << " by a block";
    if (kHead > 128) continue;
    ASSERT_EQ(0, std::memcmp(&by_warp.host[i], &by_warp.host[count + i], 4)) << "queries held";
  }
  for (int row = 0; row < kTileQueries; ++row) {
    if (row == 13) continue;
    const float* got = by_warp.host.data() + row * (c.head_size + 2);
    const std::vector<double> want =
        Reference(c, op, q.host.data(), k.host, v.host, page_values, row);
    if (want[0] == -INFINITY) {
      ASSERT_EQ(got[0], kNoKeys);
      for (int i = 1; i < c.head_size + 2; ++i) ASSERT_EQ(got[i], 0.0f);
      continue;
    }
    // Scores: steps of the accumulator's rounding times the norms; outcomes tilt by as much.
    double norm = 0.0;
    for (int d = 0; d < c.head_size; ++d)
      norm += std::pow(q.host[static_cast<size_t>(row * c.head_size + d)], 2);
    const double largest = std::sqrt(norm) * 1.6;  // times |k| and scale, about
    const double error = std::ldexp(largest * (c.head_size / 8 + 4) + 8 * c.softcap, -23);
    ASSERT_NEAR(got[0], want[0], error) << "maximum of query " << row;
    for (int i = 1; i < c.head_size + 2; ++i) {
      ASSERT_NEAR(got[i], want[static_cast<size_t>(i)],
                  (4 * error + std::ldexp(1.0, -18)) * std::max(want[1], 1.0) * 4.0)
          << "query " << row << " at " << i;
    }
  }
}

void RunFor(const TileCase& c, std::mt19937& random) {
  if (c.head_size <= 64) return Run<64>(c, random);
  if (c.head_size <= 80) return Run<80>(c, random);
  if (c.head_size <= 96) return Run<96>(c, random);
  if (c.head_size <= 128) return Run<128>(c, random);
  Run<256>(c, random);
}

TEST_P(CudaAttentionTileTest, WarpEqualsBlock) {
  std::mt19937 random(41);
  for (const int first_key : {0, 64}) {
    for (const int more : {2, 3, 17, 40, 63, 64}) {
      for (const int window : {0, 1, 30, 200}) {
        for (const float softcap : {0.0f, 3.0f}) {
          TileCase c = {.head_size = GetParam(),
                        .first_key = first_key,
                        .position = first_key + more - 1,
                        .end = std::min(128, first_key + more),
                        .window = window,
                        .softcap = softcap};
          SCOPED_TRACE("first key " + std::to_string(first_key) + " end " + std::to_string(c.end) +
                       " window " + std::to_string(window) + " softcap " + std::to_string(softcap));
          RunFor(c, random);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Heads, CudaAttentionTileTest,
                         ::testing::Values(8, 16, 24, 40, 64, 72, 80, 96, 112, 128, 192, 256));

}  // namespace
}  // namespace sluice::kernels::cuda
