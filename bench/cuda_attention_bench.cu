// Times of attention on the GPU inside graphs with programmatic launches, beside the time that its
// bytes take at the copy bandwidth measured in the same process and the rate of the tensor cores
// that it reaches. Every launch of a graph has a KV cache of its own, as layers do.
//
//   cuda_attention_bench

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/core/half.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/rows.h"

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

template <typename T>
T* Allocate(size_t count) {
  T* memory = nullptr;
  Expect(cudaMalloc(reinterpret_cast<void**>(&memory), count * sizeof(T)));
  return memory;
}
template <typename T>
T* Upload(const std::vector<T>& values) {
  T* memory = Allocate<T>(std::max<size_t>(1, values.size()));
  Expect(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return memory;
}

// The median of `count` runs of `work` in microseconds.
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

// The same of one of `repeats` launches of a graph.
template <typename Launches>
double GraphMicros(cudaStream_t stream, int repeats, const Launches& launches) {
  launches(0);  // attributes of kernels
  Expect(cudaStreamSynchronize(stream));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  Expect(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < repeats; ++i) launches(i);
  Expect(cudaStreamEndCapture(stream, &graph));
  Expect(cudaGraphInstantiate(&exec, graph, 0));
  const double micros = MedianMicros(stream, 20, [&] { Expect(cudaGraphLaunch(exec, stream)); });
  Expect(cudaGraphExecDestroy(exec));
  Expect(cudaGraphDestroy(graph));
  return micros / repeats;
}

struct Case {
  const char* name;
  int num_heads, num_kv_heads, head_size;
  int rows, before, count;  // rows of `count` tokens after `before`
  int layers;
};

struct Machine {
  cudaStream_t stream = nullptr;
  int num_multiprocessors = 0;
  double copy_bytes_a_micro = 0.0;
  std::string json;
};

std::vector<uint16_t> RandomHalfs(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) {
    value = FloatToHalf(static_cast<float>(random() % 2001) * 1e-3f - 1.0f);
  }
  return values;
}

// One step's arrays on the device.
struct Step {
  AttentionArgs attention;
  RopeStoreArgs rope;
  std::vector<KvLayer> layers;
  std::vector<void*> owned;
  int64_t num_tokens = 0;

  Step(const Case& c, const Machine& machine);
  ~Step() {
    for (void* memory : owned) cudaFree(memory);
  }
  template <typename T>
  T* Keep(T* memory) {
    owned.push_back(memory);
    return memory;
  }
};

