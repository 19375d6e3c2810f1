// Times of the products on the GPU, in a CUDA graph of dependent launches over so many copies of
// each weight that none stays in L2, beside the copy bandwidth and the rate of cuBLAS (where it is
// installed) measured in the same process. The last line is JSON.
//
//   cuda_linear_bench [model ...]            of 7b, 7b-q4km, 0.5b, 135m; all
//   cuda_linear_bench sweep [model ...]      every way to spread products of few tokens

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bench/device_rates.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/linear_row.h"

namespace sluice::kernels::cuda {
namespace {

constexpr int kMostTokens = 2048;
constexpr int kTokenCounts[] = {1, 8, 64, 256, 2048};
constexpr double kColdBytes = 160e6;  // three times an L2

void Expect(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA error: %s\n", cudaGetErrorString(error));
  std::exit(1);
}
void Expect(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  std::exit(1);
}

// Quants, scales and half-precision weights alike: random bits whose halves are below one.
__global__ void fill_random(uint32_t* words, int64_t count, uint32_t mask) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    uint64_t x = static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    words[i] = static_cast<uint32_t>((x ^ x >> 27) >> 16) & mask;
  }
}

template <typename T>
T* Allocate(int64_t bytes, uint32_t mask) {
  void* memory = nullptr;
  Expect(cudaMalloc(&memory, static_cast<size_t>(bytes)));
  fill_random<<<1024, 256>>>(static_cast<uint32_t*>(memory), bytes / 4, mask);
  Expect(cudaGetLastError());
  return static_cast<T*>(memory);
}

// The time of one of `launches` calls, in microseconds: the best of five replays of their graph.
template <typename Work>
double GraphMicros(cudaStream_t stream, int launches, const Work& work) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  work(0);
  Expect(cudaStreamSynchronize(stream));
  Expect(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < launches; ++i) work(i);
  Expect(cudaStreamEndCapture(stream, &graph));
  Expect(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  Expect(cudaEventCreate(&begin));
  Expect(cudaEventCreate(&end));
  float best = 1e9f;
  for (int i = 0; i < 6; ++i) {
    Expect(cudaEventRecord(begin, stream));
    Expect(cudaGraphLaunch(exec, stream));
    Expect(cudaEventRecord(end, stream));
    Expect(cudaEventSynchronize(end));
    float ms = 0.0f;
    Expect(cudaEventElapsedTime(&ms, begin, end));
    if (i > 0) best = std::min(best, ms);
  }
  Expect(cudaEventDestroy(begin));
  Expect(cudaEventDestroy(end));
  Expect(cudaGraphExecDestroy(exec));
  Expect(cudaGraphDestroy(graph));
  return 1e3 * static_cast<double>(best) / launches;
}

// ---- the products

struct Product {
  const char* model;
  const char* name;
  DType types[kMaxTasks];
  int64_t rows[kMaxTasks];
  int64_t cols;
  bool gated;
  int layers;  // launches of a step
};

constexpr DType kBf = DType::kBF16;
constexpr DType kQ4 = DType::kQ4_K;
constexpr DType kQ6 = DType::kQ6_K;
constexpr Product kProducts[] = {
    {"7b", "qkv", {kBf, kBf, kBf}, {3584, 512, 512}, 3584, false, 28},
    {"7b", "o", {kBf}, {3584}, 3584, false, 28},
    {"7b", "gate up", {kBf, kBf}, {18944, 18944}, 3584, true, 28},
    {"7b", "down", {kBf}, {3584}, 18944, false, 28},
    {"7b", "head", {kBf}, {152064}, 3584, false, 1},
    {"7b-q4km", "qkv", {kQ4, kQ4, kQ6}, {3584, 512, 512}, 3584, false, 28},
    {"7b-q4km", "o", {kQ4}, {3584}, 3584, false, 28},
    {"7b-q4km", "gate up", {kQ4, kQ4}, {18944, 18944}, 3584, true, 28},
    {"7b-q4km", "down", {kQ6}, {3584}, 18944, false, 14},
    {"7b-q4km", "down 4", {kQ4}, {3584}, 18944, false, 14},
    {"7b-q4km", "head", {kQ6}, {152064}, 3584, false, 1},
    {"0.5b", "qkv", {DType::kQ5_0, DType::kQ5_0, DType::kQ8_0}, {896, 128, 128}, 896, false, 24},
    {"0.5b", "o", {DType::kQ5_0}, {896}, 896, false, 24},
    {"0.5b", "gate up", {DType::kQ5_0, DType::kQ5_0}, {4864, 4864}, 896, true, 24},
    {"0.5b", "down", {DType::kQ6_K}, {896}, 4864, false, 12},
    {"0.5b", "down 4", {DType::kQ4_K}, {896}, 4864, false, 12},
    {"0.5b", "head", {DType::kQ8_0}, {151936}, 896, false, 1},
    {"135m", "qkv", {DType::kQ4_1, DType::kQ4_1, DType::kQ4_1}, {576, 192, 192}, 576, false, 30},
    {"135m", "o", {DType::kQ4_1}, {576}, 576, false, 30},
    {"135m", "gate up", {DType::kQ4_1, DType::kQ4_1}, {1536, 1536}, 576, true, 30},
    {"135m", "down", {DType::kQ4_1}, {576}, 1536, false, 30},
    {"135m", "head", {DType::kQ4_1}, {49152}, 576, false, 1},
};

