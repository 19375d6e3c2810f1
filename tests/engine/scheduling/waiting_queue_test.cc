#include "engine/waiting_queue.h"

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace sluice::engine {
namespace {

// The queue never looks into a sequence: a number stands for one.
Sequence* Fake(uint64_t id) { return reinterpret_cast<Sequence*>(id); }
uint64_t IdOf(const Sequence* sequence) { return reinterpret_cast<uint64_t>(sequence); }
bool Always(const Sequence&) { return true; }

class WaitingQueueTest : public testing::Test {
 protected:
  void Add(const std::string& tenant, int64_t tokens, int weight = 1) {
    const uint64_t id = ++last_;
    tenant_of_[id] = tenant;
    tokens_of_[id] = tokens;
    queue_.Add({tenant, weight}, SequenceId{id}, tokens, Fake(id));
  }
  void AddHigh() {
    const uint64_t id = ++last_;
    queue_.Add({"a", 1, 5}, SequenceId{id}, 10, Fake(id));
  }
  // Takes the next; 0 when there is none.
  uint64_t Take() {
    Sequence* next = queue_.Next(Always);
    if (next == nullptr) return 0;
    queue_.Take(SequenceId{IdOf(next)}, Always);
    taken_tokens_[tenant_of_[IdOf(next)]] += tokens_of_[IdOf(next)];
    return IdOf(next);
  }

  WaitingQueue queue_{100};
  uint64_t last_ = 0;
  std::map<uint64_t, std::string> tenant_of_;
  std::map<uint64_t, int64_t> tokens_of_;
  std::map<std::string, int64_t> taken_tokens_;
};

TEST_F(WaitingQueueTest, OneTenantIsServedInOrderOfArrival) {
  for (int64_t tokens : {5, 100'000, 1, 300, 7}) Add("a", tokens);
  for (uint64_t id = 1; id <= 5; ++id) EXPECT_EQ(Take(), id);
  EXPECT_EQ(Take(), 0u);
  EXPECT_TRUE(queue_.empty());
}

TEST_F(WaitingQueueTest, AFloodDoesNotDelayAnotherTenant) {
  for (int i = 0; i < 1000; ++i) Add("flood", 50);
  Add("quiet", 50);
  const uint64_t quiet = last_;
  int before = 0;
  while (Take() != quiet) ++before;
  EXPECT_LE(before, 2);  // a quantum
}

TEST_F(WaitingQueueTest, TenantsGetTokensByWeightWhateverTheirLengths) {
  std::mt19937_64 random(20240601);
  for (int i = 0; i < 4000; ++i) {
    Add("short", 1 + static_cast<int64_t>(random() % 20), 1);
    Add("long", 1 + static_cast<int64_t>(random() % 2000), 1);
    Add("double", 1 + static_cast<int64_t>(random() % 300), 2);
  }
  // As long as all three have something waiting.
  while (taken_tokens_["short"] < 30'000) ASSERT_NE(Take(), 0u);
  const double fair = static_cast<double>(taken_tokens_["short"]);
  EXPECT_NEAR(static_cast<double>(taken_tokens_["long"]) / fair, 1, 0.1);
  EXPECT_NEAR(static_cast<double>(taken_tokens_["double"]) / fair, 2, 0.2);
}

TEST_F(WaitingQueueTest, NobodyIsOvertakenWhileItsTurnLasts) {
  Add("a", 1000);
  Sequence* first = queue_.Next(Always);
  for (int i = 0; i < 10; ++i) Add("b", 1);
  EXPECT_EQ(queue_.Next(Always), first);
  EXPECT_EQ(Take(), IdOf(first));
}

TEST_F(WaitingQueueTest, HigherPrioritiesGoFirstWithinTheirTenantAlone) {
  Add("a", 10);
  Add("b", 10);
  queue_.Add({"a", 1, 5}, SequenceId{101}, 10, Fake(101));
  queue_.Add({"a", 1, -1}, SequenceId{102}, 10, Fake(102));
  queue_.Add({"a", 1, 5}, SequenceId{103}, 10, Fake(103));
  std::vector<uint64_t> of_a;
  while (Sequence* next = queue_.Next(Always)) {
    const uint64_t id = IdOf(next);
    if (id != 2) of_a.push_back(id);
    queue_.Take(SequenceId{id}, Always);
  }
  EXPECT_EQ(of_a, (std::vector<uint64_t>{101, 103, 1, 102}));
}

// Higher priorities keep coming: the low ones get one place of 17, in order of arrival.
TEST_F(WaitingQueueTest, LowPrioritiesWaitForSoManyAndNoLonger) {
  for (uint64_t id = 1; id <= 3; ++id) queue_.Add({"a", 1, -1}, SequenceId{id}, 10, Fake(id));
  last_ = 3;
  std::vector<int> before;
  int count = 0;
  for (int i = 0; i < 60; ++i) {
    AddHigh();
    Sequence* next = queue_.Next(Always);
    EXPECT_EQ(queue_.Next(Always), next);
    const int overtaken = queue_.Take(SequenceId{IdOf(next)}, Always);
    EXPECT_EQ(overtaken, IdOf(next) <= 3 ? WaitingQueue::kMostOvertakings : 0);
    ++count;
    if (IdOf(next) <= 3) before.push_back(count);
  }
  EXPECT_EQ(before, (std::vector<int>{17, 34, 51}));
}

// A stalled one neither takes the place of those behind it nor counts who passes.
TEST_F(WaitingQueueTest, WhoIsNotReadyIsNotOvertaken) {
  for (uint64_t id = 1; id <= 2; ++id) queue_.Add({"a", 1, -1}, SequenceId{id}, 10, Fake(id));
  last_ = 2;
  const auto not_first = [](const Sequence& sequence) { return IdOf(&sequence) != 1; };
  for (int i = 0; i < 17; ++i) {
    AddHigh();
    Sequence* next = queue_.Next(not_first);
    EXPECT_EQ(IdOf(next) == 2, i == 16);
    queue_.Take(SequenceId{IdOf(next)}, not_first);
  }
  AddHigh();
  EXPECT_NE(IdOf(queue_.Next(Always)), 1u);
}

// What it had to bear before it was preempted counts.
TEST_F(WaitingQueueTest, RemembersOvertakings) {
  queue_.Add({"a", 1, -1, 15}, SequenceId{1}, 10, Fake(1));
  for (uint64_t id = 2; id <= 4; ++id) queue_.Add({"a", 1, 5}, SequenceId{id}, 10, Fake(id));
  last_ = 4;
  EXPECT_EQ(Take(), 2u);
  EXPECT_EQ(Take(), 1u);
  EXPECT_EQ(Take(), 3u);
}

TEST_F(WaitingQueueTest, PassesOverWhatIsNotReady) {
  Add("a", 10);
  Add("a", 10);
  Add("b", 10);
  const auto not_first = [](const Sequence& sequence) { return IdOf(&sequence) != 1; };
  std::set<uint64_t> taken;
  while (Sequence* next = queue_.Next(not_first)) {
    taken.insert(IdOf(next));
    queue_.Take(SequenceId{IdOf(next)}, not_first);
  }
  EXPECT_EQ(taken, (std::set<uint64_t>{2, 3}));
  EXPECT_EQ(queue_.size(), 1u);
  EXPECT_EQ(Take(), 1u);
}

TEST_F(WaitingQueueTest, WhoHasNothingWaitingSavesNothing) {
  Add("idle", 1);
  Add("busy", 1);
  while (Take() != 0) {
  }
  for (int i = 0; i < 100; ++i) Add("busy", 100);
  for (int i = 0; i < 50; ++i) Take();
  taken_tokens_.clear();
  for (int i = 0; i < 100; ++i) Add("idle", 100);
  for (int i = 0; i < 20; ++i) Take();
  EXPECT_NEAR(static_cast<double>(taken_tokens_["idle"]), 1000, 200);
}

TEST_F(WaitingQueueTest, PlacesAreCountedWithinATenant) {
  queue_.Add({"a", 1, 0}, SequenceId{1}, 5, Fake(1));
  queue_.Add({"b", 1, 0}, SequenceId{2}, 5, Fake(2));
  queue_.Add({"a", 1, 0}, SequenceId{3}, 5, Fake(3));
  queue_.Add({"a", 1, 2}, SequenceId{4}, 5, Fake(4));  // of higher priority
  const auto places = [&] {
    std::map<uint64_t, int> places;
    queue_.ForEach([&](const Sequence& sequence, int place) { places[IdOf(&sequence)] = place; });
    return places;
  };
  EXPECT_EQ(places(), (std::map<uint64_t, int>{{4, 0}, {1, 1}, {3, 2}, {2, 0}}));
  const uint64_t before = queue_.num_changes();
  EXPECT_TRUE(queue_.Remove(SequenceId{1}));
  EXPECT_GT(queue_.num_changes(), before);
  EXPECT_EQ(places(), (std::map<uint64_t, int>{{4, 0}, {3, 1}, {2, 0}}));
}

// Everything that waits is given once, whatever is added, taken and removed in between, and
// nobody waits for more than its fair time.
TEST_F(WaitingQueueTest, RandomOperationsAgreeWithASet) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  std::set<uint64_t> waiting;
  for (int i = 0; i < 100'000; ++i) {
    const uint64_t choice = random() % 8;
    if (choice < 3) {
      Add(std::string(1, static_cast<char>('a' + random() % 5)),
          static_cast<int64_t>(random() % 3000), 1 + static_cast<int>(random() % 3));
      waiting.insert(last_);
    } else if (choice == 3 && last_ > 0) {
      const uint64_t id = 1 + random() % last_;
      EXPECT_EQ(queue_.Remove(SequenceId{id}), waiting.erase(id) == 1);
    } else {
      const uint64_t id = Take();
      EXPECT_EQ(id == 0, waiting.empty());
      if (id != 0) {
        // The oldest of its tenant.
        for (const uint64_t other : waiting) {
          if (tenant_of_[other] == tenant_of_[id]) {
            EXPECT_EQ(other, id);
            break;
          }
        }
        EXPECT_EQ(waiting.erase(id), 1u);
      }
    }
    ASSERT_EQ(queue_.size(), waiting.size());
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace sluice::engine