Step::Step(const Case& c, const Machine& machine) {
  num_tokens = int64_t{c.rows} * c.count;
  const int row_pages = (c.before + c.count + 15) / 16;
  std::vector<int32_t> row_begins = {0}, positions, token_rows, page_begins = {0}, pages;
  for (int row = 0; row < c.rows; ++row) {
    for (int i = 0; i < c.count; ++i) {
      positions.push_back(c.before + i);
      token_rows.push_back(row);
    }
    for (int i = 0; i < row_pages; ++i) pages.push_back(1 + row * row_pages + i);
    row_begins.push_back(static_cast<int32_t>(positions.size()));
    page_begins.push_back(static_cast<int32_t>(pages.size()));
  }
  std::shuffle(pages.begin(), pages.end(), std::mt19937(7));
  AttentionShape shape;
  shape.num_heads = c.num_heads;
  shape.num_kv_heads = c.num_kv_heads;
  shape.head_size = c.head_size;
  shape.num_multiprocessors = machine.num_multiprocessors;
  shape.max_tokens = num_tokens;
  shape.max_rows = c.rows;
  shape.max_slots = num_tokens * (c.before + c.count + 255) / 256 + num_tokens;
  std::vector<AttentionItem> items(static_cast<size_t>(MaxItems(shape)));
  std::vector<AttentionBlock> blocks(static_cast<size_t>(MaxBlocks(shape)));
  std::vector<int32_t> slots(static_cast<size_t>(num_tokens));
  AttentionPlan plan;
  plan.items = items.data();
  plan.blocks = blocks.data();
  plan.slots = slots.data();
  PlanAttention(shape, row_begins, positions.data(), page_begins.data(), plan);

  const auto width = static_cast<size_t>(c.num_heads) * static_cast<size_t>(c.head_size);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> q(static_cast<size_t>(num_tokens) * width);
  for (float& x : q) x = normal(random);
  attention.q = Keep(Upload(q));
  attention.num_heads = c.num_heads;
  attention.op.scale = 1.0f / std::sqrt(static_cast<float>(c.head_size));
  attention.items = Keep(Upload(items));
  attention.num_items = Keep(Upload(std::vector<int32_t>{plan.num_items}));
  // As a graph's, which do not depend on the context.
  attention.max_parts = plan.num_items == 0 ? 0 : 1 << 20;
  attention.num_multiprocessors = machine.num_multiprocessors;
  attention.blocks = Keep(Upload(blocks));
  attention.num_blocks = plan.num_blocks;
  attention.block_queries = plan.block_queries;
  attention.has_wgmma = FindLinearDevice()->has_wgmma;
  attention.num_tokens = static_cast<int32_t>(num_tokens);
  attention.positions = Keep(Upload(positions));
  attention.pages = Keep(Upload(pages));
  attention.slots = Keep(Upload(slots));
  attention.partials =
      Keep(Allocate<float>(static_cast<size_t>(shape.max_slots * c.num_heads * (c.head_size + 2))));
  attention.values = Keep(Allocate<float>(q.size()));
  attention.out.units = static_cast<int32_t>((width + 63) / 64);
  attention.out.x = Keep(Allocate<uint4>(
      static_cast<size_t>(OperandBytes(num_tokens, static_cast<int64_t>(width))) / 16));
  attention.out.factors = Keep(Allocate<float>(static_cast<size_t>(num_tokens)));

  KvLayer layer;
  layer.num_pages = static_cast<int64_t>(pages.size()) + 1;
  layer.num_kv_heads = c.num_kv_heads;
  layer.head_size = c.head_size;
  const auto count = static_cast<size_t>(layer.num_pages * c.num_kv_heads * c.head_size * 16);
  const std::vector<uint16_t> values = RandomHalfs(count, 1);
  for (int i = 0; i < c.layers; ++i) {
    layer.k = reinterpret_cast<std::byte*>(Keep(Upload(values)));
    layer.v = reinterpret_cast<std::byte*>(Keep(Upload(values)));
    layers.push_back(layer);
  }
  const int all_heads = c.num_heads + 2 * c.num_kv_heads;
  std::vector<float> qkv(static_cast<size_t>(num_tokens * all_heads * c.head_size), 0.5f);
  rope.qkv = Keep(Upload(qkv));
  rope.num_tokens = static_cast<int32_t>(num_tokens);
  rope.num_heads = c.num_heads;
  rope.num_kv_heads = c.num_kv_heads;
  rope.head_size = c.head_size;
  rope.half = c.head_size / 2;
  rope.rotations = Keep(Upload(std::vector<float2>(
      static_cast<size_t>(num_tokens * c.head_size / 2), make_float2(0.6f, 0.8f))));
  rope.positions = attention.positions;
  rope.token_rows = Keep(Upload(token_rows));
  rope.page_begins = Keep(Upload(page_begins));
  rope.pages = attention.pages;
  rope.q_out = const_cast<float*>(attention.q);
}

