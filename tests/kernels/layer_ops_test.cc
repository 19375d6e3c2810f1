// Every op on the device of this binary against kernels/ref, with odd shapes, every type of weight
// and the variants of all architectures, for steps of 1, 2, 5, 17 and 64 tokens; and against itself
// bit for bit: a sequence alone and in a batch, watched by an observer or not.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/ops.h"
#include "tests/kernels/device_layer.h"
#include "tests/testing/test_device.h"

namespace sluice::kernels {
namespace {

// Of a row's norm, or of the rows' mean one where that is larger: few columns may cancel. f16
// operands of a GPU round each value by 2^-12; the chains behind add to that. The CPU's int16
// blocks round by 2^-16 of a block's largest value.
double Tolerance(const std::string& op) {
  const double tolerance = testing::OnCuda() ? 2e-3 : 3e-4;
  // Behind two products and a softmax.
  return op == "attention_output" || op == "ffn_down" || op == "attention" ? 3 * tolerance
                                                                           : tolerance;
}

const std::vector<std::vector<LayerRow>>& Steps() {
  static const std::vector<std::vector<LayerRow>> steps = [] {
    std::vector<std::vector<LayerRow>> made = {
        {{0, 0, 1}},
        {{0, 255, 1}},
        {{0, 16, 1}, {1, 31, 1}},
        {{0, 70, 1}, {1, 0, 3}, {2, 15, 1}},
        {{0, 257, 17}},
        {{0, 0, 64}},
    };
    std::vector<LayerRow> decodes;  // 64 sequences of all lengths
    for (int i = 0; i < 64; ++i) {
      decodes.push_back({i, i % 9 == 0 ? i * 37 % 300 : i * 5 % 40, 1});
    }
    made.push_back(decodes);
    return made;
  }();
  return steps;
}

std::string Describe(const std::vector<LayerRow>& rows) {
  std::string text = "rows";
  for (size_t i = 0; i < std::min<size_t>(rows.size(), 4); ++i) {
    text += " " + std::to_string(rows[i].before) + "+" + std::to_string(rows[i].count);
  }
  return rows.size() > 4 ? text + " and more" : text;
}

Exec::Options OnDevice() {
  Exec::Options options;
  options.backend = testing::TestBackend();
  options.num_threads = 2;
  const auto isa = DetectCpuIsa();
  if (isa.ok()) options.isa = *isa;
  return options;
}

// The error of each row against its norm; names the worst element.
void ExpectClose(const std::string& op, const std::vector<float>& got,
                 const std::vector<float>& want, int64_t num_rows) {
  ASSERT_EQ(got.size(), want.size()) << op;
  const int64_t cols = static_cast<int64_t>(want.size()) / num_rows;
  double all = 0.0;
  for (const float value : want) all += double{value} * value;
  for (int64_t row = 0; row < num_rows; ++row) {
    double difference = 0.0, norm = 0.0, worst = -1.0;
    int64_t at = 0;
    for (int64_t i = 0; i < cols; ++i) {
      const auto index = static_cast<size_t>(row * cols + i);
      double error = std::abs(double{got[index]} - want[index]);
      if (std::isnan(error)) error = HUGE_VAL;
      difference += error * error;
      norm += double{want[index]} * want[index];
      if (error > worst) {
        worst = error;
        at = i;
      }
    }
    const auto index = static_cast<size_t>(row * cols + at);
    const double scale = std::sqrt(std::max(norm, all / static_cast<double>(num_rows)));
    EXPECT_LE(std::sqrt(difference), Tolerance(op) * scale)
        << op << " token " << row << " column " << at << ": got " << got[index] << ", expected "
        << want[index];
  }
}

void ExpectSameBits(const std::string& op, const std::vector<float>& got,
                    const std::vector<float>& want) {
  ASSERT_EQ(got.size(), want.size()) << op;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::memcmp(&got[i], &want[i], sizeof(float)), 0)
        << op << " value " << i << ": " << got[i] << " and " << want[i];
  }
}