struct Bench {
  cudaStream_t stream;
  LinearDevice device;
  OperandRows rows;
  float* values;  // one row in f32
  float* out;
};

// Microseconds of one launch of the product.
double Run(const Bench& bench, const Product& product, int num_tokens,
           std::optional<LinearPath> path, std::string& described, bool sweep = false) {
  std::vector<PackedLayout> layouts;
  int64_t bytes = 0;
  for (int i = 0; i < kMaxTasks && product.rows[i] > 0; ++i) {
    layouts.push_back(PackedLayout::Of(product.types[i], product.rows[i], product.cols));
    bytes += (layouts.back().bytes + 255) / 256 * 256;
  }
  const int copies = 1 + static_cast<int>(kColdBytes / static_cast<double>(bytes));
  static std::byte* memory = nullptr;
  static int64_t memory_bytes = 0;
  if (copies * bytes > memory_bytes) {
    Expect(cudaFree(memory));
    memory_bytes = copies * bytes;
    memory = Allocate<std::byte>(memory_bytes, 0xbbffbbffu);
  }
  const auto args_of = [&](int turn) {
    LinearArgs args;
    args.num_tokens = num_tokens;
    args.input = bench.rows;
    args.input.units = layouts[0].units;
    args.input.groups = OperandGroups(num_tokens);
    args.gated = product.gated && (num_tokens > 1 || path.has_value()) && bench.device.has_wgmma &&
                 path != LinearPath::kSlices;
    const std::string_view name = product.name;
    args.add_to_out = name == "o" || name.substr(0, 4) == "down";  // to the residual
    std::byte* storage = memory + turn % copies * bytes;
    int64_t width = 0;
    for (const PackedLayout& layout : layouts) width += layout.rows;
    float* out = bench.out;
    for (const PackedLayout& layout : layouts) {
      LinearTask& task = args.tasks[args.num_tasks++];
      task.weight = ViewOf(layout, storage);
      task.weight.row_factors = nullptr;
      task.out = out;
      task.out_stride = static_cast<int32_t>(width);
      out += layout.rows;
      storage += (layout.bytes + 255) / 256 * 256;
    }
    return args;
  };
  described = Describe(ConfigureLinear(args_of(0), bench.device, path));
  const int launches = std::max(copies, num_tokens >= 256 ? 8 : 24);
  if (sweep) {
    std::vector<LinearChoice> choices = LinearChoices(args_of(0), bench.device.multiprocessors);
    std::sort(choices.begin(), choices.end(),
              [](const LinearChoice& a, const LinearChoice& b) { return a.nanos < b.nanos; });
    choices.resize(std::min<size_t>(choices.size(), 24));
    for (const LinearChoice& choice : choices) {
      const double micros = GraphMicros(bench.stream, launches, [&](int turn) {
        Expect(LaunchLinearAs(args_of(turn), choice.config, bench.device, bench.stream));
      });
      std::printf("%-5s %-8s M %4d %9.2f us, thought %9.2f  %s\n", product.model, product.name,
                  num_tokens, micros, choice.nanos / 1e3, Describe(choice.config).c_str());
    }
    return 0.0;
  }
  return GraphMicros(bench.stream, launches, [&](int turn) {
    const LinearArgs args = args_of(turn);
    if (num_tokens > 1 || path.has_value()) {
      Expect(LaunchLinear(args, bench.device, bench.stream, path));
      return;
    }
    LinearRowArgs row;
    std::copy(std::begin(args.tasks), std::end(args.tasks), std::begin(row.tasks));
    row.num_tasks = args.num_tasks;
    row.units = args.input.units;
    row.norm.source = bench.values;
    row.norm.num_rows = 1;
    row.norm.cols = static_cast<int32_t>(product.cols);
    row.norm.out = args.input;
    Expect(LaunchLinearRow(row, bench.stream));
  });
}

