// Bit for bit: the linear ops of the CPU give the same bits for any number of tokens, threads and
// instruction set.

#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "tests/kernels/linear_fixture.h"
#include "tests/testing/tally.h"

namespace sluice::kernels {
namespace {

LinearSpec SpecOf(DType type, int64_t size, uint32_t seed) {
  LinearSpec spec;
  spec.type = type;
  spec.width = size;
  spec.num_heads = 5;
  spec.num_kv_heads = 1;
  spec.head_size = 64;
  spec.rotary_size = 64;
  spec.ffn_width = 224;
  spec.vocab_size = 333;
  spec.bias = true;
  spec.head_norm = true;
  spec.kv_type = DType::kF16;
  spec.rows = {64};
  spec.seed = seed;
  spec.FitBlocks();
  return spec;
}

Exec::Options CpuOptions(CpuIsa isa, int num_threads) {
  Exec::Options options;
  options.backend = Backend::kCpu;
  options.isa = isa;
  options.num_threads = num_threads;
  return options;
}

std::string RowOf(DType type) { return "weight types/" + std::string(Name(type)); }

// The first elements of `all` are those of `part`, bit for bit.
template <typename T>
void ExpectStartsWith(testing::Tally& tally, const char* what, const std::vector<T>& all,
                      const std::vector<T>& part) {
  ASSERT_LE(part.size(), all.size()) << what;
  if (part.empty()) return;
  tally.Add(std::memcmp(part.data(), all.data(), part.size() * sizeof(T)) == 0);
  for (size_t i = 0; i < part.size(); ++i) {
    ASSERT_EQ(std::memcmp(&part[i], &all[i], sizeof(T)), 0)
        << what << ", element " << i << ": got " << part[i] << ", want " << all[i];
  }
}

void ExpectSameBits(testing::Tally& tally, const LinearOutcome& all, const LinearOutcome& part) {
  ExpectStartsWith(tally, "embedding", all.embedding, part.embedding);
  ExpectStartsWith(tally, "q", all.q, part.q);
  ExpectStartsWith(tally, "k", all.k, part.k);
  ExpectStartsWith(tally, "v", all.v, part.v);
  ExpectStartsWith(tally, "residual", all.residual, part.residual);
  ExpectStartsWith(tally, "ffn", all.ffn, part.ffn);
  ExpectStartsWith(tally, "ffn quants", all.ffn_quants, part.ffn_quants);
  ExpectStartsWith(tally, "ffn scales", all.ffn_scales, part.ffn_scales);
  ExpectStartsWith(tally, "ffn sums", all.ffn_sums, part.ffn_sums);
  ExpectStartsWith(tally, "logits", all.logits, part.logits);
}

// The same inputs, cut off after so many tokens.
LinearInputs FirstTokens(const LinearInputs& inputs, int32_t num_tokens) {
  LinearInputs part = inputs;
  part.spec.rows = {num_tokens};
  part.row_begins = {0, num_tokens};
  const auto width = static_cast<size_t>(inputs.spec.width);
  const auto query_width = static_cast<size_t>(inputs.spec.num_heads * inputs.spec.head_size);
  part.residual.resize(static_cast<size_t>(num_tokens) * width);
  part.attention.resize(static_cast<size_t>(num_tokens) * query_width);
  return part;
}

TEST(LinearBitsTest, AnyNumberOfTokens) {
  const auto best = DetectCpuIsa();
  ASSERT_TRUE(best.ok()) << best.status();
  for (CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (isa == CpuIsa::kAvx512 && *best != CpuIsa::kAvx512) continue;
    for (DType type : kAllTypes) {
      testing::Tally tally({RowOf(type)}, "op outcomes, " + std::string(Name(isa)));
      const LinearInputs inputs(SpecOf(type, 288, 11));
      const LinearOutcome all = RunLinearOps(inputs, CpuOptions(isa, 2));
      for (int32_t num_tokens : {1, 2, 3, 4, 8, 9}) {
        SCOPED_TRACE(std::string(Name(isa)) + " " + std::string(Name(type)) + " " +
                     std::to_string(num_tokens) + " tokens");
        ExpectSameBits(tally, all,
                       RunLinearOps(FirstTokens(inputs, num_tokens), CpuOptions(isa, 2)));
      }
    }
  }
}

TEST(LinearBitsTest, AnyNumberOfThreads) {
  const auto isa = DetectCpuIsa();
  ASSERT_TRUE(isa.ok()) << isa.status();
  for (DType type : kAllTypes) {
    testing::Tally tally({RowOf(type)}, "op outcomes");
    const LinearInputs inputs(SpecOf(type, 320, 12));
    const LinearOutcome one = RunLinearOps(inputs, CpuOptions(*isa, 1));
    for (int threads : {2, 3}) {
      SCOPED_TRACE(std::string(Name(type)) + " " + std::to_string(threads) + " threads");
      ExpectSameBits(tally, one, RunLinearOps(inputs, CpuOptions(*isa, threads)));
    }
  }
}

TEST(LinearBitsTest, Avx2EqualsAvx512) {
  const auto best = DetectCpuIsa();
  ASSERT_TRUE(best.ok()) << best.status();
  if (*best != CpuIsa::kAvx512) GTEST_SKIP() << "this machine has no AVX-512 VNNI to compare with";
  for (DType type : kAllTypes) {
    testing::Tally tally({RowOf(type)}, "op outcomes");
    for (GateActivation activation : {GateActivation::kSilu, GateActivation::kGeluTanh}) {
      LinearSpec spec = SpecOf(type, 352, 13);
      spec.activation = activation;
      spec.style =
          activation == GateActivation::kSilu ? RopeStyle::kInterleaved : RopeStyle::kHalfSplit;
      if (!Traits(type).quantized) {
        spec.width = 77;
        spec.ffn_width = 45;
        spec.head_size = 24;
        spec.rotary_size = 20;
      }
      SCOPED_TRACE(spec.Describe());
      const LinearInputs inputs(spec);
      ExpectSameBits(tally, RunLinearOps(inputs, CpuOptions(CpuIsa::kAvx512, 1)),
                     RunLinearOps(inputs, CpuOptions(CpuIsa::kAvx2, 1)));
    }
  }
}

// A value that is not finite reaches every outcome that depends on it, and no other row.
TEST(LinearBitsTest, NonFiniteValuesShow) {
  const auto isa = DetectCpuIsa();
  ASSERT_TRUE(isa.ok()) << isa.status();
  for (DType type : kAllTypes) {
    for (float poison : {__builtin_nanf(""), __builtin_inff(), -__builtin_inff()}) {
      SCOPED_TRACE(std::string(Name(type)) + " " + std::to_string(poison));
      LinearSpec spec = SpecOf(type, 64, 14);
      spec.rows = {2};
      LinearInputs inputs(spec);
      const LinearOutcome clean = RunLinearOps(inputs, CpuOptions(*isa, 1));
      inputs.residual[static_cast<size_t>(spec.width) + 37] = poison;
      inputs.attention[static_cast<size_t>(spec.num_heads * spec.head_size) + 5] = poison;
      const LinearOutcome outcome = RunLinearOps(inputs, CpuOptions(*isa, 1));
      const auto check = [&](const char* what, const std::vector<float>& values,
                             const std::vector<float>& want) {
        const size_t half = values.size() / 2;
        for (size_t i = 0; i < half; ++i) ASSERT_EQ(values[i], want[i]) << what << " " << i;
        for (size_t i = half; i < values.size(); ++i) {
          ASSERT_FALSE(__builtin_isfinite(values[i])) << what << " " << i << " " << values[i];
        }
      };
      check("q", outcome.q, clean.q);
      check("residual", outcome.residual, clean.residual);
      check("ffn", outcome.ffn, clean.ffn);
      check("logits", outcome.logits, clean.logits);
    }
  }
}

}  // namespace
}  // namespace sluice::kernels
