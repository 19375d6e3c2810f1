// Products of the CPU backend against the limits of the machine: bytes of weights a second for one
// token beside plain reading, measured in the same process, and multiplications a second for tiles
// of tokens. Every benchmark takes the number of threads as its first argument.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <random>
#include <string>
#include <utility>
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

// Random bits. Every byte is below 64, so that a scale, wherever its type keeps it, is below 2.
PackedWeight RandomWeight(DType type, int64_t rows, int64_t cols, Buffer storage) {
  PackedWeight weight = PlaceWeight(Backend::kCpu, type, rows, cols, std::move(storage)).value();
  std::mt19937 random(1);
  const auto block_bytes = static_cast<size_t>(Traits(type).block_bytes);
  std::vector<std::byte> stored(static_cast<size_t>(16 * RowBytes(type, cols)));
  for (std::byte& byte : stored) byte = static_cast<std::byte>(random() & 63);
  if (type == DType::kF32 || type == DType::kBF16) {  // nor is any float so small that it is slow
    for (size_t at = 0; at < stored.size(); at += block_bytes) {
      stored[at + block_bytes - 1] = std::byte{0x3e};
    }
  }
  for (int64_t row = 0; row < rows; row += 16) {
    PackWeightRows(weight, row, 16, stored.data()).IgnoreError();  // the host never fails
  }
  return weight;
}

PackedWeight RandomWeight(DType type, int64_t rows, int64_t cols) {
  const auto bytes = static_cast<size_t>(PackedBytes(Backend::kCpu, type, rows, cols));
  return RandomWeight(type, rows, cols, Buffer::Allocate(bytes).value());
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
    const absl::Status status =
        MatMulAddResidual(exec_, {.linear = &linear_}, input_, batch_,
                          {residual_.data(), batch_.num_tokens, weight_.rows});
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

// Tiles of tokens, weights in cache; items are multiply-adds.
void BM_Gemm(benchmark::State& state, DType type) {
  const int64_t tokens = state.range(1);
  Product product(type, kCacheRows, kCols, tokens, static_cast<int>(state.range(0)));
  for (auto _ : state) product.Run();
  state.SetItemsProcessed(state.iterations() * kCacheRows * kCols * tokens);
}

// What a loader does to every weight: bytes of a file a second.
void BM_Pack(benchmark::State& state, DType type) {
  PackedWeight weight = RandomWeight(type, kCacheRows, kCols);
  const int64_t bytes = kCacheRows * RowBytes(type, kCols);
  const std::vector<std::byte> stored(static_cast<size_t>(bytes));
  for (auto _ : state) PackWeightRows(weight, 0, kCacheRows, stored.data()).IgnoreError();
  state.SetBytesProcessed(state.iterations() * bytes);
}

void RegisterTypes() {
  constexpr DType kTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,  DType::kQ4_0,
                              DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ2_K,  DType::kQ3_K,
                              DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kIQ4_NL};
  const auto name = [](const char* what, DType type) {
    return std::string(what) + "/" + std::string(Name(type));
  };
  for (DType type : kTypes) {
    benchmark::RegisterBenchmark(name("BM_Gemv", type).c_str(), BM_Gemv, type)
        ->Arg(1)
        ->Arg(2)
        ->UseRealTime();
  }
  for (DType type : kTypes) {
    benchmark::RegisterBenchmark(name("BM_Gemm", type).c_str(), BM_Gemm, type)
        ->ArgsProduct({{1, 2}, {1, 8, 64}})
        ->UseRealTime();
  }
  for (DType type : kTypes) {
    benchmark::RegisterBenchmark(name("BM_Pack", type).c_str(), BM_Pack, type);
  }
}

// Everything linear of one decode step of a model of SmolLM2 135M's sizes, Q4_1 with a Q8_0 head
// and embedding: what attention and sampling are added to. Bytes are those of the weights.
class DecodeStep {
 public:
  static constexpr int64_t kWidth = 576, kFfn = 1536, kLayers = 30, kVocab = 49152, kHeads = 9;
  static constexpr int64_t kKvHeads = 3, kHeadSize = 64;

  explicit DecodeStep(int num_threads)
      : exec_(CpuOptions(num_threads)),
        head_(RandomWeight(DType::kQ8_0, kVocab, kWidth)),
        norm_(kWidth, 1.0f),
        frequencies_(kHeadSize / 2, 0.01f),
        residual_(kWidth),
        q_(kHeads * kHeadSize),
        logits_(kVocab),
        kv_pages_(2 * kKvHeads * kHeadSize * kPageTokens * 2 * 2),
        attention_(Activation::Allocate(Backend::kCpu, 1, kWidth).value()),
        ffn_(Activation::Allocate(Backend::kCpu, 1, kFfn).value()) {
    // One Buffer for all, as Weights has it.
    memory_ = Buffer::Allocate(size_t{96} << 20).value();
    weights_.reserve(7 * kLayers);
    for (int64_t i = 0; i < kLayers; ++i) {
      AddWeight(kHeads * kHeadSize, kWidth);
      AddWeight(kKvHeads * kHeadSize, kWidth);
      AddWeight(kKvHeads * kHeadSize, kWidth);
      AddWeight(kWidth, kHeads * kHeadSize);
      AddWeight(kFfn, kWidth);
      AddWeight(kFfn, kWidth);
      AddWeight(kWidth, kFfn);
    }
    head_linear_.weight = &head_;
    const WorkspaceShape shape{1, 1, 1, 1, kWidth, kHeads, kKvHeads, kHeadSize, kFfn, kVocab};
    const absl::Status status = ReserveWorkspace(exec_, shape);
    if (!status.ok()) std::cerr << status << '\n';
  }