double BytesOf(const Product& product) {
  double bytes = 0.0;
  for (int i = 0; i < kMaxTasks && product.rows[i] > 0; ++i) {
    bytes += static_cast<double>(
        PackedLayout::Of(product.types[i], product.rows[i], product.cols).bytes);
  }
  return bytes;
}

// Measures, prints and adds to `json`. The microseconds of one launch.
double Report(const Bench& bench, const Product& product, int num_tokens, std::string& json) {
  const double bytes = BytesOf(product);
  double flops = 0.0;
  for (const int64_t rows : product.rows) {
    flops += 2.0 * num_tokens * static_cast<double>(rows * product.cols);
  }
  std::string described;
  const double micros = Run(bench, product, num_tokens, std::nullopt, described);
  std::printf("%-5s %-8s M %4d %9.2f us %6.0f GB/s %6.1f TFLOP/s", product.model, product.name,
              num_tokens, micros, bytes / micros / 1e3, flops / micros / 1e6);
  // The ways not taken.
  if (num_tokens == 1) {
    std::string other;
    std::printf("  (stream %.1f us)", Run(bench, product, 1, LinearPath::kStream, other));
  }
  if (num_tokens >= 256) {
    std::printf("  (");
    for (const LinearPath path :
         {LinearPath::kStream, LinearPath::kTiles128, LinearPath::kTiles256}) {
      std::string other;
      std::printf(" %.1f", Run(bench, product, num_tokens, path, other));
    }
    std::printf(" us)");
  }
  std::printf("  %s\n", num_tokens == 1 ? "linear_row" : described.c_str());
  json += std::string(json.back() == '[' ? "" : ",") + "{\"model\":\"" + product.model +
          "\",\"product\":\"" + product.name + "\",\"tokens\":" + std::to_string(num_tokens) +
          ",\"us\":" + std::to_string(micros) +
          ",\"gb_s\":" + std::to_string(bytes / micros / 1e3) +
          ",\"tflop_s\":" + std::to_string(flops / micros / 1e6) + "}";
  return micros;
}

Bench MakeBench() {
  Bench bench;
  const auto device = FindLinearDevice();
  Expect(device.status());
  bench.device = *device;
  Expect(cudaStreamCreateWithFlags(&bench.stream, cudaStreamNonBlocking));
  bench.rows.x = Allocate<uint4>(OperandBytes(kMostTokens, 18944), 0xbbffbbffu);
  bench.rows.factors = Allocate<float>(kMostTokens * 4, 0x3f800000u);
  bench.values = Allocate<float>(18944 * 4, 0x3fffffffu);
  bench.out = Allocate<float>(int64_t{kMostTokens} * 152064 * 4, 0);
  return bench;
}

int Main(std::vector<std::string> models) {
  const bool sweep = !models.empty() && models[0] == "sweep";
  if (sweep) models.erase(models.begin());
  if (models.empty()) models = {"7b", "7b-q4km", "0.5b", "135m"};
  const Bench bench = MakeBench();
  const double copy_rate = ::sluice::bench::CopyBandwidth(0) / 1e9;  // GB/s
  const double gemm_rate = ::sluice::bench::GemmRate(0) / 1e12;      // TFLOP/s
  const std::string device = ::sluice::bench::DeviceName(0);
  std::printf("%s: copy %.0f GB/s, cuBLAS f16 %.0f TFLOP/s\n", device.c_str(), copy_rate,
              gemm_rate);
  std::string json = "{\"device\":\"" + device + "\",\"copy_gb_s\":" + std::to_string(copy_rate) +
                     ",\"gemm_tflop_s\":" + std::to_string(gemm_rate) + ",\"products\":[";
  for (const std::string& model : models) {
    for (const int num_tokens : kTokenCounts) {
      double step = 0.0;
      double step_bytes = 0.0;
      for (const Product& product : kProducts) {
        // Prompts want one row of logits.
        const bool is_head = std::strcmp(product.name, "head") == 0;
        if (product.model != model || (is_head && num_tokens > 256)) continue;
        if (!sweep) {
          step += Report(bench, product, num_tokens, json) * product.layers;
          step_bytes += BytesOf(product) * product.layers;
        } else if (num_tokens == 8 || num_tokens == 64) {
          std::string described;
          Run(bench, product, num_tokens, std::nullopt, described, /*sweep=*/true);
        }
      }
      if (sweep) continue;
      std::printf("%-5s whole step M %4d %9.3f ms, floor of memory %.3f ms\n", model.c_str(),
                  num_tokens, step / 1e3, step_bytes / copy_rate / 1e6);
    }
  }
  std::printf("%s]}\n", json.c_str());
  return 0;
}

}  // namespace
}  // namespace sluice::kernels::cuda

int main(int argc, char** argv) { return sluice::kernels::cuda::Main({argv + 1, argv + argc}); }
