// What the linear ops do for architectures beyond llama: layer norms, norms after products, scales,
// caps, FFNs without a gate, several ropes. Weights are identities or small, so that each outcome
// has a formula of its own in double; ref and cpu are both held against it, and the CPU's threads,
// instruction sets and numbers of tokens against each other bit for bit.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/ops.h"
#include "tests/kernels/op_variants_fixture.h"

namespace sluice::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const int64_t kWidths[] = {1, 2, 15, 16, 17, 33, 64, 65, 100, 128, 300};

// An op as a function of the machine and of rows [T, n]: gives rows [T, m].
using RowOp = std::function<std::vector<float>(const Exec::Options&, const std::vector<float>&)>;
using RowFormula = std::function<Expected(const float* row)>;

// Every machine within the formula's bounds; those of the CPU equal bit for bit, for all rows
// together, the first five, and each of the first two alone.
void ExpectRows(const std::string& what, const std::vector<float>& rows, int64_t width,
                const RowOp& op, const RowFormula& formula) {
  SCOPED_TRACE(what);
  const int64_t num_rows = static_cast<int64_t>(rows.size()) / width;
  std::vector<float> first;
  for (const Exec::Options& machine : Machines()) {
    SCOPED_TRACE(Exec(machine).Describe());
    const std::vector<float> all = op(machine, rows);
    const size_t out_width = all.size() / static_cast<size_t>(num_rows);
    for (int64_t t = 0; t < num_rows; ++t) {
      const Expected want = formula(rows.data() + t * width);
      ASSERT_EQ(want.values.size(), out_width);
      for (size_t i = 0; i < out_width; ++i) {
        const float got = all[static_cast<size_t>(t) * out_width + i];
        if (std::isnan(want.values[i])) {
          ASSERT_TRUE(std::isnan(got)) << "row " << t << " value " << i << ": " << got;
        } else {
          ASSERT_LE(std::abs(got - want.values[i]), want.bounds[i])
              << "row " << t << " value " << i << ": got " << got << ", want " << want.values[i];
        }
      }
    }
    if (machine.backend == Backend::kRef) continue;
    if (first.empty()) first = all;
    ASSERT_EQ(std::memcmp(first.data(), all.data(), all.size() * sizeof(float)), 0);
    const std::pair<int64_t, int64_t> parts[] = {{0, 1}, {1, 2}, {0, 5}};
    for (const auto& [begin, end] : parts) {
      if (end > num_rows) continue;
      const std::vector<float> part =
          op(machine, {rows.begin() + begin * width, rows.begin() + end * width});
      ASSERT_EQ(std::memcmp(part.data(), all.data() + begin * static_cast<int64_t>(out_width),
                            part.size() * sizeof(float)),
                0)
          << "rows [" << begin << ", " << end << ") alone";
    }
  }
}

// logits = scaled and capped norm(residual) I^T.
RowOp LmHead(int64_t width, const Norm& norm, float scale = 1.0f, float softcap = 0.0f) {
  return [=](const Exec::Options& machine, const std::vector<float>& rows) {
    const int64_t tokens = static_cast<int64_t>(rows.size()) / width;
    Step step(machine, tokens, width);
    const PackedWeight head = Pack(machine.backend, width, width, Diagonal(width, 1.0f));
    Linear linear;
    linear.weight = &head;
    std::vector<float> logits(rows.size());
    const absl::Status status =
        NormLmHead(step.exec, {norm, &linear, scale, softcap}, {rows.data(), tokens, width},
                   step.batch, 0, {logits.data(), tokens, width});
    EXPECT_TRUE(status.ok()) << status;
    return logits;
  };
}

TEST(OpVariantsTest, LayerNorm) {
  for (const int64_t width : kWidths) {
    const std::vector<float> weight = Random(width, 1);
    const std::vector<float> bias = Random(width, 2);
    for (const bool with_bias : {false, true}) {
      for (const float offset : {0.0f, 100.0f}) {
        const Norm norm = {weight.data(), with_bias ? bias.data() : nullptr, 1e-5f,
                           NormKind::kLayer};
        ExpectRows("width " + std::to_string(width) + (with_bias ? " bias" : "") + " offset " +
                       std::to_string(offset),
                   Random(70 * width, 3, 2.0f, offset), width, LmHead(width, norm),
                   [&](const float* row) { return NormOf(norm, row, width); });
      }
    }
  }
}

TEST(OpVariantsTest, RmsNormAndNoNorm) {
  for (const int64_t width : kWidths) {
    const std::vector<float> weight = Random(width, 1);
    const Norm norm = {.weight = weight.data(), .epsilon = 1e-6f};
    const std::vector<float> rows = Random(6 * width, 3);
    ExpectRows("width " + std::to_string(width), rows, width, LmHead(width, norm),
               [&](const float* row) { return NormOf(norm, row, width); });
    for (const Exec::Options& machine : Machines()) {
      EXPECT_EQ(LmHead(width, {})(machine, rows), rows) << "no norm, width " << width;
    }
  }
}

