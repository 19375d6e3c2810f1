// A model that gives NaN for one token: the request that meets it ends and nothing else notices.

#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/canary.h"
#include "engine/engine.h"
#include "tests/testing/collect.h"
#include "tests/testing/gguf_writer.h"
#include "tests/testing/model_probe.h"
#include "tests/testing/test_device.h"

namespace sluice {
namespace {

using engine::Request;
using testing::Collected;
using ::testing::HasSubstr;
using testing::TempFile;

constexpr engine::TokenId kPoison = 300;  // its embedding is not finite
constexpr int kVocabulary = 320;

// A tiny model whose embedding of kPoison holds `value`. The head is another matrix: other tokens'
// logits are sound.
std::string PoisonedModel(float value) {
  testing::TinyModelSpec spec;
  spec.vocab_size = kVocabulary;
  spec.vocabulary = false;
  testing::GgufDraft draft = testing::MakeTinyModelDraft(spec);
  std::string& bytes = draft.TensorAt("token_embd.weight").bytes;
  const size_t row_bytes = static_cast<size_t>(spec.width) * sizeof(float);
  std::memcpy(&bytes[kPoison * row_bytes + 20], &value, sizeof value);
  return draft.Bytes();
}

// Greedy, never the poisoned token unless `first_output` says so: then that is the first one.
Request MakeRequest(int prompt_size, int max_tokens, bool poisoned_output = false) {
  Request request;
  request.prompt = engine::CanaryTokens(kPoison, prompt_size);
  request.sampling.temperature = 0;
  request.sampling.logit_bias.emplace_back(kPoison, poisoned_output ? 100.0f : -100.0f);
  request.stopping.max_tokens = max_tokens;
  request.stopping.ignore_eos = true;
  request.output.return_text = false;
  request.output.return_token_ids = true;
  request.output.logprobs = 2;
  return request;
}

class NonFiniteTest : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (const std::string why = testing::WhyNoDevice(); !why.empty()) GTEST_SKIP() << why;
  }

  // Few pages: what a poisoned sequence leaves in them is written over by the next.
  std::unique_ptr<engine::Dispatcher> Open(const std::string& path) const {
    return testing::OpenEngine(path,
                               {.depth = GetParam(),
                                .max_batch = 4,
                                .max_step_tokens = 64,
                                .max_queue = 16,
                                .num_pages = 13,
                                .max_context = 128},
                               testing::TestBackend());
  }

  static void ExpectNonFinite(const Collected& poisoned, size_t tokens) {
    EXPECT_TRUE(absl::IsInternal(poisoned.status)) << poisoned.status;
    EXPECT_EQ(poisoned.error_reason, "NON_FINITE_LOGITS");
    EXPECT_THAT(std::string(poisoned.status.message()),
                HasSubstr("output token " + std::to_string(tokens)));
    EXPECT_EQ(poisoned.tokens.size(), tokens);
  }
};

INSTANTIATE_TEST_SUITE_P(Depth, NonFiniteTest, ::testing::Values(0, 1),
                         [](const auto& info) { return "Depth" + std::to_string(info.param); });

TEST_P(NonFiniteTest, EndsTheRequestAndLeavesItsNeighboursAlone) {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const TempFile file(PoisonedModel(value));
    const auto alone = Open(file.path());
    const Collected expected = testing::RunAll(*alone, {MakeRequest(20, 60)})[0][0];
    ASSERT_TRUE(expected.status.ok()) << expected.status;
    ASSERT_EQ(expected.tokens.size(), 60u);

    const auto engine = Open(file.path());
    Request by_prompt = MakeRequest(20, 40);
    by_prompt.prompt[11] = kPoison;
    std::vector<Request> together;
    together.push_back(MakeRequest(20, 60));
    together.push_back(std::move(by_prompt));
    together.push_back(MakeRequest(17, 40, /*poisoned_output=*/true));
    const auto results = testing::RunAll(*engine, std::move(together));
    EXPECT_TRUE(results[0][0].status.ok()) << results[0][0].status;
    EXPECT_TRUE(results[0][0].SameOutput(expected));
    ExpectNonFinite(results[1][0], 0);
    ExpectNonFinite(results[2][0], 1);
    EXPECT_EQ(results[2][0].tokens[0], kPoison);

    // The pages that held NaN are among those of the next requests.
    std::vector<Request> later;
    for (int i = 0; i < 2; ++i) later.push_back(MakeRequest(20, 60));
    for (const auto& sequences : testing::RunAll(*engine, std::move(later)))
      EXPECT_TRUE(sequences[0].SameOutput(expected));

    const engine::EngineStats& stats = engine->engines()[0]->stats();
    EXPECT_EQ(stats.nonfinite_logits.load(), 2u);
    EXPECT_TRUE(engine->any_up());
    engine->Shutdown();
    EXPECT_EQ(stats.kv_pages_free.load(), 12);
    EXPECT_EQ(stats.leaked_pages.load(), 0);
  }
}

}  // namespace
}  // namespace sluice
