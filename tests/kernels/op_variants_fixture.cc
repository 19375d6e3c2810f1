#include "tests/kernels/op_variants_fixture.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "gtest/gtest.h"

namespace sluice::kernels {

std::vector<Exec::Options> Machines() {
  std::vector<Exec::Options> machines;
  const auto best = DetectCpuIsa();
  EXPECT_TRUE(best.ok()) << best.status();
  for (const int num_threads : {1, 2, 3}) {
    machines.push_back({.backend = Backend::kCpu, .num_threads = num_threads});
    if (best.ok() && *best == CpuIsa::kAvx512) {
      machines.push_back(
          {.backend = Backend::kCpu, .num_threads = num_threads, .isa = CpuIsa::kAvx512});
    }
  }
  machines.push_back({.backend = Backend::kRef, .num_threads = 2});
  return machines;
}

std::vector<float> Random(int64_t count, uint32_t seed, float spread, float offset) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(offset, spread);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

PackedWeight Pack(Backend backend, int64_t rows, int64_t cols, const std::vector<float>& values) {
  auto weight = AllocateWeight(backend, DType::kF32, rows, cols);
  EXPECT_TRUE(weight.ok()) << weight.status();
  EXPECT_TRUE(
      PackWeightRows(*weight, 0, rows, reinterpret_cast<const std::byte*>(values.data())).ok());
  return std::move(*weight);
}

std::vector<float> Diagonal(int64_t n, float value) {
  std::vector<float> values(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i) values[static_cast<size_t>(i * n + i)] = value;
  return values;
}

Step::Step(const Exec::Options& options, int64_t tokens, int64_t width, int64_t heads,
           int64_t ffn_width)
    : exec(options) {
  WorkspaceShape shape;
  shape.max_tokens = shape.max_logit_rows = tokens;
  shape.max_rows = 1;
  shape.max_pages = tokens / kPageTokens + 2;
  shape.width = width;
  shape.num_heads = shape.num_kv_heads = heads;
  shape.head_size = width / heads;
  shape.ffn_width = ffn_width;
  shape.vocab_size = width;
  const absl::Status status = ReserveWorkspace(exec, shape);
  EXPECT_TRUE(status.ok()) << status;
  for (int32_t i = 0; i < tokens; ++i) {
    ids.push_back(i % static_cast<int32_t>(width));
    positions.push_back(i + 11);
    logit_tokens.push_back(i);
  }
  for (int32_t i = 0; i < shape.max_pages; ++i) pages.push_back(i + 1);
  row_begins = {0, static_cast<int32_t>(tokens)};
  page_begins = {0, static_cast<int32_t>(pages.size())};
  batch.num_tokens = batch.num_logit_rows = tokens;
  batch.num_rows = 1;
  batch.tokens = ids.data();
  batch.positions = positions.data();
  batch.row_begins = row_begins.data();
  batch.page_begins = page_begins.data();
  batch.pages = pages.data();
  batch.logit_tokens = logit_tokens.data();
}

// A norm's error is some roundings of each value, plus those of the
// mean, which grow with the offset.
Expected NormOf(const Norm& norm, const float* row, int64_t n) {
  Expected want;
  double mean = 0.0;
  double magnitude = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    mean += row[i] / static_cast<double>(n);
    magnitude = std::max<double>(magnitude, std::abs(row[i]));
  }
  if (norm.kind == NormKind::kRms) mean = magnitude = 0.0;
  double squares = 0.0;
  for (int64_t i = 0; i < n; ++i) squares += (row[i] - mean) * (row[i] - mean);
  const double root = std::sqrt(squares / static_cast<double>(n) + norm.epsilon);
  for (int64_t i = 0; i < n; ++i) {
    const double value = (row[i] - mean) / root * norm.weight[i];
    const double bias = norm.bias != nullptr ? norm.bias[i] : 0.0;
    want.values.push_back(value + bias);
    want.bounds.push_back(kUlp * (4.0 * magnitude / root * std::abs(norm.weight[i]) +
                                  8.0 * std::abs(value) + std::abs(bias)));
  }
  return want;
}

}  // namespace sluice::kernels
