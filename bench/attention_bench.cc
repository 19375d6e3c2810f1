// Paged attention of the CPU backend beside what the same threads read from memory: decode steps at
// several contexts (bytes of K and V a second) and prefill chunks (multiply-adds a second).
//
//   attention_bench --benchmark_filter=Decode

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bench/machine.h"
#include "benchmark/benchmark.h"
#include "kernels/ops.h"

namespace sluice::kernels {
namespace {

// The heads of SmolLM2 135M (30 layers) and of a 7B llama with grouped queries (32 layers).
struct Shape {
  const char* name;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_size;
  int64_t num_layers;
};
constexpr Shape kShapes[] = {{"9/3x64", 9, 3, 64, 30}, {"32/8x128", 32, 8, 128, 32}};

// A cache as large as a model's: each layer in turn, so that what is read comes from memory as in a
// real step and not from a cache warmed by the last call.
class Model {
 public:
  Model(const Shape& shape, int num_threads, int64_t count, int64_t context)
      : shape_(shape), count_(count) {
    Exec::Options options;
    options.isa = DetectCpuIsa().value_or(CpuIsa::kAvx2);
    options.num_threads = num_threads;
    exec_ = std::make_unique<Exec>(options);
    const int64_t num_pages = (context + kPageTokens - 1) / kPageTokens;
    const int64_t half =
        KvPageBytes(DType::kF16, shape.num_kv_heads, shape.head_size) / 2 * (num_pages + 1);
    cache_ = Buffer::Allocate(static_cast<size_t>(2 * half * shape.num_layers)).value();
    // Halves near 0.0625, so that no score is special; also makes every page resident.
    std::memset(cache_.bytes(), 0x2C, cache_.size());
    for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
      KvLayer kv;
      kv.num_pages = num_pages + 1;
      kv.num_kv_heads = shape.num_kv_heads;
      kv.head_size = shape.head_size;
      kv.k = cache_.bytes() + 2 * layer * half;
      kv.v = kv.k + half;
      layers_.push_back(kv);
    }
    for (int64_t i = 0; i < num_pages; ++i) pages_.push_back(static_cast<int32_t>(i + 1));
    page_begins_ = {0, static_cast<int32_t>(num_pages)};
    row_begins_ = {0, static_cast<int32_t>(count)};
    for (int64_t i = context - count; i < context; ++i) {
      positions_.push_back(static_cast<int32_t>(i));
    }
    const int64_t cols = shape.num_heads * shape.head_size;
    q_.assign(static_cast<size_t>(count * cols), 0.25f);
    out_ = Activation::Allocate(Backend::kCpu, count, cols).value();
    WorkspaceShape workspace;
    workspace.max_tokens = count;
    workspace.max_logit_rows = workspace.max_rows = 1;
    workspace.max_pages = num_pages;
    workspace.width = cols;
    workspace.num_heads = shape.num_heads;
    workspace.num_kv_heads = shape.num_kv_heads;
    workspace.head_size = shape.head_size;
    workspace.ffn_width = workspace.vocab_size = 32;
    const absl::Status reserved = ReserveWorkspace(*exec_, workspace);
    if (!reserved.ok()) std::fprintf(stderr, "%s\n", reserved.ToString().c_str());
  }

  // Attention of all layers, as one step does it.
  bool Step() {
    BatchView batch;
    batch.num_tokens = count_;
    batch.num_rows = 1;
    batch.positions = positions_.data();
    batch.row_begins = row_begins_.data();
    batch.page_begins = page_begins_.data();
    batch.pages = pages_.data();
    const ConstMatrixF32 q = {q_.data(), count_, shape_.num_heads * shape_.head_size};
    const PagedAttentionArgs args = {.scale =
                                         1.0f / std::sqrt(static_cast<float>(shape_.head_size))};
    bool ok = true;
    for (const KvLayer& layer : layers_) {
      ok &= PagedAttention(*exec_, args, q, batch, layer, out_).ok();
    }
    return ok;
  }

  std::string Describe() const { return exec_->Describe(); }

 private:
  Shape shape_;
  int64_t count_;
  std::unique_ptr<Exec> exec_;
  Buffer cache_;
  std::vector<KvLayer> layers_;
  std::vector<int32_t> pages_, page_begins_, row_begins_, positions_;
  std::vector<float> q_;
  Activation out_;
};

void Decode(benchmark::State& state) {
  const Shape& shape = kShapes[state.range(0)];
  const int64_t context = state.range(1);
  Model model(shape, static_cast<int>(state.range(2)), 1, context);
  for (auto _ : state) {
    if (!model.Step()) state.SkipWithError("attention failed");
  }
  const double kv_bytes = static_cast<double>(2 * context * shape.num_kv_heads * shape.head_size *
                                              2 * shape.num_layers);
  state.counters["KV/s"] = benchmark::Counter(
      kv_bytes, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
  state.SetLabel(std::string(shape.name) + " " + model.Describe());
}

void Prefill(benchmark::State& state) {
  const Shape& shape = kShapes[state.range(0)];
  const int64_t context = state.range(1);
  const int64_t count = std::min<int64_t>(context, 512);
  Model model(shape, static_cast<int>(state.range(2)), count, context);
  for (auto _ : state) {
    if (!model.Step()) state.SkipWithError("attention failed");
  }
  const double keys = static_cast<double>(count) *
                      (static_cast<double>(context) - static_cast<double>(count - 1) / 2.0);
  const double products =
      keys * static_cast<double>(2 * shape.num_heads * shape.head_size * shape.num_layers);
  state.counters["MAC/s"] = benchmark::Counter(
      products, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
  state.SetLabel(std::string(shape.name) + " last " + std::to_string(count) + " tokens, " +
                 model.Describe());
}

BENCHMARK(Decode)
    ->ArgsProduct({{0, 1}, {512, 4096}, {1, 2}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(Prefill)
    ->ArgsProduct({{0, 1}, {512, 4096}, {1, 2}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace sluice::kernels

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const sluice::bench::BusyMeter meter;
  for (const int num_threads : {1, 2}) {
    std::printf("%s: %d reading together take %.1f GB/s from memory\n",
                sluice::bench::MachineName().c_str(), num_threads,
                sluice::bench::ReadBandwidth(num_threads) * 1e-9);
  }
  benchmark::RunSpecifiedBenchmarks();
  const double others = meter.OthersShare();
  std::printf("others used %.1f %% of the machine%s\n", others * 100.0,
              others > sluice::bench::kBusyLimit ? ": not worth recording" : "");
  return 0;
}
