#include "server/text_pool.h"

#include <gtest/gtest.h>

#include <future>
#include <string>
#include <vector>

namespace sluice::server {
namespace {

// A pool of one thread, which is busy until Release.
class TextPoolTest : public testing::Test {
 protected:
  TextPoolTest() : pool_(1) {
    std::promise<void> began;
    pool_.Run(TextPool::Kind::kOther, {0,
                                       [&began, release = release_.get_future().share()] {
                                         began.set_value();
                                         release.wait();
                                       },
                                       [](TextPool::Refusal) { FAIL(); }});
    began.get_future().wait();
  }
  ~TextPoolTest() override { Release(); }

  void Release() {
    if (!released_) release_.set_value();
    released_ = true;
  }
  TextPool::Job Job(const std::string& name, size_t bytes = 1) {
    return {bytes, [this, name] { Log(name); },
            [this, name](TextPool::Refusal refusal) {
              Log(name + (refusal == TextPool::Refusal::kFull ? " full" : " stopped"));
            }};
  }
  void Log(const std::string& line) {
    engine::MutexLock lock(mutex_);
    log_.push_back(line);
  }
  std::vector<std::string> log() {
    engine::MutexLock lock(mutex_);
    return log_;
  }
  // Waits until every job that was given before has run.
  void WaitUntilIdle() {
    std::promise<void> idle;
    pool_.Run(TextPool::Kind::kOther,
              {0, [&idle] { idle.set_value(); }, [](TextPool::Refusal) { FAIL(); }});
    idle.get_future().wait();
  }

  std::promise<void> release_;
  bool released_ = false;
  engine::Mutex mutex_;
  std::vector<std::string> log_;
  TextPool pool_;
};

TEST_F(TextPoolTest, RunsGenerationsFirst) {
  pool_.Run(TextPool::Kind::kOther, Job("tokenize"));
  pool_.Run(TextPool::Kind::kGenerate, Job("generate"));
  Release();
  WaitUntilIdle();
  EXPECT_EQ(log(), (std::vector<std::string>{"generate", "tokenize"}));
}

TEST_F(TextPoolTest, RefusesTooManyJobsOfAKindOnly) {
  for (size_t i = 0; i < TextPool::kMaxJobs; ++i) pool_.Run(TextPool::Kind::kOther, Job("a"));
  pool_.Run(TextPool::Kind::kOther, Job("b"));
  EXPECT_EQ(log(), std::vector<std::string>{"b full"});
  pool_.Run(TextPool::Kind::kGenerate, Job("c"));
  EXPECT_EQ(log().size(), 1u);
}

TEST_F(TextPoolTest, RefusesTooManyBytesUntilTheyAreGone) {
  pool_.Run(TextPool::Kind::kGenerate, Job("a", TextPool::kMaxBytes));
  pool_.Run(TextPool::Kind::kGenerate, Job("b"));
  Release();
  WaitUntilIdle();
  pool_.Run(TextPool::Kind::kGenerate, Job("c"));
  WaitUntilIdle();
  EXPECT_EQ(log(), (std::vector<std::string>{"b full", "a", "c"}));
}

TEST_F(TextPoolTest, RefusesWhatWaitsWhenItStops) {
  pool_.Run(TextPool::Kind::kOther, Job("waits"));
  std::thread stopper([this] { pool_.Stop(); });
  while (log().empty()) std::this_thread::yield();
  EXPECT_EQ(log(), std::vector<std::string>{"waits stopped"});
  Release();
  stopper.join();
  pool_.Run(TextPool::Kind::kOther, Job("late"));
  EXPECT_EQ(log().back(), "late stopped");
}

}  // namespace
}  // namespace sluice::server