TEST(OpVariantsTest, NormsShowWhatIsNotFinite) {
  const int64_t width = 65;
  const std::vector<float> weight = Random(width, 1);
  for (const NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
    for (const float poison : {std::nanf(""), kInf, -kInf}) {
      for (const Exec::Options& machine : Machines()) {
        const Norm norm = {.weight = weight.data(), .epsilon = 1e-5f, .kind = kind};
        std::vector<float> row = Random(width, 2);
        row[64] = poison;
        for (const float logit : LmHead(width, norm)(machine, row)) {
          EXPECT_FALSE(std::isfinite(logit));
        }
      }
    }
  }
}

// Rows of one value, over everything that a float can be.
TEST(OpVariantsTest, CapsAndScalesLogits) {
  std::vector<float> rows = {0.0f, 1e-45f, 1e-20f, 3e38f, kInf, std::nanf("")};
  for (int i = -140; i < 140; ++i) rows.push_back(std::pow(10.0f, static_cast<float>(i) / 60.0f));
  const size_t half = rows.size();
  for (size_t i = 0; i < half; ++i) rows.push_back(-rows[i]);
  for (const float softcap : {0.25f, 1.0f, 30.0f}) {
    for (const float scale : {1.0f, 0.125f, 3.0f}) {
      const RowFormula formula = [&](const float* row) {
        const float scaled = *row * scale;
        const double value =
            std::isfinite(scaled) ? softcap * std::tanh(scaled / softcap) : std::nan("");
        return Expected{{value}, {4.0 * kUlp * std::abs(value) + 1e-44}};
      };
      ExpectRows("softcap " + std::to_string(softcap) + " scale " + std::to_string(scale), rows, 1,
                 LmHead(1, {}, scale, softcap), formula);
    }
  }
  for (const Exec::Options& machine : Machines()) {
    EXPECT_EQ(LmHead(1, {}, 3.0f)(machine, {-kInf, -1.0f, kInf, 3e38f}),
              (std::vector<float>{-kInf, -3.0f, kInf, kInf}))
        << "without a cap an infinity shows by itself";
  }
}

TEST(OpVariantsTest, CapsLogitsOfAnyWidth) {
  for (const int64_t width : kWidths) {
    ExpectRows("width " + std::to_string(width), Random(70 * width, 17, 20.0f), width,
               LmHead(width, {}, 2.0f, 30.0f), [&](const float* row) {
                 Expected want;
                 for (int64_t i = 0; i < width; ++i) {
                   want.values.push_back(30.0 * std::tanh(row[i] * 2.0 / 30.0));
                   want.bounds.push_back(4.0 * kUlp * std::abs(want.values.back()));
                 }
                 return want;
               });
  }
}

TEST(OpVariantsTest, AddsScaledAndNormedProducts) {
  for (const int64_t width : kWidths) {
    const std::vector<float> residual = Random(70 * width, 4);
    const std::vector<float> weight = Random(width, 1);
    const std::vector<float> bias = Random(width, 2);
    const std::vector<float> product_bias = Random(width, 5);
    const Norm norms[] = {{},
                          {.weight = weight.data(), .epsilon = 1e-6f},
                          {weight.data(), bias.data(), 1e-5f, NormKind::kLayer}};
    for (const Norm& norm : norms) {
      for (const float scale : {1.0f, 0.22f}) {
        // Rows are [residual, input]: each token has its own of both.
        std::vector<float> rows;
        const std::vector<float> input = Random(70 * width, 6, 3.0f);
        for (int64_t t = 0; t < 70; ++t) {
          rows.insert(rows.end(), residual.begin() + t * width, residual.begin() + (t + 1) * width);
          rows.insert(rows.end(), input.begin() + t * width, input.begin() + (t + 1) * width);
        }
        const RowOp op = [&](const Exec::Options& machine, const std::vector<float>& all) {
          const int64_t tokens = static_cast<int64_t>(all.size()) / (2 * width);
          Step step(machine, tokens, width);
          const PackedWeight identity = Pack(machine.backend, width, width, Diagonal(width, 1.0f));
          Linear linear;
          linear.weight = &identity;
          linear.bias = product_bias.data();
          auto activation = Activation::Allocate(machine.backend, tokens, width);
          EXPECT_TRUE(activation.ok()) << activation.status();
          std::vector<float> out(static_cast<size_t>(tokens * width));
          for (int64_t t = 0; t < tokens; ++t) {
            std::copy_n(all.begin() + 2 * t * width, width, out.begin() + t * width);
            std::copy_n(all.begin() + (2 * t + 1) * width, width, activation->values + t * width);
          }
          const absl::Status status =
              MatMulAddResidual(step.exec, {&linear, norm, scale}, *activation, step.batch,
                                {out.data(), tokens, width});
          EXPECT_TRUE(status.ok()) << status;
          return out;
        };
        const RowFormula formula = [&](const float* row) {
          std::vector<float> product;
          for (int64_t i = 0; i < width; ++i) {
            product.push_back(row[width + i] + product_bias[static_cast<size_t>(i)]);
          }
          Expected want;
          if (norm.weight != nullptr) want = NormOf(norm, product.data(), width);
          for (int64_t i = 0; i < width; ++i) {
            const size_t at = static_cast<size_t>(i);
            if (norm.weight == nullptr) {
              want.values.push_back(product[at]);
              want.bounds.push_back(kUlp * std::abs(product[at]));
            }
            want.values[at] = row[i] + scale * want.values[at];
            want.bounds[at] =
                scale * want.bounds[at] + kUlp * (std::abs(want.values[at]) + std::abs(row[i]));
          }
          return want;
        };
        ExpectRows("width " + std::to_string(width) + " norm " + std::to_string(&norm - norms) +
                       " scale " + std::to_string(scale),
                   rows, 2 * width, op, formula);
      }
    }
  }
}

