#include "server/admission.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/base/status.h"

namespace sluice::server {
namespace {

using engine::Time;
using std::chrono::milliseconds;
using std::chrono::seconds;

class AdmissionTest : public testing::Test {
 protected:
  void SetPolicy(const std::string& json) {
    auto policy = TenantPolicy::Parse(json);
    ASSERT_TRUE(policy.ok()) << policy.status();
    admission_.SetPolicy(*std::move(policy));
  }
  std::unique_ptr<Admission::Ticket> Enter(const std::string& tenant = "acme", int64_t bytes = 10) {
    error_ = {};
    return admission_.Enter(tenant, bytes, now_, &error_);
  }
  // Enters and reserves; null when either is refused.
  std::unique_ptr<Admission::Ticket> Reserve(const Admission::Demand& demand,
                                             const std::string& tenant = "acme") {
    auto ticket = Enter(tenant);
    if (ticket == nullptr) return nullptr;
    const auto error = ticket->Reserve(demand, now_);
    if (!error) return ticket;
    error_ = *error;
    return nullptr;
  }
  // And an engine takes it.
  std::unique_ptr<Admission::Ticket> Admit(const Admission::Demand& demand,
                                           const std::string& tenant = "acme") {
    auto ticket = Reserve(demand, tenant);
    if (ticket != nullptr) ticket->Accepted();
    return ticket;
  }
  static Admission::Demand Tokens(int64_t prompt, int64_t positions = 0) {
    Admission::Demand demand;
    demand.prompt_tokens = prompt;
    demand.positions = positions;
    demand.pool_positions = 1000;
    return demand;
  }
  void ExpectQuota() {
    EXPECT_EQ(error_.code, absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(error_.reason, "QUOTA_EXCEEDED");
    ASSERT_TRUE(error_.quota.has_value());
    EXPECT_EQ(error_.quota->field, "tenant:acme");
  }
  // One call ends every second while others wait.
  void EndOneASecond() {
    for (int i = 0; i < 30; ++i) {
      Enter()->Ended(5, now_);
      now_ += seconds(1);
    }
  }
  double RetrySeconds() const {
    return error_.retry_after ? static_cast<double>(error_.retry_after->count()) * 1e-3 : -1;
  }

  Admission admission_{{.max_waiting_tokens = 100, .max_waiting_bytes = 1000}};
  Time now_{std::chrono::hours(1)};
  RpcError error_;
};

TEST_F(AdmissionTest, LetsEverybodyInWithoutLimits) {
  std::vector<std::unique_ptr<Admission::Ticket>> tickets;
  for (int i = 0; i < 50; ++i) {
    tickets.push_back(Admit(Tokens(2, 1'000'000)));
    ASSERT_NE(tickets.back(), nullptr) << error_.message;
  }
  EXPECT_EQ(admission_.waiting_tokens(), 100);
  EXPECT_EQ(admission_.waiting_bytes(), 500);
  tickets.clear();
  EXPECT_EQ(admission_.waiting_tokens(), 0);
  EXPECT_EQ(admission_.waiting_bytes(), 0);
  EXPECT_EQ(admission_.Read()["other"].tokens, 100u);
  EXPECT_EQ(admission_.Read()["other"].open, 0);
}

TEST_F(AdmissionTest, BoundsWhatWaits) {
  const auto first = Admit(Tokens(60));
  EXPECT_EQ(Admit(Tokens(41)), nullptr);
  EXPECT_EQ(error_.reason, "QUEUE_FULL");
  EXPECT_TRUE(error_.pushback);
  EXPECT_NE(Admit(Tokens(40)), nullptr);
  // With its first token the call waits no longer.
  first->Generated(1, now_);
  EXPECT_NE(Admit(Tokens(100)), nullptr);
  const auto half = Enter("acme", 500);
  EXPECT_EQ(Enter("acme", 501), nullptr);
  EXPECT_EQ(error_.reason, "QUEUE_FULL");
  EXPECT_TRUE(error_.pushback);
}

TEST_F(AdmissionTest, AsksForNoRetryOfWhatIsAboveTheBoundsByItself) {
  EXPECT_NE(Enter("acme", 1000), nullptr);
  EXPECT_EQ(Enter("acme", 1001), nullptr);
  EXPECT_EQ(error_.reason, "QUEUE_FULL");
  EXPECT_FALSE(error_.retry_after.has_value());
  EXPECT_FALSE(error_.pushback);
  EXPECT_NE(Admit(Tokens(100)), nullptr);
  EXPECT_EQ(Admit(Tokens(101)), nullptr);
  EXPECT_EQ(error_.reason, "QUEUE_FULL");
  EXPECT_FALSE(error_.retry_after.has_value());
}

TEST_F(AdmissionTest, BoundsCallsOfATenant) {
  SetPolicy(R"({"tenants": {"acme": {"max_concurrent": 2}, "none": {"max_concurrent": 0}}})");
  auto first = Enter(), second = Enter();
  EXPECT_EQ(Enter(), nullptr);
  ExpectQuota();
  EXPECT_GT(RetrySeconds(), 0);
  EXPECT_NE(Enter("other-tenant"), nullptr);
  first.reset();
  EXPECT_NE(Enter(), nullptr);
  EXPECT_EQ(Enter("none"), nullptr);
  EXPECT_FALSE(error_.retry_after.has_value());  // no retry will help
  EXPECT_EQ(admission_.Read()["acme"].refused, 1u);
}

TEST_F(AdmissionTest, RetryOfATenantComesFromItsOwnRate) {
  SetPolicy(R"({"tenants": {"acme": {"max_concurrent": 1}}})");
  for (int i = 0; i < 20; ++i) {
    auto ticket = Enter();
    ASSERT_NE(ticket, nullptr);
    now_ += milliseconds(700);
    ticket->Ended(0, now_);
  }
  const auto running = Enter();
  EXPECT_EQ(Enter(), nullptr);
  EXPECT_NEAR(RetrySeconds(), 0.7, 0.01);
}

TEST_F(AdmissionTest, BoundsTokensOverTime) {
  SetPolicy(R"({"tenants": {"acme": {"tokens_per_second": 10, "burst_tokens": 50}}})");
  EXPECT_NE(Admit(Tokens(40)), nullptr);
  EXPECT_EQ(Admit(Tokens(30)), nullptr);
  ExpectQuota();
  EXPECT_NEAR(RetrySeconds(), 2, 0.01);  // 10 are there, 30 needed
  now_ += milliseconds(1990);
  EXPECT_EQ(Admit(Tokens(30)), nullptr);
  now_ += milliseconds(20);
  EXPECT_NE(Admit(Tokens(30)), nullptr);
  // What is generated makes a debt, which nothing is let in before it is paid.
  now_ += seconds(100);
  const auto running = Admit(Tokens(1));
  running->Generated(99, now_);
  EXPECT_EQ(Enter(), nullptr);
  EXPECT_NEAR(RetrySeconds(), 5.1, 0.01);
  now_ += milliseconds(5200);
  EXPECT_NE(Enter(), nullptr);
  // A prompt above the burst needs a full bucket.
  now_ += seconds(100);
  EXPECT_NE(Admit(Tokens(90)), nullptr);
  EXPECT_EQ(Enter(), nullptr);
}

TEST_F(AdmissionTest, WhatNoEngineTookIsNotSpent) {
  SetPolicy(R"({"tenants": {"acme": {"tokens_per_second": 10, "burst_tokens": 50}}})");
  for (int i = 0; i < 10; ++i) {
    auto ticket = Reserve(Tokens(40));
    ASSERT_NE(ticket, nullptr) << error_.message;
    EXPECT_EQ(Reserve(Tokens(40)), nullptr);  // as long as it may come to be
    ExpectQuota();
  }
  EXPECT_EQ(admission_.Read()["acme"].tokens, 0u);
  EXPECT_NE(Admit(Tokens(40)), nullptr);
  EXPECT_EQ(admission_.Read()["acme"].tokens, 40u);
  EXPECT_EQ(Reserve(Tokens(40)), nullptr);
  // Nor is there ever more than the burst.
  now_ += seconds(100);
  Reserve(Tokens(50));
  EXPECT_NE(Admit(Tokens(50)), nullptr);
  EXPECT_EQ(Reserve(Tokens(1)), nullptr);
}

TEST_F(AdmissionTest, BoundsPositionsOfATenant) {
  SetPolicy(R"({"tenants": {"acme": {"kv_share": 0.5}}})");
  const auto first = Admit(Tokens(1, 300));
  EXPECT_EQ(Admit(Tokens(1, 201)), nullptr);
  ExpectQuota();
  EXPECT_GT(RetrySeconds(), 0);
  EXPECT_NE(Admit(Tokens(1, 200)), nullptr);
  EXPECT_EQ(Admit(Tokens(1, 501)), nullptr);
  EXPECT_FALSE(error_.retry_after.has_value());
  EXPECT_NE(Admit(Tokens(1, 900), "big"), nullptr);
  EXPECT_EQ(admission_.Read()["acme"].reserved_positions, 300);
}

TEST_F(AdmissionTest, RefusesDeadlinesThatTheQueueCannotMeet) {
  EndOneASecond();
  std::vector<std::unique_ptr<Admission::Ticket>> waiting;
  for (int i = 0; i < 10; ++i) waiting.push_back(Admit(Tokens(1)));
  Admission::Demand demand = Tokens(1);
  demand.backlog = 10;
  demand.deadline = now_ + seconds(9);
  EXPECT_EQ(Admit(demand), nullptr);
  EXPECT_EQ(error_.reason, "DEADLINE_UNMEETABLE");
  EXPECT_EQ(error_.code, absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(error_.retry_after.has_value());
  demand.deadline = now_ + seconds(11);
  EXPECT_NE(Admit(demand), nullptr);
  demand.deadline = now_ + milliseconds(1);
  demand.backlog = 0;  // nobody is before it
  EXPECT_NE(Admit(demand), nullptr);
}

TEST_F(AdmissionTest, WhatWaitsBehindACallDoesNotCountAgainstItsDeadline) {
  SetPolicy(R"({"default": {"max_priority": 9}, "tenants": {"big": {"weight": 4}}})");
  EndOneASecond();
  std::vector<std::unique_ptr<Admission::Ticket>> waiting;
  for (int i = 0; i < 40; ++i) waiting.push_back(Admit(Tokens(1)));
  Admission::Demand demand = Tokens(1);
  demand.backlog = 40;
  demand.deadline = now_ + seconds(20);
  EXPECT_EQ(Admit(demand), nullptr);
  // A higher priority is before all of them.
  demand.priority = 1;
  EXPECT_NE(Admit(demand), nullptr);
  demand.priority = 0;
  // Another tenant has its turn after one of theirs; theirs come after four of a heavier one's.
  demand.deadline = now_ + milliseconds(1500);
  EXPECT_NE(Admit(demand, "globex"), nullptr);
  demand.deadline = now_ + milliseconds(500);
  EXPECT_EQ(Admit(demand, "globex"), nullptr);
  waiting.clear();
  for (int i = 0; i < 40; ++i) waiting.push_back(Admit(Tokens(1), "big"));
  demand.deadline = now_ + milliseconds(3500);
  EXPECT_EQ(Admit(demand), nullptr);
  demand.deadline = now_ + milliseconds(4500);
  EXPECT_NE(Admit(demand), nullptr);
}

TEST_F(AdmissionTest, ACallOfManySequencesFreesAsManyPlaces) {
  for (int i = 0; i < 30; ++i) {
    Admission::Demand demand = Tokens(1);
    demand.sequences = 10;
    Admit(demand)->Ended(20, now_);
    now_ += seconds(1);
  }
  Admission::Demand many = Tokens(1);
  many.sequences = 20;
  const auto waiting = Admit(many);
  Admission::Demand demand = Tokens(1);
  demand.backlog = 20;
  demand.deadline = now_ + milliseconds(2100);
  EXPECT_NE(Admit(demand), nullptr);
  demand.deadline = now_ + milliseconds(1900);
  EXPECT_EQ(Admit(demand), nullptr);
}

TEST_F(AdmissionTest, WhatWasMeasuredBeforeAPauseRefusesNobody) {
  EndOneASecond();
  Enter()->Ended(0, now_);
  now_ += seconds(3);
  const auto waiting = Admit(Tokens(1));
  Admission::Demand demand = Tokens(1);
  demand.backlog = 1;
  demand.deadline = now_ + milliseconds(100);
  EXPECT_NE(Admit(demand), nullptr);
  // Nor when places are freed again, until that has been measured.
  Enter()->Ended(5, now_);
  EXPECT_NE(Admit(demand), nullptr);
  now_ += milliseconds(10);
  Enter()->Ended(5, now_);
  EXPECT_NE(Admit(demand), nullptr);
  now_ += seconds(1);
  Enter()->Ended(5, now_);
  demand.deadline = now_ + milliseconds(100);
  EXPECT_EQ(Admit(demand), nullptr);
}

TEST_F(AdmissionTest, TimeWithNothingToDoIsNotSlowness) {
  for (int i = 0; i < 10; ++i) {
    Enter()->Ended(/*backlog=*/1, now_);
    now_ += milliseconds(100);
    Enter()->Ended(/*backlog=*/0, now_);
    now_ += std::chrono::hours(1);
  }
  EXPECT_EQ(admission_.RetryDelay(), milliseconds(100));
}

TEST_F(AdmissionTest, RefusesWhileMemoryIsShort) {
  admission_.SetShortOfMemory(true);
  EXPECT_EQ(Enter(), nullptr);
  EXPECT_EQ(error_.reason, "QUEUE_FULL");
  EXPECT_TRUE(error_.retry_after.has_value());
  admission_.SetShortOfMemory(false);
  EXPECT_NE(Enter(), nullptr);
}

TEST_F(AdmissionTest, APolicyThatChangesKeepsTheAccounts) {
  SetPolicy(R"({"tenants": {"acme": {"max_concurrent": 2}}})");
  auto first = Enter(), second = Enter();
  SetPolicy(R"({"tenants": {"acme": {"max_concurrent": 1}}})");
  EXPECT_EQ(Enter(), nullptr);
  first.reset();
  EXPECT_EQ(Enter(), nullptr);
  second.reset();
  EXPECT_NE(Enter(), nullptr);
}

// Whatever comes in which order, nothing is left in the end and no bound is passed.
TEST_F(AdmissionTest, RandomCallsLeaveNothing) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  SetPolicy(R"({"default": {"max_concurrent": 7},
                "tenants": {"acme": {"tokens_per_second": 50, "kv_share": 0.3}}})");
  std::vector<std::unique_ptr<Admission::Ticket>> tickets;
  for (int i = 0; i < 20'000; ++i) {
    now_ += milliseconds(random() % 20);
    if (random() % 2 == 0) {
      auto ticket =
          Admit(Tokens(static_cast<int64_t>(random() % 30), static_cast<int64_t>(random() % 400)),
                random() % 2 == 0 ? "acme" : "small");
      if (ticket) tickets.push_back(std::move(ticket));
    } else if (!tickets.empty()) {
      std::swap(tickets[random() % tickets.size()], tickets.back());
      if (random() % 2 == 0) tickets.back()->Generated(3, now_);
      if (random() % 2 == 0) tickets.pop_back();
    }
    ASSERT_LE(admission_.waiting_tokens(), 100);
    ASSERT_LE(admission_.waiting_bytes(), 1000);
    ASSERT_LE(admission_.Read()["acme"].reserved_positions, 300);
    ASSERT_LE(admission_.Read()["other"].open, 7);
  }
  tickets.clear();
  for (const auto& [label, usage] : admission_.Read()) {
    EXPECT_EQ(usage.open, 0) << label;
    EXPECT_EQ(usage.reserved_positions, 0) << label;
  }
  EXPECT_EQ(admission_.waiting_tokens(), 0);
  EXPECT_EQ(admission_.waiting_bytes(), 0);
}

TEST(TenantPolicyTest, SaysWhatIsWrongAndWhere) {
  const auto message = [](const std::string& json) {
    const auto policy = TenantPolicy::Parse(json);
    return policy.ok() ? "" : engine::Message(policy.status());
  };
  EXPECT_EQ(message("{}"), "");
  EXPECT_NE(message("[]").find("expected an object"), std::string::npos);
  EXPECT_NE(message(R"({"tenant": {}})").find("unknown key \"tenant\""), std::string::npos);
  EXPECT_NE(message(R"({"tenants": {"a b": {}}})").find("is no name"), std::string::npos);
  EXPECT_EQ(message(R"({"tenants": {"a": {"weight": 0}}})").rfind("tenants.a.weight: ", 0), 0u);
  EXPECT_EQ(message(R"({"tenants": {"a": {"weight": 1.5}}})").rfind("tenants.a.weight: ", 0), 0u);
  EXPECT_EQ(message(R"({"default": {"kv_share": 1.1}})").rfind("default.kv_share: ", 0), 0u);
  EXPECT_EQ(message(R"({"default": {"max_concurrent": -1}})").rfind("default.max_concurrent", 0),
            0u);
  EXPECT_EQ(message(R"({"default": {"max_concurrent": 18446744073709551615}})")
                .rfind("default.max_concurrent", 0),
            0u);
  EXPECT_EQ(message(R"({"default": {"burst_tokens": 5}})").rfind("default.burst_tokens: ", 0), 0u);
  EXPECT_EQ(message(R"({"default": {"models": [1]}})").rfind("default.models: ", 0), 0u);
  // Of two limits the stricter might be lost.
  EXPECT_EQ(message(R"({"tenants": {"a": {"weight": 1, "kv_share": 0.1, "weight": 2}}})"),
            "tenants.a: expected each key once, got \"weight\" again");
  EXPECT_EQ(message(R"({"tenants": {"a": {"max_tokens": 1}, "b": {"max_tokens": 1}, "a": {}}})"),
            "tenants: expected each key once, got \"a\" again");
  EXPECT_EQ(message(R"({"default": {}, "default": {}})"),
            "the file: expected each key once, got \"default\" again");
  EXPECT_EQ(message(R"({"a\n": [1, [], {"b": {"": 1, "": 2}}]})"),
            "a\\x0a[2].b: expected each key once, got \"\" again");
  EXPECT_EQ(message(R"({"tenants": {"a": {"weight": 1}, "b": {"weight": 1}}, "default": {}})"), "");
}

TEST(TenantPolicyTest, TenantsWithoutAnEntryHaveTheDefault) {
  const auto policy = TenantPolicy::Parse(
      R"({"default": {"weight": 3, "models": []}, "tenants": {"acme": {"max_priority": 5}}})");
  ASSERT_TRUE(policy.ok());
  EXPECT_EQ((*policy)->Of("anybody").weight, 3);
  EXPECT_FALSE((*policy)->Of("anybody").MayUse("m"));
  EXPECT_EQ((*policy)->LabelOf("anybody"), "other");
  EXPECT_EQ((*policy)->Of("acme").weight, 1);
  EXPECT_EQ((*policy)->Of("acme").max_priority, 5);
  EXPECT_TRUE((*policy)->Of("acme").MayUse("m"));
  EXPECT_EQ((*policy)->LabelOf("acme"), "acme");
}

TEST(TenantPolicyTest, WhatIsLeftAfterAPrompt) {
  TenantLimits limits;
  engine::Request request;
  request.prompt.resize(10);
  request.stopping.max_tokens = 7;
  EXPECT_FALSE(MaxTokensOf(limits, request, 1000).has_value());
  limits.max_tokens = 50;
  EXPECT_EQ(MaxTokensOf(limits, request, 1000), 50);
  limits.kv_share = 0.05;
  EXPECT_EQ(MaxTokensOf(limits, request, 1000), 40);
  request.prompt.resize(60);
  EXPECT_EQ(MaxTokensOf(limits, request, 1000), -10);
  // Sequences share the full pages of the prompt: 33 + 3 * (2 + 1) - 1 positions.
  request.prompt.resize(34);
  request.sampling.n = 3;
  limits.kv_share = 0.041;
  EXPECT_EQ(MaxTokensOf(limits, request, 1000), 1);
}

TEST(RequestTest, CountsSharedPagesOfThePromptOnce) {
  engine::Request request;
  request.stopping.max_tokens = 5;
  const auto positions = [&](size_t num_prompt, int n) {
    request.prompt.resize(num_prompt);
    request.sampling.n = n;
    return request.max_positions();
  };
  EXPECT_EQ(positions(100, 1), 105);
  EXPECT_EQ(positions(16, 4), 4 * 21);  // the last token's page is each one's own
  EXPECT_EQ(positions(17, 4), 16 + 4 * (1 + 5));
  EXPECT_EQ(positions(1000, 8), 992 + 8 * (8 + 5));
  request.output.prompt_logprobs = 0;
  EXPECT_EQ(positions(1000, 8), 8 * 1005);
}

}  // namespace
}  // namespace sluice::server
