// Products of the CPU backend against the limits of the machine: bytes of weights a second for one
// token beside plain reading, measured in the same process, and multiplications a second for tiles
// of tokens. Every benchmark takes the number of threads as its first argument.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/cpu/linear.h"
#include "kernels/ops.h"

namespace sluice::kernels {
namespace {

constexpr int64_t kCols = 1536;
constexpr int64_t kMemoryBytes = int64_t{512} << 20;  // far beyond the caches of a core
constexpr int64_t kCacheRows = 576;

Exec::Options CpuOptions(int num_threads) {
  Exec::Options options;
  options.backend = Backend::kCpu;
  options.isa = DetectCpuIsa().value();
  options.num_threads = num_threads;
  return options;
}

// Random bits with scales of ordinary size.
PackedWeight RandomWeight(DType type, int64_t rows, int64_t cols) {
  PackedWeight weight = AllocateWeight(Backend::kCpu, type, rows, cols).value();
  std::mt19937 random(1);
  const DTypeTraits& traits = Traits(type);
  std::vector<std::byte> stored(static_cast<size_t>(16 * RowBytes(type, cols)));
  for (std::byte& byte : stored) byte = static_cast<std::byte>(random() & 63);
  for (size_t at = 0; at < stored.size(); at += static_cast<size_t>(traits.block_bytes)) {
    const uint16_t scale = 0x2000;  // 2^-7 as f16
    const float value = 0.25f;
    if (traits.quantized) std::memcpy(&stored[at], &scale, sizeof(scale));
    if (type == DType::kF32) std::memcpy(&stored[at], &value, sizeof(value));
  }
  for (int64_t row = 0; row < rows; row += 16) PackWeightRows(weight, row, 16, stored.data());
  return weight;
}

// What a step needs around a product of `tokens` rows: y [tokens, rows] += x [tokens, cols] W^T.
class Product {
 public:
  Product(DType type, int64_t rows, int64_t cols, int64_t tokens, int num_threads)
      : exec_(CpuOptions(num_threads)),
        weight_(RandomWeight(type, rows, cols)),
        input_(Activation::Allocate(Backend::kCpu, tokens, cols).value()),
        residual_(static_cast<size_t>(tokens * rows)) {
    linear_.weight = &weight_;
    batch_.num_tokens = tokens;
    WorkspaceShape shape;
    shape.max_tokens = shape.max_logit_rows = shape.max_rows = tokens;
    shape.max_pages = shape.num_heads = shape.num_kv_heads = shape.ffn_width = 1;
    shape.vocab_size = 1;
    shape.head_size = 64;
    shape.width = rows;
    const absl::Status status = ReserveWorkspace(exec_, shape);
    if (!status.ok()) std::cerr << status << '\n';
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < tokens * cols; ++i) input_.values[i] = normal(random);
    for (int64_t t = 0; t < tokens; ++t) {
      cpu::KernelsFor(exec_).quantize(input_.values + t * cols, cols, input_.quants + t * cols,
                                      input_.scales + t * (cols / 32),
                                      input_.sums + t * (cols / 32));
    }
  }

  void Run() {
    const absl::Status status = MatMulAddResidual(
        exec_, linear_, input_, batch_, {residual_.data(), batch_.num_tokens, weight_.rows});
    if (!status.ok()) std::cerr << status << '\n';
    benchmark::DoNotOptimize(residual_.data());
  }

 private:
  Exec exec_;
  PackedWeight weight_;
  Activation input_;
  std::vector<float> residual_;
  Linear linear_;
  BatchView batch_;
};

// The limit: every worker adds up what it reads.
void BM_PlainRead(benchmark::State& state) {
  WorkerPool pool(static_cast<int>(state.range(0)));
  const Buffer memory = Buffer::Allocate(kMemoryBytes).value();
  std::memset(memory.bytes(), 1, kMemoryBytes);
  constexpr int64_t kChunk = 1 << 16;
  std::vector<uint64_t> sums(64 * 8);
  for (auto _ : state) {
    pool.ParallelFor(kMemoryBytes / kChunk, [&](int64_t chunk, int worker) {
      const uint64_t* words = memory.as<uint64_t>() + chunk * (kChunk / 8);
      uint64_t lanes[16] = {};
      for (int64_t i = 0; i < kChunk / 8; i += 16) {
        for (int j = 0; j < 16; ++j) lanes[j] += words[i + j];
      }
      for (uint64_t lane : lanes) sums[static_cast<size_t>(worker) * 8] += lane;
    });
  }
  benchmark::DoNotOptimize(sums.data());
  state.SetBytesProcessed(state.iterations() * kMemoryBytes);
}
BENCHMARK(BM_PlainRead)->Arg(1)->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);

// One token, weights from memory.
void BM_Gemv(benchmark::State& state, DType type) {
  const int64_t rows = kMemoryBytes / RowBytes(type, kCols) / 16 * 16;
  Product product(type, rows, kCols, 1, static_cast<int>(state.range(0)));
  for (auto _ : state) product.Run();
  state.SetBytesProcessed(state.iterations() * rows * RowBytes(type, kCols));
}
BENCHMARK_CAPTURE(BM_Gemv, F32, DType::kF32)->Arg(1)->Arg(2)->UseRealTime();
BENCHMARK_CAPTURE(BM_Gemv, F16, DType::kF16)->Arg(1)->Arg(2)->UseRealTime();
BENCHMARK_CAPTURE(BM_Gemv, Q8_0, DType::kQ8_0)->Arg(1)->Arg(2)->UseRealTime();
BENCHMARK_CAPTURE(BM_Gemv, Q4_1, DType::kQ4_1)->Arg(1)->Arg(2)->UseRealTime();

// Tiles of tokens, weights in cache; items are multiply-adds.
void BM_Gemm(benchmark::State& state, DType type) {
  const int64_t tokens = state.range(1);
  Product product(type, kCacheRows, kCols, tokens, static_cast<int>(state.range(0)));
  for (auto _ : state) product.Run();
  state.SetItemsProcessed(state.iterations() * kCacheRows * kCols * tokens);
}
BENCHMARK_CAPTURE(BM_Gemm, F32, DType::kF32)->ArgsProduct({{1, 2}, {1, 8, 64}})->UseRealTime();
BENCHMARK_CAPTURE(BM_Gemm, F16, DType::kF16)->ArgsProduct({{1, 2}, {1, 8, 64}})->UseRealTime();
BENCHMARK_CAPTURE(BM_Gemm, Q8_0, DType::kQ8_0)->ArgsProduct({{1, 2}, {1, 8, 64}})->UseRealTime();
BENCHMARK_CAPTURE(BM_Gemm, Q4_1, DType::kQ4_1)->ArgsProduct({{1, 2}, {1, 8, 64}})->UseRealTime();

// The barrier alone: two chunks of nothing.
void BM_EmptySection(benchmark::State& state) {
  WorkerPool pool(static_cast<int>(state.range(0)));
  for (auto _ : state) pool.ParallelFor(16, [](int64_t, int) {});
}
BENCHMARK(BM_EmptySection)->Arg(1)->Arg(2)->UseRealTime();

}  // namespace
}  // namespace sluice::kernels

BENCHMARK_MAIN();
