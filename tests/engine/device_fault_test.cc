// A device that fails for good under load: every open request gets one end that says so, the engine
// is down, nothing hangs and nothing aborts, not even when all is freed. On a GPU the fault is a
// real one: a kernel that traps, after which CUDA refuses every call of this process. So this is a
// binary of its own, and what is tested after the fault comes after it here.

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/canary.h"
#include "engine/engine.h"
#include "engine/verify.h"
#include "tests/testing/collect.h"
#include "tests/testing/test_device.h"

namespace sluice {
namespace {

using engine::Request;
using testing::Collected;
using ::testing::HasSubstr;

const std::string kModel = std::string(SLUICE_GOLDEN_DIR) + "/tiny/tiny-llama.q4_1.gguf";

std::vector<Request> MakeRequests(int32_t vocab_size) {
  std::vector<Request> requests;
  for (int i = 0; i < 12; ++i) {
    Request request;
    request.prompt = engine::CanaryTokens(vocab_size, 5 + 11 * i);
    request.sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
    request.sampling.seed = static_cast<uint64_t>(i);
    // The twentieth step fails: some have ended, some are at work, some wait.
    request.stopping.max_tokens = i < 3 ? 4 : 200;
    request.stopping.ignore_eos = true;
    request.output.return_text = false;
    request.output.return_token_ids = true;
    requests.push_back(std::move(request));
  }
  return requests;
}

TEST(DeviceFaultTest, EndsEveryRequestAndTheEngine) {
  if (!kernels::kPlantedBugsBuilt) GTEST_SKIP() << "this build holds no planted bugs";
  if (const std::string why = testing::WhyNoDevice(); !why.empty()) GTEST_SKIP() << why;
  engine::EngineOptions options;
  options.device = testing::kDevice;
  options.num_threads = 2;
  options.max_batch = 8;
  options.planted_bug = kernels::PlantedBug::kDeviceFault;
  const auto begin = std::chrono::steady_clock::now();
  {
    auto model = engine::LoadModel(kModel, options, 1, nullptr);
    ASSERT_TRUE(model.ok()) << model.status();
    const auto results =
        testing::RunAll(*model->dispatcher, MakeRequests(model->facts.vocab_size), 20);
    int ended = 0, cut = 0, unbegun = 0;
    for (const std::vector<Collected>& sequences : results) {
      const Collected& result = sequences[0];
      if (result.status.ok()) {
        ++ended;
        EXPECT_EQ(result.tokens.size(), 4u);
      } else if (result.tokens.empty()) {
        ++unbegun;
        EXPECT_TRUE(absl::IsUnavailable(result.status)) << result.status;
        EXPECT_EQ(result.error_reason, "ENGINE_DOWN");
      } else {
        ++cut;
        EXPECT_TRUE(absl::IsInternal(result.status)) << result.status;
        EXPECT_EQ(result.error_reason, "ENGINE_FAULT");
      }
    }
    EXPECT_EQ(ended, 3);
    EXPECT_GT(cut, 0);
    EXPECT_EQ(ended + cut + unbegun, 12);
    EXPECT_FALSE(model->dispatcher->any_up());
    std::vector<Request> late = MakeRequests(model->facts.vocab_size);
    EXPECT_TRUE(absl::IsUnavailable(model->dispatcher->Dispatch(std::move(late[0]))));
  }  // frees everything of the device
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
  if (!testing::OnCuda()) return;

  // The process cannot use the device again, and says so instead of crashing.
  options.planted_bug = kernels::PlantedBug::kNone;
  const auto again = engine::LoadModel(kModel, options, 1, nullptr);
  ASSERT_FALSE(again.ok());
  EXPECT_THAT(std::string(again.status().message()), HasSubstr("CUDA error"));
  engine::VerifyOptions verify;
  verify.engine = options;
  EXPECT_FALSE(engine::VerifyModel(kModel, verify).ok());
}

}  // namespace
}  // namespace sluice
