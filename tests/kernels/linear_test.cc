// The linear ops of the CPU against the strict path, type by type and shape by shape.

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "tests/kernels/linear_fixture.h"

namespace sluice::kernels {
namespace {

constexpr double kEpsilonF32 = 0x1p-24;
constexpr double kEpsilonF16 = 0x1p-11;

// Compares element by element and names the one that is worst against its bound.
void ExpectWithin(const std::string& what, const std::vector<float>& got,
                  const std::vector<float>& want, const std::vector<double>& bounds) {
  ASSERT_EQ(got.size(), want.size()) << what;
  ASSERT_EQ(got.size(), bounds.size()) << what;
  double worst = 0.0;
  size_t worst_index = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    double ratio = std::abs(static_cast<double>(got[i]) - want[i]) / bounds[i];
    if (std::isnan(ratio)) ratio = bounds[i] == 0.0 && got[i] == want[i] ? 0.0 : INFINITY;
    if (ratio > worst) {
      worst = ratio;
      worst_index = i;
    }
  }
  EXPECT_LE(worst, 1.0) << what << ": worst element " << worst_index << " of " << got.size()
                        << ": got " << got[worst_index] << ", want " << want[worst_index]
                        << ", bound " << bounds[worst_index];
}

// Bounds of heads after the optional norm and the rotation: a head is as wrong as its worst value
// may be, a rotation mixes two of them.
std::vector<double> HeadBounds(const LinearSpec& spec, const BoundedProduct& product,
                               const std::vector<float>* norm, bool rotated) {
  const size_t head_size = static_cast<size_t>(spec.head_size);
  std::vector<double> bounds(product.bounds.size());
  for (size_t begin = 0; begin < bounds.size(); begin += head_size) {
    double worst = 0.0;
    double largest = 0.0;
    double squares = 0.0;
    for (size_t i = begin; i < begin + head_size; ++i) {
      worst = std::max(worst, product.bounds[i]);
      largest = std::max(largest, std::abs(product.values[i]));
      squares += product.values[i] * product.values[i];
    }
    if (norm != nullptr) {
      // d(x r) <= d r (1 + sqrt(D)) for r = 1 / rms(x), whatever the direction of the error.
      double most = 0.0;
      for (float weight : *norm) most = std::max<double>(most, std::abs(weight));
      const double inverse =
          1.0 / std::sqrt(squares / static_cast<double>(head_size) + kTestEpsilon);
      worst *= inverse * most * (1.0 + std::sqrt(static_cast<double>(head_size)));
      largest *= inverse * most;
    }
    const double bound = (rotated ? 2.0 : 1.0) * (worst + 8.0 * kEpsilonF32 * largest);
    for (size_t i = begin; i < begin + head_size; ++i) bounds[i] = bound;
  }
  return bounds;
}

void AddStorageError(const LinearSpec& spec, const std::vector<float>& want,
                     std::vector<double>& bounds) {
  if (spec.kv_type != DType::kF16) return;
  // Both sides round to the nearest half: they may land on neighbours.
  for (size_t i = 0; i < bounds.size(); ++i) {
    bounds[i] += 2.0 * kEpsilonF16 * std::abs(want[i]) + 0x1p-24;
  }
}

std::vector<double> GateUpBounds(const LinearInputs& inputs, const std::vector<float>& normed) {
  const BoundedProduct gate = ProductWithBounds(inputs.gate, normed);
  const BoundedProduct up = ProductWithBounds(inputs.up, normed);
  std::vector<double> bounds;
  for (size_t i = 0; i < gate.values.size(); ++i) {
    // Both activations have |act(x)| <= |x| and a slope below 1.13.
    const double g = std::abs(gate.values[i]) + gate.bounds[i];
    const double u = std::abs(up.values[i]);
    bounds.push_back(1.13 * gate.bounds[i] * (u + up.bounds[i]) + g * up.bounds[i] +
                     16.0 * kEpsilonF32 * g * u + 1e-30);
  }
  return bounds;
}

void ExpectQuantsStandForValues(const LinearSpec& spec, const LinearOutcome& outcome) {
  ASSERT_EQ(outcome.ffn_quants.size(), spec.ffn_width % 32 == 0 ? outcome.ffn.size() : 0u);
  for (size_t block = 0; block < outcome.ffn_scales.size(); ++block) {
    int32_t total = 0;
    const float scale = outcome.ffn_scales[block];
    for (size_t i = block * 32; i < block * 32 + 32; ++i) {
      total += outcome.ffn_quants[i];
      // Half a step, and the roundings of scale and products: 32767 * 2^-24 is 0.002 of a step.
      ASSERT_NEAR(outcome.ffn_quants[i] * scale, outcome.ffn[i], 0.507 * scale) << i;
    }
    ASSERT_EQ(outcome.ffn_sums[block], scale * static_cast<float>(total)) << block;
  }
}

void ExpectCpuNearRef(LinearSpec spec) {
  spec.FitBlocks();
  SCOPED_TRACE(spec.Describe());
  const LinearInputs inputs(spec);
  Exec::Options options;
  options.backend = Backend::kRef;
  const LinearOutcome want = RunLinearOps(inputs, options);
  const auto isa = DetectCpuIsa();
  ASSERT_TRUE(isa.ok()) << isa.status();
  options.backend = Backend::kCpu;
  options.num_threads = 2;
  options.isa = *isa;
  const LinearOutcome got = RunLinearOps(inputs, options);

  EXPECT_EQ(got.embedding, want.embedding);
  const std::vector<float> normed = NormedRows(inputs);
  const std::vector<float>* q_norm = spec.head_norm ? &inputs.q_norm : nullptr;
  const std::vector<float>* k_norm = spec.head_norm ? &inputs.k_norm : nullptr;
  ExpectWithin("q", got.q, want.q,
               HeadBounds(spec, ProductWithBounds(inputs.q, normed), q_norm, true));
  std::vector<double> k_bounds =
      HeadBounds(spec, ProductWithBounds(inputs.k, normed), k_norm, true);
  AddStorageError(spec, want.k, k_bounds);
  ExpectWithin("k", got.k, want.k, k_bounds);
  std::vector<double> v_bounds =
      HeadBounds(spec, ProductWithBounds(inputs.v, normed), nullptr, false);
  AddStorageError(spec, want.v, v_bounds);
  ExpectWithin("v", got.v, want.v, v_bounds);

  std::vector<double> residual_bounds = ProductWithBounds(inputs.output, inputs.attention).bounds;
  for (size_t i = 0; i < residual_bounds.size(); ++i) {
    residual_bounds[i] += 2.0 * kEpsilonF32 * std::abs(want.residual[i]);
  }
  ExpectWithin("residual", got.residual, want.residual, residual_bounds);
  ExpectWithin("ffn", got.ffn, want.ffn, GateUpBounds(inputs, normed));
  ExpectQuantsStandForValues(spec, got);
  ExpectWithin("logits", got.logits, want.logits, ProductWithBounds(inputs.head, normed).bounds);
}

TEST(LinearTest, EveryTypeAndNumberOfTokens) {
  for (DType type : kAllTypes) {
    for (int32_t tokens : {1, 2, 3, 4, 8, 9, 65}) {
      LinearSpec spec;
      spec.type = type;
      spec.width = 96;
      spec.num_heads = 3;
      spec.head_size = 64;
      spec.rotary_size = 64;
      spec.ffn_width = 160;
      spec.vocab_size = 100;
      spec.rows = {tokens};
      spec.seed = 100 + static_cast<uint32_t>(tokens);
      ExpectCpuNearRef(spec);
    }
  }
}

TEST(LinearTest, HeadSizesRopeStylesAndNorms) {
  uint32_t seed = 200;
  for (DType type : {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_1, DType::kQ6_K}) {
    for (int64_t head_size : {32, 64, 80, 128}) {
      for (RopeStyle style : {RopeStyle::kInterleaved, RopeStyle::kHalfSplit}) {
        LinearSpec spec;
        spec.type = type;
        spec.num_heads = 4;
        spec.num_kv_heads = 2;
        spec.head_size = head_size;
        spec.rotary_size = seed % 3 == 0 ? head_size / 2 : head_size;
        spec.style = style;
        spec.bias = seed % 2 == 0;
        spec.head_norm = seed % 4 >= 2;
        spec.kv_type = seed % 5 < 2 ? DType::kF16 : DType::kF32;
        spec.activation = seed % 2 == 0 ? GateActivation::kSilu : GateActivation::kGeluTanh;
        spec.rows = {1, 1, 5};
        spec.seed = seed++;
        ExpectCpuNearRef(spec);
      }
    }
  }
}

// Heads that share panels, row counts around the panel's 16, one of everything.
TEST(LinearTest, OddSizes) {
  uint32_t seed = 300;
  for (DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int64_t size : {1, 2, 15, 16, 17, 33, 70}) {
      LinearSpec spec;
      spec.type = type;
      spec.width = size;
      spec.num_heads = 3;
      spec.num_kv_heads = 3;
      spec.head_size = size == 1 ? 2 : size / 2 * 2;
      spec.rotary_size = spec.head_size;
      spec.style = seed % 2 == 0 ? RopeStyle::kInterleaved : RopeStyle::kHalfSplit;
      spec.ffn_width = size;
      spec.vocab_size = size;
      spec.bias = true;
      spec.head_norm = true;
      spec.kv_type = DType::kF16;
      spec.rows = {3, 1};
      spec.seed = seed++;
      ExpectCpuNearRef(spec);
    }
  }
  for (DType type : kAllTypes) {
    if (!Traits(type).quantized) continue;
    for (int64_t size : {1, 15, 17, 33, 70}) {
      LinearSpec spec;
      spec.type = type;
      spec.width = 32;
      spec.num_heads = 16;  // output's columns come in blocks of 32
      spec.num_kv_heads = 8;
      spec.head_size = size == 1 ? 2 : size / 2 * 2;
      spec.rotary_size = spec.head_size;
      spec.ffn_width = size;
      spec.vocab_size = size;
      spec.rows = {1, 2};
      spec.seed = seed++;
      ExpectCpuNearRef(spec);
    }
  }
}

