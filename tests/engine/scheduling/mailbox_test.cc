#include "engine/mailbox.h"

#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/scheduling/chunk_collector.h"

namespace sluice::engine {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::ElementsAre;

Command Submit(uint64_t handle) {
  SubmitCommand submit;
  submit.request.handle = RequestHandle{handle};
  submit.request.prompt = {1, 2, 3};
  return submit;
}

std::vector<TokenChunk> One(TokenChunk chunk) {
  std::vector<TokenChunk> chunks;
  chunks.push_back(std::move(chunk));
  return chunks;
}

TokenChunk Chunk(uint64_t handle, int index, int position, std::vector<TokenId> tokens) {
  TokenChunk chunk;
  chunk.request = RequestHandle{handle};
  chunk.index = index;
  chunk.position = position;
  chunk.token_ids = std::move(tokens);
  return chunk;
}

TEST(CommandMailboxTest, BoundsSubmissionsAndLeavesARefusedOneUntouched) {
  CommandMailbox mailbox(2);
  EXPECT_TRUE(mailbox.Post(Submit(1)).ok());
  EXPECT_TRUE(mailbox.Post(Submit(2)).ok());
  Command third = Submit(3);
  EXPECT_TRUE(absl::IsResourceExhausted(mailbox.Post(std::move(third))));
  EXPECT_EQ(std::get<SubmitCommand>(third).request.prompt.size(), 3u);
  EXPECT_TRUE(mailbox.Post(PauseCommand{RequestHandle{1}}).ok());
  EXPECT_EQ(mailbox.Drain(false).size(), 3u);
  EXPECT_TRUE(mailbox.Post(std::move(third)).ok());
  mailbox.Close();
  EXPECT_TRUE(absl::IsUnavailable(mailbox.Post(Submit(4))));
  EXPECT_EQ(mailbox.Drain(true).size(), 1u);  // what was accepted is still there
  EXPECT_TRUE(mailbox.Drain(true).empty());
}

TEST(CommandMailboxTest, DrainWaitsUntilItsTime) {
  CommandMailbox mailbox(2);
  const auto begin = steady_clock::now();
  EXPECT_TRUE(mailbox.Drain(true, begin + milliseconds(20)).empty());
  EXPECT_GE(steady_clock::now() - begin, milliseconds(20));
  EXPECT_TRUE(mailbox.Drain(false).empty());
}

TEST(CommandMailboxTest, CloseWakesABlockedDrain) {
  CommandMailbox mailbox(2);
  std::thread closer([&] {
    std::this_thread::sleep_for(milliseconds(10));
    mailbox.Close();
  });
  EXPECT_TRUE(mailbox.Drain(true).empty());
  closer.join();
}

TEST(CommandMailboxTest, LosesNothingUnderManyPosters) {
  CommandMailbox mailbox(64);
  constexpr int kThreads = 4;
  constexpr uint64_t kEach = 5000;
  std::vector<std::thread> posters;
  for (int t = 0; t < kThreads; ++t) {
    posters.emplace_back([&, t] {
      for (uint64_t i = 0; i < kEach;) {
        if (mailbox.Post(Submit(static_cast<uint64_t>(t) * kEach + i)).ok()) {
          ++i;
        } else {
          std::this_thread::yield();
        }
      }
    });
  }
  std::vector<uint64_t> next(kThreads);
  for (uint64_t i = 0; i < kThreads; ++i) next[i] = i * kEach;
  for (uint64_t seen = 0; seen < kThreads * kEach;) {
    const std::vector<Command> commands = mailbox.Drain(true);
    ASSERT_LE(commands.size(), 64u);
    for (const Command& command : commands) {
      const uint64_t handle = std::get<SubmitCommand>(command).request.handle.value;
      ASSERT_EQ(handle, next[handle / kEach]++);  // in order, a thread
      ++seen;
    }
  }
  for (std::thread& poster : posters) poster.join();
}

TEST(TokenChunkTest, MergeJoinsWhatFollows) {
  TokenChunk chunk = Chunk(7, 0, 0, {});
  chunk.admitted = true;
  chunk.queue_position = 4;
  TokenChunk first = Chunk(7, 0, 3, {10, 11});
  first.text = "ab";
  first.logprobs = {{10, -1.0f, {}}, {11, -2.0f, {}}};
  first.preemptions = 2;
  chunk.Merge(std::move(first));
  TokenChunk second = Chunk(7, 0, 5, {12});
  second.text = "c";
  second.logprobs = {{12, -3.0f, {}}};
  second.sequence_end = SequenceEnd{FinishReason::kLength, {}, std::nullopt};
  second.request_end.emplace();
  chunk.Merge(std::move(second));
  EXPECT_TRUE(chunk.admitted);
  EXPECT_EQ(chunk.queue_position, 0) << "the last that was told";
  EXPECT_EQ(chunk.position, 3);
  EXPECT_THAT(chunk.token_ids, ElementsAre(10, 11, 12));
  EXPECT_EQ(chunk.text, "abc");
  ASSERT_EQ(chunk.logprobs.size(), 3u);
  EXPECT_EQ(chunk.logprobs[2].token, 12);
  EXPECT_EQ(chunk.preemptions, 2);
  ASSERT_TRUE(chunk.sequence_end);
  EXPECT_EQ(chunk.sequence_end->reason, FinishReason::kLength);
  EXPECT_TRUE(chunk.request_end);
}

TEST(ChunkMailboxTest, MergesWhatWaits) {
  ChunkMailbox mailbox(1);
  mailbox.Post(One(Chunk(1, 0, 0, {5})));
  mailbox.Post(One(Chunk(2, 0, 0, {6})));
  mailbox.Post(One(Chunk(1, 0, 1, {7})));
  const std::vector<TokenChunk> taken = mailbox.Take(0);
  ASSERT_EQ(taken.size(), 2u);
  EXPECT_THAT(taken[0].token_ids, ElementsAre(5, 7));
  EXPECT_THAT(taken[1].token_ids, ElementsAre(6));
  EXPECT_TRUE(mailbox.Take(0, steady_clock::now()).empty());
}

TEST(ChunkMailboxTest, ARequestEndsAfterAllItsSequences) {
  ChunkMailbox mailbox(1);
  for (const uint64_t handle : {1, 2}) {
    TokenChunk first = Chunk(handle, 0, 0, {handle == 1 ? 5 : 9});
    first.admitted = true;
    mailbox.Post(One(std::move(first)));
  }
  TokenChunk other = Chunk(1, 1, 0, {6});
  other.sequence_end.emplace();
  mailbox.Post(One(std::move(other)));
  TokenChunk last = Chunk(1, 0, 1, {7});
  last.sequence_end.emplace();
  last.request_end.emplace();
  mailbox.Post(One(std::move(last)));
  mailbox.Post(One(Chunk(2, 0, 1, {10})));  // finds its chunk where it has moved to
  ChunkCollector collector;
  collector.Add(mailbox.Take(0));
  EXPECT_THAT(collector.violations(), testing::IsEmpty());
  EXPECT_THAT(collector.Outcome(1).sequences.at(0).tokens, ElementsAre(5, 7));
  EXPECT_THAT(collector.Outcome(1).sequences.at(1).tokens, ElementsAre(6));
  EXPECT_THAT(collector.Outcome(2).sequences.at(0).tokens, ElementsAre(9, 10));
  EXPECT_TRUE(collector.Outcome(1).end);
}

TEST(ChunkMailboxTest, NothingFollowsTheEndOfARequest) {
  ChunkMailbox mailbox(1);
  TokenChunk end = Chunk(1, 0, 0, {5});
  end.request_end.emplace();
  end.request_end->error_reason = "ENGINE_FAULT";
  mailbox.Post(One(std::move(end)));
  TokenChunk late = Chunk(1, 0, 1, {6});
  late.request_end.emplace();
  mailbox.Post(One(std::move(late)));
  const std::vector<TokenChunk> taken = mailbox.Take(0);
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_THAT(taken[0].token_ids, ElementsAre(5));
  EXPECT_EQ(taken[0].request_end->error_reason, "ENGINE_FAULT");
}

TEST(ChunkMailboxTest, ARequestGoesThroughOneLane) {
  ChunkMailbox mailbox(3);
  for (uint64_t handle = 0; handle < 9; ++handle) mailbox.Post(One(Chunk(handle, 0, 0, {1})));
  for (int lane = 0; lane < 3; ++lane) {
    const std::vector<TokenChunk> taken = mailbox.Take(lane);
    EXPECT_EQ(taken.size(), 3u);
    for (const TokenChunk& chunk : taken)
      EXPECT_EQ(chunk.request.value % 3, static_cast<uint64_t>(lane));
  }
}

TEST(ChunkMailboxTest, CloseWakesTakeAndKeepsWhatIsThere) {
  ChunkMailbox mailbox(2);
  std::thread closer([&] {
    std::this_thread::sleep_for(milliseconds(10));
    mailbox.Close();
  });
  EXPECT_TRUE(mailbox.Take(1).empty());
  closer.join();
  mailbox.Post(One(Chunk(4, 0, 0, {1})));
  EXPECT_EQ(mailbox.Take(0).size(), 1u);
  EXPECT_TRUE(mailbox.closed());
}

// One poster with many sequences, a thread a lane: every token arrives once, in order, whatever
// was merged; nothing after an end.
TEST(ChunkMailboxTest, EveryTokenArrivesOnceInOrderUnderThreads) {
  constexpr int kLanes = 3;
  constexpr uint64_t kRequests = 48;
  constexpr int kTokens = 300;
  ChunkMailbox mailbox(kLanes);
  std::vector<ChunkCollector> collectors(kLanes);
  std::vector<std::thread> takers;
  for (int lane = 0; lane < kLanes; ++lane) {
    takers.emplace_back([&, lane] {
      ChunkCollector& collector = collectors[static_cast<size_t>(lane)];
      while (collector.num_ended() < static_cast<int>(kRequests) / kLanes)
        collector.Add(mailbox.Take(lane));
    });
  }
  for (int token = 0; token < kTokens; ++token) {
    std::vector<TokenChunk> chunks;
    for (uint64_t handle = 0; handle < kRequests; ++handle) {
      for (const int index : {0, 1}) {
        TokenChunk chunk = Chunk(handle, index, token, {token});
        chunk.admitted = token == 0 && index == 0;
        if (token == kTokens - 1) {
          chunk.sequence_end.emplace();
          if (index == 1) chunk.request_end.emplace();
        }
        chunks.push_back(std::move(chunk));
      }
    }
    mailbox.Post(std::move(chunks));
  }
  for (std::thread& taker : takers) taker.join();
  for (ChunkCollector& collector : collectors) {
    EXPECT_THAT(collector.violations(), testing::IsEmpty());
    for (const auto& [handle, request] : collector.requests()) {
      ASSERT_EQ(request.sequences.size(), 2u);
      for (const auto& [index, sequence] : request.sequences) {
        ASSERT_EQ(sequence.tokens.size(), static_cast<size_t>(kTokens));
        for (int i = 0; i < kTokens; ++i) ASSERT_EQ(sequence.tokens[static_cast<size_t>(i)], i);
      }
    }
  }
}

}  // namespace
}  // namespace sluice::engine