void ExpectLayer(const LayerSpec& spec) {
  SCOPED_TRACE(spec.Describe());
  const LayerWeightsOnHost weights(spec);
  for (const std::vector<LayerRow>& rows : Steps()) {
    SCOPED_TRACE(Describe(rows));
    int64_t num_tokens = 0;
    for (const LayerRow& row : rows) num_tokens += row.count;
    const int num_threads =
        static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 2u, 8u));
    const LayerOutcomes want =
        RunLayer(weights, {.backend = Backend::kRef, .num_threads = num_threads}, rows,
                 /*observe=*/true);
    const LayerOutcomes watched = RunLayer(weights, OnDevice(), rows, /*observe=*/true);
    ASSERT_EQ(want.size(), 9u);
    for (const auto& [op, values] : want) ExpectClose(op, watched.at(op), values, num_tokens);
    for (const auto& [op, values] : RunLayer(weights, OnDevice(), rows, /*observe=*/false)) {
      ExpectSameBits(op + " unobserved", values, watched.at(op));
    }
    if (rows.size() < 2) continue;
    int64_t first = 0;  // token of the row
    for (size_t i = 0; i < std::min<size_t>(rows.size(), 3); ++i) {
      for (const auto& [op, values] : RunLayer(weights, OnDevice(), {rows[i]}, false)) {
        const int64_t cols = static_cast<int64_t>(values.size()) / rows[i].count;
        const auto begin = watched.at(op).begin() + first * cols;
        ExpectSameBits(op + " alone", values, {begin, begin + rows[i].count * cols});
      }
      first += rows[i].count;
    }
  }
}

class LayerOpsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = testing::WhyNoDevice(); !why.empty()) GTEST_SKIP() << why;
  }
};

TEST_F(LayerOpsTest, EveryType) {
  for (const DType type : kAllTypes) {
    LayerSpec spec;
    spec.type = type;
    spec.width = 256;
    spec.head_size = 64;
    spec.ffn_width = 512;
    ExpectLayer(spec);
  }
}

TEST_F(LayerOpsTest, OddShapes) {
  struct Case {
    DType type;
    int64_t width, heads, kv_heads, head_size, ffn_width, vocab_size;
  };
  for (const Case& c :
       {Case{DType::kF32, 33, 3, 1, 16, 65, 41}, Case{DType::kF16, 100, 3, 3, 64, 130, 259},
        Case{DType::kBF16, 72, 14, 2, 64, 24, 19}, Case{DType::kQ8_0, 96, 4, 1, 80, 160, 77},
        Case{DType::kQ4_1, 576, 9, 3, 64, 96, 515}, Case{DType::kQ4_K, 256, 2, 2, 128, 256, 17},
        Case{DType::kQ4_0, 64, 2, 1, 64, 4160, 17}}) {
    LayerSpec spec;
    spec.type = c.type;
    spec.width = c.width;
    spec.num_heads = c.heads;
    spec.num_kv_heads = c.kv_heads;
    spec.head_size = c.head_size;
    spec.ffn_width = c.ffn_width;
    spec.vocab_size = c.vocab_size;
    spec.kv_type = DType::kF16;
    ExpectLayer(spec);
  }
}

TEST_F(LayerOpsTest, VariantsOfArchitectures) {
  LayerSpec spec;
  spec.type = DType::kF16;
  spec.head_size = 64;
  spec.bias = true;
  spec.style = RopeStyle::kInterleaved;
  ExpectLayer(spec);
  spec.head_norm = true;
  spec.post_norm = true;
  spec.softcap = 30.0f;
  spec.window = 40;
  spec.scale = 1.5f;
  spec.activation = GateActivation::kGeluTanh;
  spec.kv_type = DType::kF16;
  ExpectLayer(spec);
  spec = {};
  spec.type = DType::kBF16;
  spec.norm = NormKind::kLayer;
  spec.gate = false;
  spec.bias = true;
  spec.activation = GateActivation::kGeluTanh;
  ExpectLayer(spec);
}

}  // namespace
}  // namespace sluice::kernels
