// The same request gives the same tokens and bit-equal logprobs whatever else runs: alone or in a
// batch, prompt whole or in chunks, found in the prefix cache or not, preempted or not, on one
// thread or two, one engine or two, AVX-512 or AVX2, step depth 0 or 1. Of the device that the
// binary is about.

#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "engine/canary.h"
#include "engine/engine.h"
#include "engine/model_file/model_file.h"
#include "tests/testing/collect.h"
#include "tests/testing/model_probe.h"
#include "tests/testing/test_device.h"

namespace sluice {
namespace {

using engine::EngineOptions;
using engine::Request;
using testing::Collected;

constexpr int kRequests = 12;

// Requests of mixed lengths: greedy, seeded, with penalties, with n = 2, all with logprobs.
std::vector<Request> MakeRequests(int32_t vocab_size) {
  std::vector<Request> requests;
  for (int i = 0; i < kRequests; ++i) {
    Request request;
    request.id = "r" + std::to_string(i);
    request.prompt = engine::CanaryTokens(vocab_size, 1 + (i * 37) % 90);
    request.prompt[0] = i;
    request.sampling.temperature = i % 3 == 0 ? 0.0f : 0.7f + 0.1f * static_cast<float>(i);
    request.sampling.seed = 1000u + static_cast<uint64_t>(i);
    if (i % 4 == 1) request.sampling.top_k = 20;
    if (i % 4 == 2) request.sampling.top_p = 0.8f;
    if (i % 4 == 3) request.sampling.min_p = 0.05f;
    if (i % 5 == 2) request.sampling.repetition_penalty = 1.3f;
    if (i % 5 == 3) request.sampling.frequency_penalty = 0.5f;
    if (i % 6 == 5) {
      request.sampling.n = 2;
      request.sampling.temperature = 50;  // the tiny models are very sure of themselves
    }
    request.stopping.max_tokens = 10 + (i * 13) % 40;
    request.stopping.ignore_eos = true;
    request.output.return_text = false;
    request.output.return_token_ids = true;
    request.output.logprobs = i % 2 == 0 ? 3 : 0;
    if (i % 4 == 2) request.output.prompt_logprobs = i % 3;
    requests.push_back(std::move(request));
  }
  return requests;
}

class BitExactTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::string path() const { return std::string(SLUICE_GOLDEN_DIR) + "/tiny/" + GetParam(); }

  void SetUp() override {
    if (const std::string why = testing::WhyNoDevice(); !why.empty()) GTEST_SKIP() << why;
  }

  static EngineOptions Options() {
    EngineOptions options;
    options.device = testing::kDevice;
    options.kv_dtype = engine::KvDType::kF32;
    options.num_threads = 1;
    options.max_batch = 16;
    options.max_step_tokens = 512;
    return options;
  }

