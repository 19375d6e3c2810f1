// Rotation and the KV cache on the GPU: what is written, where, and that nothing else is.

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/core/half.h"
#include "kernels/cuda/rows.h"

namespace sluice::kernels::cuda {
namespace {

void Expect(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

template <typename T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values) : size_(values.size()) {
    Expect(cudaMalloc(reinterpret_cast<void**>(&values_), size_ * sizeof(T)));
    Expect(cudaMemcpy(values_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~OnDevice() { cudaFree(values_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  T* get() const { return values_; }
  std::vector<T> Read() const {
    std::vector<T> values(size_);
    Expect(cudaMemcpy(values.data(), values_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  size_t size_;
  T* values_ = nullptr;
};

uint32_t StoredBits(DType type, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (type == DType::kF16) return FloatToHalf(x);
  if (type == DType::kBF16) return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return bits;
}

struct Row {
  int before;
  int count;
};

struct RopeCase {
  int num_heads, num_kv_heads, head_size, half;
  RopeStyle style;
  DType type;
  bool norm;
  std::vector<Row> rows;
  int padding;  // tokens of a bucket that belong to no sequence: page 0, position 0
};

class CudaRopeStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int num_devices = 0;
    if (cudaGetDeviceCount(&num_devices) != cudaSuccess || num_devices == 0) {
      cudaGetLastError();
      GTEST_SKIP() << "no CUDA device";
    }
  }
};

void Check(const RopeCase& c, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<int32_t> positions, token_rows, page_begins = {0}, pages;
  int32_t next_page = 1;
  for (const Row& row : c.rows) {
    for (int i = 0; i < row.count; ++i) {
      positions.push_back(row.before + i);
      token_rows.push_back(static_cast<int32_t>(page_begins.size()) - 1);
    }
    for (int i = 0; i < row.before + row.count; i += 16) pages.push_back(next_page++);
    page_begins.push_back(static_cast<int32_t>(pages.size()));
  }
  for (int i = 0; i < c.padding; ++i) {
    positions.push_back(0);
    token_rows.push_back(static_cast<int32_t>(page_begins.size()) - 1);
    pages.push_back(0);
    page_begins.push_back(static_cast<int32_t>(pages.size()));
  }
  const size_t num_tokens = positions.size();
  const auto all = static_cast<size_t>(c.num_heads + 2 * c.num_kv_heads);
  const auto d_count = static_cast<size_t>(c.head_size);
  const auto half = static_cast<size_t>(c.half);
  std::vector<float> qkv(num_tokens * all * d_count);
  for (float& x : qkv) x = normal(random);
  std::vector<float2> rotations(num_tokens * half + 1);
  for (float2& r : rotations) r = make_float2(normal(random), normal(random));
  std::vector<float> weight(d_count);
  for (float& x : weight) x = normal(random);
  const size_t value_bytes = c.type == DType::kF32 ? 4 : 2;
  const std::vector<uint8_t> poison(static_cast<size_t>(next_page + 1) *
                                        static_cast<size_t>(c.num_kv_heads) * d_count * 16 *
                                        value_bytes,
                                    0xa5);

  const OnDevice<float> d_qkv(qkv), d_weight(weight),
      d_q(std::vector<float>(num_tokens * static_cast<size_t>(c.num_heads) * d_count));
  const OnDevice<float2> d_rotations(rotations);
  const OnDevice<int32_t> d_positions(positions), d_rows(token_rows), d_begins(page_begins),
      d_pages(pages);
  const OnDevice<uint8_t> d_k(poison), d_v(poison);
  RopeStoreArgs args;
  args.qkv = d_qkv.get();
  args.num_tokens = static_cast<int32_t>(num_tokens);
  args.num_heads = c.num_heads;
  args.num_kv_heads = c.num_kv_heads;
  args.head_size = c.head_size;
  if (c.norm) args.q_norm = args.k_norm = {d_weight.get(), nullptr, 1e-6f, NormKind::kRms};
  args.style = c.style;
  args.half = c.half;
  args.rotations = d_rotations.get();
  args.positions = d_positions.get();
  args.token_rows = d_rows.get();
  args.page_begins = d_begins.get();
  args.pages = d_pages.get();
  args.kv.type = c.type;
  args.kv.num_kv_heads = c.num_kv_heads;
  args.kv.head_size = c.head_size;
  args.kv.k = reinterpret_cast<std::byte*>(d_k.get());
  args.kv.v = reinterpret_cast<std::byte*>(d_v.get());
  args.q_out = d_q.get();
  ASSERT_TRUE(LaunchRopeStore(args, nullptr).ok());
  Expect(cudaDeviceSynchronize());

  const std::vector<float> q = d_q.Read();
  std::vector<uint8_t> k = d_k.Read(), v = d_v.Read();
  // Checks one stored value and puts the poison back.
  const auto check_stored = [&](std::vector<uint8_t>& array, int64_t at, float want, bool exact) {
    uint32_t got = 0;
    std::memcpy(&got, array.data() + static_cast<size_t>(at) * value_bytes, value_bytes);
    std::memset(array.data() + static_cast<size_t>(at) * value_bytes, 0xa5, value_bytes);
    if (exact) {
      ASSERT_EQ(got, StoredBits(c.type, want)) << "at " << at;
      return;
    }
    float value;
    const uint32_t shifted = c.type == DType::kBF16 ? got << 16 : got;
    std::memcpy(&value, &shifted, 4);
    if (c.type == DType::kF16) value = HalfToFloat(static_cast<uint16_t>(got));
    ASSERT_NEAR(value, want, std::abs(want) * 0x1p-7 + 1e-5) << "at " << at;
  };
  for (size_t t = 0; t < num_tokens; ++t) {
    const int position = positions[t];
    const int page =
        pages[static_cast<size_t>(page_begins[static_cast<size_t>(token_rows[t])] + position / 16)];
    // All padding shares one place, whichever of it comes last.
    if (t >= num_tokens - static_cast<size_t>(c.padding)) continue;
    for (size_t h = 0; h < all; ++h) {
      std::vector<float> head(qkv.begin() + static_cast<int64_t>((t * all + h) * d_count),
                              qkv.begin() + static_cast<int64_t>((t * all + h + 1) * d_count));
      const bool is_query = h < static_cast<size_t>(c.num_heads);
      const bool is_value = h >= static_cast<size_t>(c.num_heads + c.num_kv_heads);
      if (!is_value && c.norm) {
        double squares = 0.0;
        for (const float x : head) squares += double{x} * x;
        const double inverse = 1.0 / std::sqrt(squares / c.head_size + 1e-6);
        for (size_t d = 0; d < d_count; ++d) {
          head[d] = static_cast<float>(head[d] * inverse * weight[d]);
        }
      }
      for (size_t i = 0; !is_value && i < half; ++i) {
        const bool interleaved = c.style == RopeStyle::kInterleaved;
        float& first = head[interleaved ? 2 * i : i];
        float& second = head[interleaved ? 2 * i + 1 : i + half];
        const float2 r = rotations[t * half + i];
        const float a = first, b = second;
        first = std::fmaf(a, r.x, -(b * r.y));
        second = std::fmaf(b, r.x, a * r.y);
      }
      const auto kv_head =
          static_cast<int64_t>(h - static_cast<size_t>(c.num_heads) -
                               (is_value ? static_cast<size_t>(c.num_kv_heads) : 0));
      for (size_t d = 0; d < d_count; ++d) {
        const bool exact = !c.norm || is_value;
        if (is_query) {
          const float got = q[(t * static_cast<size_t>(c.num_heads) + h) * d_count + d];
          if (exact) {
            ASSERT_EQ(got, head[d]) << "token " << t << " head " << h << " d " << d;
          } else {
            ASSERT_NEAR(got, head[d], 1e-5) << "token " << t << " head " << h << " d " << d;
          }
          continue;
        }
        const int64_t begin = (int64_t{page} * c.num_kv_heads + kv_head) * c.head_size * 16;
        const int64_t at = is_value ? begin + position % 16 * c.head_size + static_cast<int64_t>(d)
                                    : begin + static_cast<int64_t>(d) * 16 + position % 16;
        ASSERT_NO_FATAL_FAILURE(check_stored(is_value ? v : k, at, head[d], exact));
      }
    }
  }
  // Nothing but those values and, for padding, page 0 was written.
  const size_t page_size = static_cast<size_t>(c.num_kv_heads) * d_count * 16 * value_bytes;
  for (size_t i = page_size; i < poison.size(); ++i) {
    ASSERT_EQ(k[i], 0xa5) << "K at byte " << i;
    ASSERT_EQ(v[i], 0xa5) << "V at byte " << i;
  }
  if (c.padding > 0) return;
  for (size_t i = 0; i < page_size; ++i) ASSERT_TRUE(k[i] == 0xa5 && v[i] == 0xa5) << i;
}

TEST_F(CudaRopeStoreTest, WritesItsPlacesAlone) {
  std::mt19937 random(3);
  const std::vector<std::vector<Row>> steps = {
      {{0, 1}},
      {{37, 1}, {16, 1}, {0, 1}, {15, 1}, {255, 1}},
      {{0, 16}},
      {{5, 40}, {31, 1}, {0, 3}, {9, 130}},
  };
  for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (const int head_size : {6, 24, 64, 80, 128, 256}) {
      for (const auto& rows : steps) {
        for (const bool norm : {false, true}) {
          const RopeCase c = {.num_heads = 6,
                              .num_kv_heads = 2,
                              .head_size = head_size,
                              .half = norm ? head_size / 2 : head_size / 4,
                              .style = norm ? RopeStyle::kHalfSplit : RopeStyle::kInterleaved,
                              .type = type,
                              .norm = norm,
                              .rows = rows,
                              .padding = norm ? 0 : 19};
          SCOPED_TRACE("D " + std::to_string(head_size) + ", " + std::to_string(rows.size()) +
                       " rows, norm " + std::to_string(norm));
          Check(c, random);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

}  // namespace
}  // namespace sluice::kernels::cuda