  int64_t bytes() const { return bytes_ + kVocab * RowBytes(DType::kQ8_0, kWidth); }

  absl::Status Run() {
    const Rope rope{RopeStyle::kInterleaved, kHeadSize, frequencies_.data(), 1.0f};
    const Norm norm{.weight = norm_.data(), .epsilon = 1e-5f};
    const MatrixF32 residual{residual_.data(), 1, kWidth};
    const ConstMatrixF32 input{residual_.data(), 1, kWidth};
    BatchView batch;
    batch.num_tokens = batch.num_rows = batch.num_logit_rows = 1;
    batch.tokens = &token_;
    batch.positions = &position_;
    batch.row_begins = batch.page_begins = begins_;
    batch.pages = &page_;
    batch.logit_tokens = &logit_token_;
    const KvLayer kv{DType::kF16,      2,
                     kKvHeads,         kHeadSize,
                     kv_pages_.data(), kv_pages_.data() + kv_pages_.size() / 2};
    absl::Status status = EmbedTokens(exec_, head_, 1.0f, {&rope, 1}, batch, residual);
    for (size_t i = 0; i < linears_.size(); i += 7) {
      const Linear* layer = &linears_[i];
      NormQkvRopeStoreArgs qkv;
      qkv.norm = norm;
      qkv.q = layer;
      qkv.k = layer + 1;
      qkv.v = layer + 2;
      qkv.rope = rope;
      qkv.head_size = kHeadSize;
      status.Update(
          NormQkvRopeStore(exec_, qkv, input, batch, kv, {q_.data(), 1, kHeads * kHeadSize}));
      status.Update(MatMulAddResidual(exec_, {.linear = layer + 3}, attention_, batch, residual));
      const NormGateUpArgs gate_up{norm, layer + 4, layer + 5, GateActivation::kSilu};
      status.Update(NormGateUpSwiglu(exec_, gate_up, input, batch, ffn_));
      status.Update(MatMulAddResidual(exec_, {.linear = layer + 6}, ffn_, batch, residual));
    }
    status.Update(NormLmHead(exec_, {.norm = norm, .head = &head_linear_}, input, batch, 0,
                             {logits_.data(), 1, kVocab}));
    return status;
  }

 private:
  void AddWeight(int64_t rows, int64_t cols) {
    const int64_t bytes = PackedBytes(Backend::kCpu, DType::kQ4_1, rows, cols);
    weights_.push_back(
        RandomWeight(DType::kQ4_1, rows, cols,
                     memory_.Part(static_cast<size_t>(bytes_), static_cast<size_t>(bytes))));
    linears_.emplace_back().weight = &weights_.back();
    bytes_ += bytes;
  }

  Exec exec_;
  Buffer memory_;
  PackedWeight head_;
  Linear head_linear_;
  std::vector<PackedWeight> weights_;  // q, k, v, output, gate, up, down of each layer
  std::vector<Linear> linears_;
  std::vector<float> norm_, frequencies_, residual_, q_, logits_;
  std::vector<std::byte> kv_pages_;
  Activation attention_, ffn_;
  int64_t bytes_ = 0;
  int32_t token_ = 5, position_ = 3, page_ = 1, logit_token_ = 0;
  int32_t begins_[2] = {0, 1};
};

void BM_DecodeStep(benchmark::State& state) {
  DecodeStep step(static_cast<int>(state.range(0)));
  for (auto _ : state) {
    const absl::Status status = step.Run();
    if (!status.ok()) state.SkipWithError(status.ToString().c_str());
  }
  state.SetBytesProcessed(state.iterations() * step.bytes());
}
BENCHMARK(BM_DecodeStep)->Arg(1)->Arg(2)->UseRealTime();

// The barrier alone: sixteen chunks of nothing.
void BM_EmptySection(benchmark::State& state) {
  WorkerPool pool(static_cast<int>(state.range(0)));
  for (auto _ : state) pool.ParallelFor(16, [](int64_t, int) {});
}
BENCHMARK(BM_EmptySection)->Arg(1)->Arg(2)->UseRealTime();

}  // namespace
}  // namespace sluice::kernels

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  sluice::kernels::RegisterTypes();
  benchmark::RunSpecifiedBenchmarks();
}