void Time(const Case& c, Machine& machine) {
  Step step(c, machine);
  const auto attend = [&](int i) {
    step.attention.kv = step.layers[static_cast<size_t>(i) % step.layers.size()];
    Expect(LaunchAttention(step.attention, machine.stream));
  };
  const double attention = GraphMicros(machine.stream, c.layers, attend);
  const double rows = GraphMicros(machine.stream, c.layers, [&](int) {
    Expect(LaunchAttentionRows(step.attention, machine.stream));
  });
  const double both = GraphMicros(machine.stream, c.layers, [&](int i) {
    attend(i);
    Expect(LaunchAttentionRows(step.attention, machine.stream));
  });
  const double rope = GraphMicros(machine.stream, c.layers, [&](int i) {
    step.rope.kv = step.layers[static_cast<size_t>(i) % step.layers.size()];
    Expect(LaunchRopeStore(step.rope, machine.stream));
  });
  // K and V of every row once; scores and outcomes, each in two halves.
  const double kv_bytes = 4.0 * c.rows * (c.before + c.count) * c.num_kv_heads * c.head_size;
  const double limit = kv_bytes / machine.copy_bytes_a_micro;
  double pairs = 0.0;
  for (int i = 0; i < c.count; ++i) pairs += c.before + i + 1;
  const double teraflops = 2 * 4.0 * c.rows * pairs * c.num_heads * c.head_size / attention * 1e-6;
  std::printf(
      "%-34s %9.2f us  (bytes %7.2f us, %5.0f TFLOP/s)  rows %7.2f  both %9.2f  rope %8.2f\n",
      c.name, attention, limit, teraflops, rows, both, rope);
  char line[512];
  std::snprintf(line, sizeof(line),
                "%s{\"case\":\"%s\",\"attention_us\":%.3f,\"rows_us\":%.3f,\"both_us\":%.3f,"
                "\"rope_us\":%.3f,\"bytes_limit_us\":%.3f,\"tflops\":%.1f}",
                machine.json.empty() ? "" : ",", c.name, attention, rows, both, rope, limit,
                teraflops);
  machine.json += line;
}

}  // namespace
}  // namespace sluice::kernels::cuda

int main() {
  using namespace sluice::kernels::cuda;
  Machine machine;
  cudaDeviceProp device;
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    std::fprintf(stderr, "no CUDA device\n");
    return 1;
  }
  Expect(cudaStreamCreateWithFlags(&machine.stream, cudaStreamNonBlocking));
  machine.num_multiprocessors = device.multiProcessorCount;
  const size_t bytes = size_t{1} << 30;
  auto* from = Allocate<char>(bytes);
  auto* to = Allocate<char>(bytes);
  machine.copy_bytes_a_micro =
      2.0 * static_cast<double>(bytes) / MedianMicros(machine.stream, 10, [&] {
        Expect(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, machine.stream));
      });
  Expect(cudaFree(from));
  Expect(cudaFree(to));
  std::printf("%s: copy %.2f TB/s\n", device.name, machine.copy_bytes_a_micro * 1e-6);
  const Case cases[] = {
      {"0.5B b1 context 512", 14, 2, 64, 1, 511, 1, 24},
      {"0.5B b1 context 8192", 14, 2, 64, 1, 8191, 1, 24},
      {"135M b1 context 512", 9, 3, 64, 1, 511, 1, 24},
      {"7B b1 context 512", 28, 4, 128, 1, 511, 1, 24},
      {"0.5B b64 context 256", 14, 2, 64, 64, 255, 1, 24},
      {"135M b64 context 256", 9, 3, 64, 64, 255, 1, 24},
      {"0.5B b256 context 512", 14, 2, 64, 256, 511, 1, 12},
      {"7B b64 context 256", 28, 4, 128, 64, 255, 1, 12},
      {"7B b64 context 2048", 28, 4, 128, 64, 2047, 1, 4},
      {"D80 b64 context 512", 32, 8, 80, 64, 511, 1, 4},
      {"D256 b64 context 512", 8, 4, 256, 64, 511, 1, 4},
      {"0.5B prompt of 128", 14, 2, 64, 1, 0, 128, 12},
      {"0.5B prompt of 2048", 14, 2, 64, 1, 0, 2048, 8},
      {"135M prompt of 2048", 9, 3, 64, 1, 0, 2048, 8},
      {"7B prompt of 2048", 28, 4, 128, 1, 0, 2048, 8},
      {"7B 8 prompts of 256", 28, 4, 128, 8, 0, 256, 8},
      {"7B chunk of 512 after 7680", 28, 4, 128, 1, 7680, 512, 4},
      {"D96 prompt of 2048", 32, 32, 96, 1, 0, 2048, 4},
      {"D256 prompt of 2048", 8, 4, 256, 1, 0, 2048, 4},
  };
  for (const Case& c : cases) Time(c, machine);
  std::printf(
      "{\"bench\":\"cuda_attention\",\"device\":\"%s\",\"copy_tb_s\":%.3f,\"cases\":[%s]}\n",
      device.name, machine.copy_bytes_a_micro * 1e-6, machine.json.c_str());
  return 0;
}
