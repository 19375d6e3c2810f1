#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/core/philox.h"
#include "kernels/cuda/sampling.h"
#include "kernels/ops.h"
#include "tests/kernels/sampling_cases.h"
#include "tests/kernels/sampling_fixture.h"

namespace sluice::kernels::cuda {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kMaxContext = 300;

void Expect(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) {
    Expect(cudaMalloc(reinterpret_cast<void**>(&values_), std::max<size_t>(1, size) * sizeof(T)));
  }
  ~DeviceArray() { cudaFree(values_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* get() const { return values_; }
  void Write(const std::vector<T>& values) {
    ASSERT_LE(values.size(), size_);
    Expect(cudaMemcpy(values_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    // From pageable memory it returns once the bytes are staged; a stream that does not block on
    // the default stream could read what was there before. Waits for no launch.
    Expect(cudaStreamSynchronize(cudaStreamLegacy));
  }
  std::vector<T> Read() const {
    std::vector<T> values(size_);
    Expect(cudaMemcpy(values.data(), values_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  size_t size_;
  T* values_ = nullptr;
};

class CudaSamplingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int num_devices = 0;
    if (cudaGetDeviceCount(&num_devices) != cudaSuccess || num_devices == 0) {
      cudaGetLastError();
      GTEST_SKIP() << "no CUDA device";
    }
    Expect(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  void TearDown() override {
    if (stream_ != nullptr) Expect(cudaStreamDestroy(stream_));
  }

  std::unique_ptr<DeviceSampler> Make(int num_slots, int64_t vocab_size, int max_rows) {
    auto made = DeviceSampler::Create({num_slots, vocab_size, max_rows, kMaxContext}, stream_);
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? std::move(*made) : nullptr;
  }

  // One launch of rows of logits [rows, V], collected at once.
  std::vector<SampledToken> Run(DeviceSampler& sampler, int64_t vocab_size,
                                const std::vector<float>& logits,
                                const std::vector<SampleRow>& rows,
                                const std::vector<uint32_t>& mask = {}) {
    DeviceArray<float> on_device(logits.size());
    on_device.Write(logits);
    std::vector<SampledToken> out(rows.size());
    SampleArgs args;
    args.rows = rows;
    args.mask = mask.empty() ? nullptr : mask.data();
    const DeviceLogits view = {on_device.get(), static_cast<int64_t>(logits.size()) / vocab_size,
                               vocab_size};
    absl::Status status = sampler.Launch(view, args, nullptr);
    EXPECT_TRUE(status.ok()) << status;
    status = sampler.Collect(out);
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  int Compare(uint32_t seed, int64_t vocab_size, int num_rows, int num_cases, Backend backend);

  cudaStream_t stream_ = nullptr;
};

SamplerParams Greedy() {
  SamplerParams params;
  params.temperature = 0.0f;
  return params;
}

// Rows [R, V] with `padding` values after each.
std::vector<float> Padded(const std::vector<float>& logits, int64_t vocab_size, int64_t padding) {
  std::vector<float> padded;
  for (size_t begin = 0; begin < logits.size(); begin += static_cast<size_t>(vocab_size)) {
    const auto row = logits.begin() + static_cast<std::ptrdiff_t>(begin);
    padded.insert(padded.end(), row, row + vocab_size);
    padded.insert(padded.end(), static_cast<size_t>(padding), 1e30f);
  }
  return padded;
}

// Random cases of three steps each, the next one launched before the one before is collected;
// returns how many rows were compared.
int CudaSamplingTest::Compare(uint32_t seed, int64_t vocab_size, int num_rows, int num_cases,
                              Backend backend) {
  constexpr int kSteps = 3;
  std::mt19937 random(seed);
  Sampler host({backend, CpuIsa::kAvx2, backend == Backend::kCpu ? 4 : 1}, vocab_size, num_rows);
  const std::unique_ptr<DeviceSampler> device = Make(num_rows, vocab_size, num_rows);
  if (device == nullptr) return 0;
  const size_t max_values = static_cast<size_t>(num_rows * (vocab_size + 8));
  DeviceArray<float> on_device[2] = {DeviceArray<float>(max_values),
                                     DeviceArray<float>(max_values)};
  DeviceArray<int32_t> previous[2] = {DeviceArray<int32_t>(static_cast<size_t>(num_rows)),
                                      DeviceArray<int32_t>(static_cast<size_t>(num_rows))};
  int compared = 0;
  for (int i = 0; i < num_cases; ++i) {
    Case c = RandomCase(random, vocab_size, num_rows);
    // Rows of one slot, as speculation has them.
    for (SampleRow& row : c.rows) {
      if (random() % 10 == 0) row.slot = static_cast<int32_t>(random() % c.params.size());
    }
    for (SamplerParams& params : c.params) {
      if (random() % 3 == 0) params.temperature = 0.0f;
      if (random() % 8 == 0) params = Greedy();
    }
    if (random() % 8 == 0) {  // all plain
      for (SamplerParams& params : c.params) params = Greedy();
      for (SampleRow& row : c.rows) row.num_top = row.mask_row = row.forced_token = -1;
    }
    for (SampleRow& row : c.rows) {
      if (row.num_top >= 0 && random() % 4 == 0) row.num_top = static_cast<int32_t>(random() % 21);
    }
    for (size_t slot = 0; slot < c.params.size(); ++slot) {
      const int index = static_cast<int>(slot);
      host.Reset(index, c.params[slot], c.prompts[slot], c.outputs[slot]);
      const absl::Status reset =
          device->Reset(index, c.params[slot], c.prompts[slot], c.outputs[slot]);
      EXPECT_TRUE(reset.ok()) << reset;
    }
    const int64_t padding = random() % 2 == 0 ? 0 : static_cast<int64_t>(random() % 8);
    std::vector<std::vector<SampledToken>> expected;
    const auto collect = [&](int step) {
      const std::vector<SampledToken>& want = expected[static_cast<size_t>(step)];
      std::vector<SampledToken> got(want.size());
      const absl::Status status = device->Collect(got);
      EXPECT_TRUE(status.ok()) << status;
      const std::vector<int32_t> tokens = previous[step % 2].Read();
      for (size_t r = 0; r < want.size(); ++r) {
        const SampleRow& row = c.rows[r];
        EXPECT_TRUE(Same(got[r], want[r]))
            << "seed " << seed << " vocabulary " << vocab_size << " case " << i << " step " << step
            << " row " << r << " slot " << row.slot << " num_top " << row.num_top;
        EXPECT_EQ(got[r].finite ? got[r].token >= 0 : got[r].token == -1, true);
        EXPECT_EQ(tokens[static_cast<size_t>(row.logit_row)], got[r].finite ? got[r].token : 0);
        ++compared;
      }
    };
    for (int step = 0; step < kSteps; ++step) {
      if (step > 0) {
        c.logits.clear();
        for (int r = 0; r < num_rows; ++r) AppendRandomRow(random, vocab_size, c.logits);
      }
      for (SampleRow& row : c.rows) row.position += 1;
      on_device[step % 2].Write(Padded(c.logits, vocab_size, padding));
      SampleArgs args;
      args.rows = c.rows;
      std::vector<uint32_t> mask = c.mask;
      args.mask = mask.empty() ? nullptr : mask.data();
      const absl::Status status =
          device->Launch({on_device[step % 2].get(), num_rows, vocab_size + padding}, args,
                         previous[step % 2].get());
      EXPECT_TRUE(status.ok()) << status;
      std::fill(mask.begin(), mask.end(), 0x5a5a5a5au);  // Launch has its own copy
      expected.push_back(host.Run(c.logits, c.rows, c.mask));
      if (step > 0) collect(step - 1);
    }
    collect(kSteps - 1);
    if (::testing::Test::HasFailure()) return compared;
  }
  return compared;
}

TEST_F(CudaSamplingTest, EqualsTheCpuInAHundredThousandCases) {
  struct Run {
    int64_t vocab_size;
    int num_rows;
    int num_cases;
  };
  int compared = 0;
  uint32_t seed = 2024;
  for (const Run& run :
       {Run{1, 16, 60}, Run{2, 16, 200}, Run{3, 16, 200}, Run{31, 16, 200}, Run{64, 16, 200},
        Run{127, 200, 20}, Run{255, 16, 200}, Run{256, 16, 200}, Run{257, 16, 200},
        Run{1000, 16, 200}, Run{2049, 16, 120}, Run{8192, 16, 40}, Run{8197, 16, 60},
        Run{32000, 16, 30}, Run{49152, 150, 2}, Run{151936, 8, 30}, Run{200003, 8, 10}}) {
    compared += Compare(seed++, run.vocab_size, run.num_rows, run.num_cases, Backend::kCpu);
    if (HasFailure()) return;
  }
  EXPECT_GE(compared, 100000);
}

TEST_F(CudaSamplingTest, EqualsTheStrictPath) {
  int compared = 0;
  uint32_t seed = 77;
  for (const int64_t vocab_size : {2, 33, 300, 777}) {
    compared += Compare(seed++, vocab_size, 8, 30, Backend::kRef);
    if (HasFailure()) return;
  }
  EXPECT_EQ(compared, 4 * 8 * 30 * 3);
}

// More tiles than threads, and the largest Z there can be.
TEST_F(CudaSamplingTest, EqualsTheCpuOnTheLargestVocabulary) {
  const int64_t vocab_size = kMaxVocabSize;
  EXPECT_GT(Compare(5, vocab_size, 4, 3, Backend::kCpu), 0);
  const std::vector<float> logits(static_cast<size_t>(vocab_size), -0.75f);
  Sampler host({Backend::kCpu, CpuIsa::kAvx2, 4}, vocab_size, 1);
  const std::unique_ptr<DeviceSampler> device = Make(1, vocab_size, 1);
  ASSERT_NE(device, nullptr);
  for (const float top_p : {1.0f, 0.99999994f, 0.5f, 1e-9f}) {
    for (const int32_t top_k : {0, 1, 700000, 1048575}) {
      SamplerParams params;
      params.top_p = top_p;
      params.top_k = top_k;
      params.seed = ~uint64_t{0};
      host.Reset(0, params);
      ASSERT_TRUE(device->Reset(0, params, {}, {}).ok());
      SampleRow row;
      row.num_top = 20;
      row.position = top_k;
      EXPECT_TRUE(Same(Run(*device, vocab_size, logits, {row})[0], host.RunOne(logits, row)))
          << "top_p " << top_p << " top_k " << top_k;
    }
  }
}

// A vocabulary of equal logits, and random bits so high that the last token kept is drawn: more
// ties than a list holds, cut anywhere.
TEST_F(CudaSamplingTest, CutsLargeGroupsOfTiesExactly) {
  const int64_t vocab_size = 8192;
  SampleRow row;
  uint64_t seed = 0;
  while (SampleBits(seed, 0, row.position, 0) < ~uint64_t{0} / 10000 * 9999) ++seed;
  const std::vector<float> logits(static_cast<size_t>(vocab_size), 2.0f);
  const std::unique_ptr<DeviceSampler> device = Make(1, vocab_size, 1);
  ASSERT_NE(device, nullptr);
  for (const int32_t kept : {1, 2, 511, 512, 513, 1023, 1024, 1025, 4096, 8190, 8191, 8192}) {
    for (const bool by_weight : {false, true}) {
      SamplerParams params;
      params.seed = seed;
      if (by_weight) {
        params.top_p = static_cast<float>(kept) / 8192.0f;  // exact
      } else {
        params.top_k = kept;
      }
      ASSERT_TRUE(device->Reset(0, params, {}, {}).ok());
      EXPECT_EQ(Run(*device, vocab_size, logits, {row})[0].token, kept - 1)
          << (by_weight ? "top-p" : "top-k");
    }
  }
}

// Windows that fill, turn over and forget, for longer than they are; slots reset while launches
// are under way.
TEST_F(CudaSamplingTest, AdvancesAsTheCpuDoesOverLongOutputs) {
  const int64_t vocab_size = 40;
  const int num_slots = 8;
  const int num_steps = 120;
  std::mt19937 random(9);
  Sampler host({Backend::kCpu, CpuIsa::kAvx2, 1}, vocab_size, num_slots);
  const std::unique_ptr<DeviceSampler> device = Make(num_slots, vocab_size, num_slots);
  ASSERT_NE(device, nullptr);
  std::vector<SampleRow> rows(num_slots);
  const auto reset = [&](int slot) {
    SamplerParams params;
    const int32_t windows[] = {0, 1, 2, 7, 33, 64, 301, 1 << 30};
    params.penalty_last_n = windows[slot];
    params.repetition_penalty = 1.3f;
    params.presence_penalty = 0.4f;
    params.frequency_penalty = 0.2f;
    params.temperature = slot % 2 == 0 ? 0.0f : 1.1f;
    params.min_tokens = 60;
    params.banned_until_min = {7, 3, 3, 11, -1, 40};
    params.seed = random();
    std::vector<int32_t> prompt(random() % 50), output(random() % 20);
    for (int32_t& token : prompt) token = static_cast<int32_t>(random() % vocab_size);
    for (int32_t& token : output) token = static_cast<int32_t>(random() % vocab_size);
    host.Reset(slot, params, prompt, output);
    const absl::Status status = device->Reset(slot, params, prompt, output);
    ASSERT_TRUE(status.ok()) << status;
  };
  for (int slot = 0; slot < num_slots; ++slot) reset(slot);
  DeviceArray<float> logits[2] = {DeviceArray<float>(num_slots * vocab_size),
                                  DeviceArray<float>(num_slots * vocab_size)};
  std::vector<std::vector<SampledToken>> expected;
  const auto collect = [&](int step) {
    std::vector<SampledToken> out(rows.size());
    ASSERT_TRUE(device->Collect(out).ok());
    for (size_t r = 0; r < out.size(); ++r) {
      ASSERT_TRUE(Same(out[r], expected[static_cast<size_t>(step)][r]))
          << "step " << step << " slot " << r;
    }
  };
  for (int step = 0; step < num_steps; ++step) {
    if (step == 50) reset(4);
    if (step == 51) {
      for (int slot = 0; slot < num_slots; ++slot) reset(slot);
    }
    std::vector<float> values;
    for (size_t r = 0; r < rows.size(); ++r) {
      rows[r].logit_row = static_cast<int32_t>(r);
      rows[r].slot = static_cast<int32_t>(r);
      rows[r].position = step;
      for (int64_t i = 0; i < vocab_size; ++i) values.push_back(RandomLogit(random, 0));
    }
    logits[step % 2].Write(values);
    SampleArgs args;
    args.rows = rows;
    ASSERT_TRUE(
        device->Launch({logits[step % 2].get(), num_slots, vocab_size}, args, nullptr).ok());
    expected.push_back(host.Run(values, rows));
    if (step > 0) collect(step - 1);
    if (HasFailure()) return;
  }
  collect(num_steps - 1);
}

TEST_F(CudaSamplingTest, SaysWhenNothingIsLeft) {
  const int64_t vocab_size = 300;
  const std::unique_ptr<DeviceSampler> device = Make(4, vocab_size, 4);
  ASSERT_NE(device, nullptr);
  for (const float temperature : {0.0f, 1.0f}) {
    SamplerParams params[4];
    for (SamplerParams& p : params) p.temperature = temperature;
    for (int32_t token = 0; token < 300; ++token) params[1].bias.push_back({token, -kInf});
    params[2].bias = {{17, kInf}};
    params[3].bias = {{5, -kInf}, {299, std::numeric_limits<float>::quiet_NaN()}};
    for (int slot = 0; slot < 4; ++slot) {
      ASSERT_TRUE(device->Reset(slot, params[slot], {}, {}).ok());
    }
    std::vector<SampleRow> rows(4);
    for (int r = 0; r < 4; ++r) rows[static_cast<size_t>(r)].logit_row = r;
    for (int r = 0; r < 4; ++r) rows[static_cast<size_t>(r)].slot = r;
    rows[0].mask_row = 1;
    const std::vector<float> logits(4 * 300, 1.0f);
    const std::vector<uint32_t> mask(2 * 10, 0);
    for (const SampledToken& sampled : Run(*device, vocab_size, logits, rows, mask)) {
      EXPECT_FALSE(sampled.finite);
      EXPECT_EQ(sampled.token, -1);
    }
  }
}

// The graph's rows are rounded up; its kernel reads how many there are, and which, when it runs.
TEST_F(CudaSamplingTest, AGraphServesAnyRowsOfItsBucket) {
  const int64_t vocab_size = 20000;
  const int bucket = 8;
  const std::unique_ptr<DeviceSampler> device = Make(bucket, vocab_size, bucket);
  ASSERT_NE(device, nullptr);
  for (int slot = 0; slot < bucket; ++slot) {
    ASSERT_TRUE(device->Reset(slot, Greedy(), {}, {}).ok());
  }
  DeviceArray<float> logits(static_cast<size_t>(bucket * vocab_size));
  DeviceArray<int32_t> previous(bucket);
  previous.Write(std::vector<int32_t>(bucket, -7));
  const DeviceLogits view = {logits.get(), bucket, vocab_size};
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  Expect(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  ASSERT_TRUE(device->EnqueueGreedy(view, bucket, previous.get()).ok());
  Expect(cudaStreamEndCapture(stream_, &graph));
  Expect(cudaGraphInstantiate(&exec, graph, 0));
  std::mt19937 random(12);
  for (const int num_rows : {8, 1, 3, 8}) {
    std::vector<float> values(static_cast<size_t>(bucket * vocab_size));
    for (float& value : values) value = RandomLogit(random, 1);
    values[static_cast<size_t>(vocab_size) + 9999] = num_rows == 8 ? -kInf : 0.0f;
    logits.Write(values);
    std::vector<SampleRow> rows(static_cast<size_t>(num_rows));
    for (int r = 0; r < num_rows; ++r) {
      rows[static_cast<size_t>(r)].logit_row = (r + 1) % bucket;
      rows[static_cast<size_t>(r)].slot = r;
    }
    SampleArgs args;
    args.rows = rows;
    ASSERT_TRUE(device->AllGreedy(args));
    ASSERT_TRUE(device->Upload(view, args).ok());
    Expect(cudaGraphLaunch(exec, stream_));
    ASSERT_TRUE(device->Download().ok());
    std::vector<SampledToken> out(rows.size());
    ASSERT_TRUE(device->Collect(out).ok());
    const std::vector<int32_t> tokens = previous.Read();
    for (size_t r = 0; r < rows.size(); ++r) {
      const auto row = values.begin() + rows[r].logit_row * vocab_size;
      const bool finite = std::none_of(row, row + vocab_size, [](float l) { return l == -kInf; });
      ASSERT_EQ(out[r].finite, finite) << r;
      const int32_t best = static_cast<int32_t>(std::max_element(row, row + vocab_size) - row);
      EXPECT_EQ(out[r].token, finite ? best : -1) << r;
      EXPECT_EQ(tokens[static_cast<size_t>(rows[r].logit_row)], finite ? best : 0);
    }
  }
  Expect(cudaGraphExecDestroy(exec));
  Expect(cudaGraphDestroy(graph));
}

TEST_F(CudaSamplingTest, RefusesWhatItCannotHold) {
  const std::unique_ptr<DeviceSampler> device = Make(2, 5000, 2);
  ASSERT_NE(device, nullptr);
  EXPECT_FALSE(DeviceSampler::Create({1, kMaxVocabSize + 1, 1, 1}, stream_).ok());
  SamplerParams params;
  for (int32_t token = 0; token < kMaxBiasTokens; ++token) params.bias.push_back({token, 1.0f});
  EXPECT_TRUE(device->Reset(0, params, {}, {}).ok());
  params.bias.push_back({5001, 1.0f});  // names no token
  EXPECT_TRUE(device->Reset(0, params, {}, {}).ok());
  params.bias.back().token = 4000;
  EXPECT_TRUE(absl::IsInvalidArgument(device->Reset(0, params, {}, {})));
  params.bias = {{4, 1.0f}, {4, 1.0f}};
  EXPECT_TRUE(absl::IsInvalidArgument(device->Reset(0, params, {}, {})));
  params = {};
  params.presence_penalty = 1.0f;
  const std::vector<int32_t> tokens(kMaxContext + 1, 1);
  EXPECT_TRUE(absl::IsInvalidArgument(device->Reset(0, params, tokens, {})));
  EXPECT_TRUE(device->Reset(0, {}, tokens, {}).ok());

  DeviceArray<float> logits(5000);
  logits.Write(std::vector<float>(5000, 0.0f));
  const DeviceLogits view = {logits.get(), 1, 5000};
  std::vector<SampleRow> rows(1);
  std::vector<SampledToken> out(1);
  const auto launch = [&] {
    SampleArgs args;
    args.rows = rows;
    return device->Launch(view, args, nullptr);
  };
  EXPECT_TRUE(absl::IsFailedPrecondition(device->Collect(out)));
  rows[0].logit_row = 1;
  EXPECT_TRUE(absl::IsInvalidArgument(launch()));
  rows[0] = {};
  rows[0].num_top = kMaxTopLogprobs + 1;
  EXPECT_TRUE(absl::IsInvalidArgument(launch()));
  rows[0] = {};
  rows[0].mask_row = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(launch()));
  rows[0] = {};
  EXPECT_TRUE(launch().ok());
  EXPECT_TRUE(launch().ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(launch()));
  EXPECT_TRUE(device->Collect(out).ok());
  EXPECT_TRUE(launch().ok());
  EXPECT_TRUE(device->Collect(out).ok());
  EXPECT_TRUE(device->Collect(out).ok());
}

}  // namespace
}  // namespace sluice::kernels::cuda