  engine::LoadedModel Load(const EngineOptions& options) {
    absl::StatusOr<engine::LoadedModel> model = engine::LoadModel(path(), options, 1, nullptr);
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  // All requests at once.
  std::vector<std::vector<Collected>> Together(const EngineOptions& options) {
    engine::LoadedModel model = Load(options);
    return testing::RunAll(*model.dispatcher, MakeRequests(model.facts.vocab_size));
  }

  // One after the other, prompts whole, one thread: what everything else is compared with.
  const std::vector<std::vector<Collected>>& Alone() {
    if (!alone_.empty()) return alone_;
    EngineOptions options = Options();
    options.prefix_cache = false;
    engine::LoadedModel model = Load(options);
    for (Request& request : MakeRequests(model.facts.vocab_size)) {
      alone_.push_back(testing::RunAll(*model.dispatcher, {std::move(request)})[0]);
    }
    return alone_;
  }

  // The same requests once, and again when their pages are cached, and again with other ends. How
  // many tokens were found?
  uint64_t ExpectSameAgain(engine::Dispatcher& dispatcher, int32_t vocab_size) {
    ExpectSame(testing::RunAll(dispatcher, MakeRequests(vocab_size)));
    ExpectSame(testing::RunAll(dispatcher, MakeRequests(vocab_size)));
    for (Request& request : MakeRequests(vocab_size)) {
      Request before = request;
      request.prompt.back() = 5;
      request.prompt.insert(request.prompt.end(), {3, 1, 4, 1, 5});
      Request bypass = request;
      bypass.cache.bypass = true;
      const auto expected = testing::RunAll(dispatcher, {std::move(bypass)})[0];
      testing::RunAll(dispatcher, {std::move(before)});  // a small pool has it at hand then
      const auto got = testing::RunAll(dispatcher, {std::move(request)})[0];
      for (size_t index = 0; index < got.size(); ++index) {
        EXPECT_TRUE(got[index].status.ok()) << got[index].status;
        EXPECT_TRUE(got[index].SameOutput(expected[index])) << "sequence " << index;
      }
    }
    uint64_t found = 0;
    for (const auto& engine : dispatcher.engines()) {
      EXPECT_EQ(engine->stats().leaked_pages.load(), 0);
      found += engine->stats().prefix_cache_hits.load();
    }
    return found;
  }

  int ExpectSame(const std::vector<std::vector<Collected>>& results) {
    int preemptions = 0;
    const auto& alone = Alone();
    EXPECT_EQ(results.size(), alone.size());
    for (size_t i = 0; i < alone.size(); ++i) {
      for (size_t index = 0; index < alone[i].size(); ++index) {
        EXPECT_TRUE(results[i][index].status.ok()) << results[i][index].status;
        EXPECT_FALSE(alone[i][index].tokens.empty());
        EXPECT_TRUE(results[i][index].SameOutput(alone[i][index]))
            << "request " << i << " sequence " << index;
        preemptions += results[i][index].preemptions;
      }
    }
    return preemptions;
  }

  std::vector<std::vector<Collected>> alone_;
};

TEST_P(BitExactTest, SequencesOfOneRequestDiffer) {
  const auto& alone = Alone();
  EXPECT_NE(alone[5][0].tokens, alone[5][1].tokens);
  EXPECT_NE(alone[1][0].tokens, alone[2][0].tokens);
}

TEST_P(BitExactTest, BatchedEqualsAlone) { ExpectSame(Together(Options())); }

TEST_P(BitExactTest, ChunkedPrefillEqualsWhole) {
  for (int tokens : {16, 17, 23}) {
    EngineOptions options = Options();
    options.max_step_tokens = tokens;
    ExpectSame(Together(options));
  }
}

TEST_P(BitExactTest, ThreadsDoNotMatter) {
  if (testing::OnCuda()) GTEST_SKIP() << "a device has no threads of ours";
  for (int threads : {2, 3}) {
    EngineOptions options = Options();
    options.num_threads = threads;
    ExpectSame(Together(options));
  }
}

TEST_P(BitExactTest, Avx2EqualsAvx512) {
  if (testing::OnCuda()) GTEST_SKIP() << "instruction sets are the CPU's";
  EngineOptions options = Options();
  options.force_avx2 = true;
  ExpectSame(Together(options));
}

TEST_P(BitExactTest, TwoEnginesEqualOne) {
  EngineOptions options = Options();
  options.num_engines = 2;
  ExpectSame(Together(options));
}

TEST_P(BitExactTest, PreemptedEqualsNot) {
  engine::LoadedModel model = Load(Options());
  EngineOptions options = Options();
  // Nine pages: the largest request needs about eight, all together far more.
  options.kv_memory_bytes =
      static_cast<uint64_t>(model.facts.kv_bytes / (model.facts.kv_pages + 1)) * 10;
  const int preemptions = ExpectSame(Together(options));
  EXPECT_GT(preemptions, 0) << "the pool was meant to be too small for all";
}

TEST_P(BitExactTest, CachedEqualsNot) {
  for (const int tokens : {512, 17}) {
    EngineOptions options = Options();
    options.max_step_tokens = tokens;
    engine::LoadedModel model = Load(options);
    EXPECT_GT(ExpectSameAgain(*model.dispatcher, model.facts.vocab_size), 500u);
  }
}

TEST_P(BitExactTest, CachedAndPreemptedEqualsNot) {
  engine::LoadedModel large = Load(Options());
  EngineOptions options = Options();
  options.kv_memory_bytes =
      static_cast<uint64_t>(large.facts.kv_bytes / (large.facts.kv_pages + 1)) * 10;
  engine::LoadedModel model = Load(options);
  EXPECT_GT(ExpectSameAgain(*model.dispatcher, model.facts.vocab_size), 0u);
  EXPECT_GT(model.dispatcher->engines()[0]->stats().preemptions.load(), 0u);
}

// With one slot and no cache each sequence computes the prompt itself.
TEST_P(BitExactTest, SequencesThatShareAPromptEqualThoseAlone) {
  const auto run = [](engine::LoadedModel& model) {
    std::vector<Request> requests = MakeRequests(model.facts.vocab_size);
    for (Request& request : requests) {
      request.sampling.n = 4;
      request.sampling.temperature = 20;
    }
    return testing::RunAll(*model.dispatcher, std::move(requests));
  };
  EngineOptions apart = Options();
  apart.prefix_cache = false;
  apart.max_batch = 1;
  engine::LoadedModel model = Load(apart);
  const auto expected = run(model);
  for (const bool prefix_cache : {false, true}) {
    for (const int64_t pages : {0, 20}) {
      EngineOptions options = Options();
      options.prefix_cache = prefix_cache;
      options.kv_memory_bytes =
          static_cast<uint64_t>(model.facts.kv_bytes / (model.facts.kv_pages + 1) * pages);
      engine::LoadedModel sharing = Load(options);
      const auto got = run(sharing);
      for (size_t i = 0; i < expected.size(); ++i) {
        for (size_t index = 0; index < expected[i].size(); ++index) {
          EXPECT_TRUE(got[i][index].SameOutput(expected[i][index])) << i << " " << index;
        }
      }
    }
  }
}

// A reply that comes back as a prompt is scored as it was when it was drawn, to the bit.
TEST_P(BitExactTest, PromptLogprobsAreThoseOfTheDraw) {
  engine::LoadedModel model = Load(Options());
  for (Request& request : MakeRequests(model.facts.vocab_size)) {
    request.sampling.n = 1;
    request.output.logprobs = 3;
    request.output.prompt_logprobs = -1;
    const Collected drawn = testing::RunAll(*model.dispatcher, {request})[0][0];
    Request back = request;
    back.prompt.insert(back.prompt.end(), drawn.tokens.begin(), drawn.tokens.end());
    back.output.prompt_logprobs = 3;
    const Collected scored = testing::RunAll(*model.dispatcher, {back})[0][0];
    ASSERT_EQ(scored.prompt_logprobs.size(), back.prompt.size() - 1);
    Collected tail = drawn;
    tail.logprobs.assign(
        scored.prompt_logprobs.end() - static_cast<std::ptrdiff_t>(drawn.tokens.size()),
        scored.prompt_logprobs.end());
    EXPECT_TRUE(tail.SameOutput(drawn));
  }
}

TEST_P(BitExactTest, F16CacheBatchedEqualsAlone) {
  EngineOptions options = Options();
  options.kv_dtype = engine::KvDType::kF16;
  engine::LoadedModel model = Load(options);
  alone_.clear();
  for (Request& request : MakeRequests(model.facts.vocab_size)) {
    alone_.push_back(testing::RunAll(*model.dispatcher, {std::move(request)})[0]);
  }
  ExpectSame(Together(options));
}

// On the CPU LoadModel's depth is 0, on a device 1: both are held against what it gave.
TEST_P(BitExactTest, DepthOneEqualsDepthZero) {
  const auto file = engine::ModelFile::Open(path());
  ASSERT_TRUE(file.ok()) << file.status();
  const auto config = engine::ModelConfig::FromFile(**file);
  ASSERT_TRUE(config.ok()) << config.status();
  for (const int depth : {0, 1}) {
    const auto dispatcher = testing::OpenEngine(path(),
                                                {.depth = depth,
                                                 .max_batch = 16,
                                                 .max_step_tokens = 32,
                                                 .max_queue = 64,
                                                 .num_pages = 30,
                                                 .max_context = 256},
                                                testing::TestBackend());
    EXPECT_GT(ExpectSameAgain(*dispatcher, config->vocab_size), 200u);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, BitExactTest,
                         ::testing::Values("tiny-llama.q4_1.gguf", "tiny-llama31.q8_0.gguf",
                                           "tiny-odd.f16.gguf", "tiny-llama.f32.gguf"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) {
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace sluice