double Activated(GateActivation activation, double x) {
  if (activation == GateActivation::kSilu) return x / (1.0 + std::exp(-x));
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

TEST(OpVariantsTest, FfnWithoutAGate) {
  const int64_t width = 33;
  for (const int64_t ffn_width : {1, 15, 16, 31, 32, 33, 65, 300}) {
    const std::vector<float> up = Random(ffn_width * width, 7, 0.3f);
    const std::vector<float> bias = Random(ffn_width, 8);
    const std::vector<float> norm_weight = Random(width, 9);
    const std::vector<float> norm_bias = Random(width, 10);
    const Norm norm = {norm_weight.data(), norm_bias.data(), 1e-5f, NormKind::kLayer};
    for (const GateActivation activation : {GateActivation::kSilu, GateActivation::kGeluTanh}) {
      const RowOp op = [&](const Exec::Options& machine, const std::vector<float>& rows) {
        const int64_t tokens = static_cast<int64_t>(rows.size()) / width;
        Step step(machine, tokens, width, 1, ffn_width);
        const PackedWeight weight = Pack(machine.backend, ffn_width, width, up);
        Linear linear;
        linear.weight = &weight;
        linear.bias = bias.data();
        auto out = Activation::Allocate(machine.backend, tokens, ffn_width);
        EXPECT_TRUE(out.ok()) << out.status();
        const NormGateUpArgs args = {.norm = norm, .up = &linear, .activation = activation};
        const absl::Status status =
            NormGateUpSwiglu(step.exec, args, {rows.data(), tokens, width}, step.batch, *out);
        EXPECT_TRUE(status.ok()) << status;
        const int64_t count = tokens * ffn_width;
        for (int64_t i = 0; out->quants != nullptr && i < count; ++i) {
          EXPECT_NEAR(out->quants[i] * out->scales[i / 32], out->values[i],
                      0.51 * out->scales[i / 32]);
        }
        return std::vector<float>(out->values, out->values + count);
      };
      const RowFormula formula = [&](const float* row) {
        const Expected normed = NormOf(norm, row, width);
        Expected want;
        for (int64_t n = 0; n < ffn_width; ++n) {
          double sum = bias[static_cast<size_t>(n)];
          double bound = 8.0 * kUlp * std::abs(sum);
          for (int64_t i = 0; i < width; ++i) {
            const double w = up[static_cast<size_t>(n * width + i)];
            const size_t at = static_cast<size_t>(i);
            sum += w * normed.values[at];
            bound += std::abs(w) * (normed.bounds[at] + 16.0 * kUlp * std::abs(normed.values[at]));
          }
          want.values.push_back(Activated(activation, sum));
          want.bounds.push_back(1.13 * bound + 8.0 * kUlp * std::abs(sum));
        }
        return want;
      };
      ExpectRows("F " + std::to_string(ffn_width) +
                     (activation == GateActivation::kSilu ? " silu" : " gelu"),
                 Random(70 * width, 11), width, op, formula);
    }
  }
}

TEST(OpVariantsTest, ScalesEmbeddings) {
  for (const int64_t width : kWidths) {
    const std::vector<float> rows = Random(width * width, 12);
    for (const Exec::Options& machine : Machines()) {
      for (const float scale : {1.0f, std::sqrt(static_cast<float>(width)), 12.0f}) {
        const int64_t tokens = std::min<int64_t>(width, 9);
        Step step(machine, tokens, width);
        const PackedWeight table = Pack(machine.backend, width, width, rows);
        std::vector<float> out(static_cast<size_t>(tokens * width));
        const absl::Status status =
            EmbedTokens(step.exec, table, scale, {}, step.batch, {out.data(), tokens, width});
        ASSERT_TRUE(status.ok()) << status;
        for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], scale * rows[i]);
      }
    }
  }
}

}  // namespace
}  // namespace sluice::kernels