// Files of mixed types have several in one layer; floats beside integers read the other half of the
// activation.
TEST(LinearTest, MixedTypesInOneLayer) {
  struct Mix {
    DType type, k, v, up;
  };
  uint32_t seed = 500;
  for (const Mix& mix : {Mix{DType::kQ5_0, DType::kQ8_0, DType::kQ4_K, DType::kQ6_K},
                         Mix{DType::kQ4_K, DType::kQ4_K, DType::kQ6_K, DType::kQ5_0},
                         Mix{DType::kF16, DType::kQ4_0, DType::kF32, DType::kQ2_K},
                         Mix{DType::kQ3_K, DType::kBF16, DType::kIQ4_NL, DType::kF16}}) {
    for (const std::vector<int32_t>& rows : {std::vector<int32_t>{1}, std::vector<int32_t>{3, 9}}) {
      LinearSpec spec;
      spec.type = mix.type;
      spec.k_type = mix.k;
      spec.v_type = mix.v;
      spec.up_type = mix.up;
      spec.num_heads = 4;
      spec.num_kv_heads = 2;
      spec.head_size = 64;
      spec.rotary_size = 64;
      spec.ffn_width = 96;
      spec.rows = rows;
      spec.seed = seed++;
      ExpectCpuNearRef(spec);
    }
  }
}

// As wide as real models: many blocks, many chunks.
TEST(LinearTest, WideModel) {
  for (DType type : kAllTypes) {
    LinearSpec spec;
    spec.type = type;
    spec.width = 576;
    spec.num_heads = 9;
    spec.num_kv_heads = 3;
    spec.head_size = 64;
    spec.rotary_size = 64;
    spec.ffn_width = 1536;
    spec.vocab_size = 1000;
    spec.kv_type = DType::kF16;
    spec.rows = {1, 4};
    spec.seed = 400;
    ExpectCpuNearRef(spec);
  }
}

}  // namespace
}  // namespace sluice::kernels
