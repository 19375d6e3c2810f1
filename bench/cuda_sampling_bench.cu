// Times of the sampler on the GPU, by batch size and parameters, beside the time that reading the
// logits once takes at the copy bandwidth measured in the same process.
//
//   cuda_sampling_bench [V]

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels/cuda/sampling.h"

namespace sluice::kernels::cuda {
namespace {

void Expect(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA error: %s\n", cudaGetErrorString(error));
  std::exit(1);
}
void Expect(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

// The median of `count` runs of `work`, in microseconds.
template <typename Work>
double MedianMicros(cudaStream_t stream, int count, const Work& work) {
  cudaEvent_t begin, end;
  Expect(cudaEventCreate(&begin));
  Expect(cudaEventCreate(&end));
  std::vector<double> micros;
  for (int i = 0; i < count + 3; ++i) {
    Expect(cudaEventRecord(begin, stream));
    work();
    Expect(cudaEventRecord(end, stream));
    Expect(cudaEventSynchronize(end));
    float ms = 0.0f;
    Expect(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) micros.push_back(1e3 * static_cast<double>(ms));
  }
  Expect(cudaEventDestroy(begin));
  Expect(cudaEventDestroy(end));
  std::nth_element(micros.begin(), micros.begin() + count / 2, micros.end());
  return micros[static_cast<size_t>(count / 2)];
}

struct Setting {
  const char* name;
  SamplerParams params;
  int32_t num_top;
};

std::vector<Setting> Settings() {
  std::vector<Setting> all;
  const auto add = [&](const char* name) -> Setting& {
    all.push_back({name, {}, -1});
    return all.back();
  };
  add("greedy").params.temperature = 0.0f;
  add("temperature 1");
  SamplerParams& top_p = add("temperature 0.7, top-p 0.9").params;
  top_p.temperature = 0.7f;
  top_p.top_p = 0.9f;
  SamplerParams& flat = add("temperature 2.5, top-p 0.95").params;
  flat.temperature = 2.5f;
  flat.top_p = 0.95f;
  SamplerParams& top_k = add("top-k 50, top-p 0.95").params;
  top_k.top_k = 50;
  top_k.top_p = 0.95f;
  add("min-p 0.05").params.min_p = 0.05f;
  SamplerParams& penalties = add("repetition 1.1, top-p 0.9").params;
  penalties.repetition_penalty = 1.1f;
  penalties.top_p = 0.9f;
  Setting& logprobs = add("greedy, 5 log probabilities");
  logprobs.params.temperature = 0.0f;
  logprobs.num_top = 5;
  return all;
}

void TimeRows(int num_rows, int64_t vocab_size, cudaStream_t stream) {
  const int64_t num_logits = num_rows * vocab_size;
  float* logits = nullptr;
  Expect(cudaMalloc(reinterpret_cast<void**>(&logits),
                    static_cast<size_t>(num_logits) * sizeof(float)));
  std::vector<float> values(static_cast<size_t>(num_logits));
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 2.5f);
  for (float& value : values) value = normal(random);
  // As models have them: a few tokens stand out.
  for (int row = 0; row < num_rows; ++row) {
    for (int i = 0; i < 20; ++i) {
      values[static_cast<size_t>(row * vocab_size + static_cast<int64_t>(random() % vocab_size))] =
          12.0f + normal(random);
    }
  }
  Expect(cudaMemcpy(logits, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice));

  // Reads and writes half of the logits each: as many bytes as one pass reads.
  float* half = logits + num_logits / 2;
  const double copy = MedianMicros(stream, 50, [&] {
    Expect(cudaMemcpyAsync(half, logits, static_cast<size_t>(num_logits / 2) * sizeof(float),
                           cudaMemcpyDeviceToDevice, stream));
  });
  Expect(cudaMemcpy(logits, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice));
  std::printf("%d rows of %lld: one pass at copy speed %.1f us\n", num_rows,
              static_cast<long long>(vocab_size), copy);

  auto sampler = DeviceSampler::Create({num_rows, vocab_size, num_rows, 4096}, stream);
  Expect(sampler.status());
  std::vector<int32_t> prompt(1000);
  for (int32_t& token : prompt) token = static_cast<int32_t>(random() % vocab_size);
  const DeviceLogits view = {logits, num_rows, vocab_size};
  for (const Setting& setting : Settings()) {
    std::vector<SampleRow> rows(static_cast<size_t>(num_rows));
    for (int row = 0; row < num_rows; ++row) {
      rows[static_cast<size_t>(row)].logit_row = row;
      rows[static_cast<size_t>(row)].slot = row;
      rows[static_cast<size_t>(row)].num_top = setting.num_top;
      SamplerParams params = setting.params;
      params.seed = static_cast<uint64_t>(row);
      Expect((*sampler)->Reset(row, params, prompt, {}));
    }
    SampleArgs args;
    args.rows = rows;
    std::vector<SampledToken> out(rows.size());
    const double whole = MedianMicros(stream, 50, [&] {
      for (SampleRow& row : rows) ++row.position;
      Expect((*sampler)->Launch(view, args, nullptr));
      Expect((*sampler)->Collect(out));
    });
    Expect((*sampler)->Upload(view, args));
    const double kernels = MedianMicros(stream, 50, [&] {
      Expect((*sampler)->AllGreedy(args) ? (*sampler)->EnqueueGreedy(view, num_rows, nullptr)
                                         : (*sampler)->EnqueueGeneral(view, nullptr));
    });
    Expect((*sampler)->Download());
    Expect((*sampler)->Collect(out));
    std::printf("  %-30s kernels %8.1f us   with upload and collect %8.1f us\n", setting.name,
                kernels, whole);
  }
  Expect(cudaFree(logits));
}

}  // namespace
}  // namespace sluice::kernels::cuda

int main(int argc, char** argv) {
  const int64_t vocab_size = argc > 1 ? std::atoll(argv[1]) : 151936;
  cudaStream_t stream = nullptr;
  if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) {
    std::fprintf(stderr, "no CUDA device\n");
    return 1;
  }
  for (const int num_rows : {1, 8, 64, 256}) {
    sluice::kernels::cuda::TimeRows(num_rows, vocab_size, stream);
  }
  return 0;
}
