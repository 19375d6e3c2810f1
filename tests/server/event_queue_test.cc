#include "server/event_queue.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace sluice::server {
namespace {

using engine::TokenChunk;

TokenChunk Chunk(int index, int position, std::vector<engine::TokenId> ids, std::string text) {
  TokenChunk chunk;
  chunk.index = index;
  chunk.position = position;
  chunk.token_ids = std::move(ids);
  chunk.text = std::move(text);
  return chunk;
}

TokenChunk EndOf(TokenChunk chunk, engine::FinishReason reason) {
  chunk.sequence_end.emplace();
  chunk.sequence_end->reason = reason;
  return chunk;
}

v1::Accepted Acceptance() {
  v1::Accepted accepted;
  accepted.set_request_id("r");
  return accepted;
}

engine::OutputParams TextAndIds() {
  engine::OutputParams output;
  output.return_token_ids = true;
  return output;
}

std::vector<std::string> Drain(EventQueue& queue) {
  std::vector<std::string> names;
  while (auto event = queue.Next()) {
    EXPECT_EQ(static_cast<size_t>(event->event_seq()), names.size());
    switch (event->event_case()) {
      case v1::GenerateResponse::kAccepted:
        names.push_back("accepted");
        break;
      case v1::GenerateResponse::kProgress:
        names.push_back("progress " + std::to_string(event->progress().prompt_tokens_done()));
        break;
      case v1::GenerateResponse::kDelta:
        names.push_back("delta " + std::to_string(event->delta().index()) + " at " +
                        std::to_string(event->delta().position()) + " " + event->delta().text());
        break;
      case v1::GenerateResponse::kSequenceFinished:
        names.push_back("end " + std::to_string(event->sequence_finished().index()));
        break;
      case v1::GenerateResponse::kRequestFinished:
        names.push_back("finished");
        break;
      case v1::GenerateResponse::kPromptLogprobs:
        names.push_back("prompt " + std::to_string(event->prompt_logprobs().position()) + " +" +
                        std::to_string(event->prompt_logprobs().logprobs_size()));
        break;
      case v1::GenerateResponse::EVENT_NOT_SET:
        names.push_back("nothing");
    }
  }
  return names;
}

TEST(EventQueueTest, GivesPromptLogprobsInSlabsBeforeTheText) {
  EventQueue queue(Acceptance(), TextAndIds(), 1);
  TokenChunk scores;
  scores.prompt_position = 1;
  scores.prompt_logprobs.resize(200);
  queue.Add(TokenChunk(scores));
  EXPECT_EQ(Drain(queue), (std::vector<std::string>{"accepted", "prompt 1 +200"}));
  EXPECT_EQ(queue.waiting_bytes(), 0u);
  for (int i = 1; i <= 2; ++i) {
    scores.prompt_position += 200;
    queue.Add(TokenChunk(scores));
  }
  queue.Add(EndOf(Chunk(0, 0, {5}, "a"), engine::FinishReason::kLength));
  EXPECT_GT(queue.waiting_bytes(), 400 * sizeof(engine::TokenLogprobs));
  std::vector<std::string> names;
  while (auto event = queue.Next()) {
    if (event->has_prompt_logprobs()) {
      names.push_back(std::to_string(event->prompt_logprobs().position()) + " +" +
                      std::to_string(event->prompt_logprobs().logprobs_size()));
    } else {
      names.push_back(event->has_delta() ? "delta" : "end");
    }
  }
  EXPECT_EQ(names, (std::vector<std::string>{"201 +256", "457 +144", "delta", "end"}));
  EXPECT_EQ(queue.waiting_bytes(), 0u);
}

TEST(EventQueueTest, HoldsTheAcceptanceForTheFirstMessageAfterIt) {
  EventQueue queue(Acceptance(), TextAndIds(), 1);
  EXPECT_FALSE(queue.ready());
  EXPECT_FALSE(queue.Next().has_value());
  queue.Add(Chunk(0, 0, {7}, "a"));
  EXPECT_EQ(Drain(queue), (std::vector<std::string>{"accepted", "delta 0 at 0 a"}));
  EXPECT_EQ(queue.tokens_sent(), 1);
}

TEST(EventQueueTest, SendsTheAcceptanceAtOnceWhenProgressIsReported) {
  engine::OutputParams output = TextAndIds();
  output.report_progress = true;
  EventQueue queue(Acceptance(), output, 1);
  EXPECT_TRUE(queue.ready());
  TokenChunk progress = Chunk(0, 0, {}, "");
  progress.admitted = true;
  progress.prompt_tokens_done = 5;
  queue.Add(std::move(progress));
  queue.Add(Chunk(0, 0, {7}, "a"));
  EXPECT_EQ(Drain(queue), (std::vector<std::string>{"accepted", "progress 5", "delta 0 at 0 a"}));
}

TEST(EventQueueTest, SaysWhereInTheQueueARequestIs) {
  engine::OutputParams output = TextAndIds();
  output.report_progress = true;
  EventQueue queue(Acceptance(), output, 1);
  EXPECT_TRUE(queue.Next()->has_accepted());
  std::vector<int> places;
  for (const int place : {3, 3, 1, 0}) {
    TokenChunk chunk = Chunk(0, 0, {}, "");
    chunk.queue_position = place;
    queue.Add(std::move(chunk));
    while (const auto event = queue.Next()) places.push_back(event->progress().queue_position());
  }
  EXPECT_EQ(places, (std::vector<int>{3, 1, 0}));
}

TEST(EventQueueTest, MergesWhatWaitsAndCountsItsBytes) {
  EventQueue queue(Acceptance(), TextAndIds(), 2);
  queue.Add(Chunk(0, 0, {7}, "a"));
  queue.Add(Chunk(1, 0, {8}, "x"));
  queue.Add(Chunk(0, 1, {9, 9}, "bc"));
  EXPECT_EQ(queue.waiting_bytes(), 4 * sizeof(engine::TokenId) + 4);
  EXPECT_EQ(Drain(queue),
            (std::vector<std::string>{"accepted", "delta 0 at 0 abc", "delta 1 at 0 x"}));
  EXPECT_EQ(queue.waiting_bytes(), 0u);
  EXPECT_EQ(queue.tokens_sent(), 4);
}

TEST(EventQueueTest, FinishesTheRequestAfterEverySequenceWhateverTheOrderOfChunks) {
  EventQueue queue(Acceptance(), TextAndIds(), 2);
  TokenChunk last = EndOf(Chunk(0, 0, {7}, "a"), engine::FinishReason::kLength);
  last.request_end.emplace();
  queue.Add(std::move(last));
  queue.Add(EndOf(Chunk(1, 0, {8}, "x"), engine::FinishReason::kStop));
  EXPECT_EQ(Drain(queue), (std::vector<std::string>{"accepted", "delta 0 at 0 a", "end 0",
                                                    "delta 1 at 0 x", "end 1", "finished"}));
  EXPECT_TRUE(queue.finished());
  EXPECT_EQ(queue.finish_reason(), engine::FinishReason::kLength);
  EXPECT_FALSE(queue.ready());
}

TEST(EventQueueTest, KeepsTokensWithoutVisibleTextForTheNextDelta) {
  EventQueue queue(Acceptance(), engine::OutputParams{}, 1);
  queue.Add(Chunk(0, 0, {7}, ""));
  EXPECT_FALSE(queue.ready());
  queue.Add(Chunk(0, 1, {8}, "ab"));
  EXPECT_EQ(Drain(queue), (std::vector<std::string>{"accepted", "delta 0 at 0 ab"}));
}

TEST(EventQueueTest, HoldsNothingThatTheClientDidNotAskFor) {
  engine::OutputParams output;
  output.return_text = false;
  EventQueue queue(Acceptance(), output, 1);
  for (int i = 0; i < 1000; ++i) queue.Add(Chunk(0, i, {7}, "some text"));
  EXPECT_EQ(queue.waiting_bytes(), 0u);
  TokenChunk last = EndOf(Chunk(0, 1000, {7}, "end"), engine::FinishReason::kLength);
  last.request_end.emplace();
  queue.Add(std::move(last));
  EXPECT_EQ(Drain(queue), (std::vector<std::string>{"accepted", "end 0", "finished"}));
}

TEST(EventQueueTest, CountsTheTokensOfTextWithoutTheirIds) {
  EventQueue queue(Acceptance(), engine::OutputParams{}, 1);
  queue.Add(Chunk(0, 3, {7, 8}, "ab"));
  queue.Add(Chunk(0, 5, {9}, "c"));
  EXPECT_EQ(queue.waiting_bytes(), 3u);
  EXPECT_EQ(Drain(queue), (std::vector<std::string>{"accepted", "delta 0 at 3 abc"}));
  EXPECT_EQ(queue.tokens_sent(), 3);
}

TEST(EventQueueTest, SaysWhenSoMuchWaitsThatTheReaderHasStopped) {
  EventQueue queue(Acceptance(), TextAndIds(), 2);
  queue.Add(Chunk(0, 0, {1}, "a"));
  EXPECT_TRUE(queue.little_waits());
  for (int i = 1; i < 128; ++i) queue.Add(Chunk(0, i, {1}, "a"));
  EXPECT_FALSE(queue.much_waits());  // of two sequences
  EXPECT_FALSE(queue.little_waits());
  queue.Add(Chunk(1, 0, {1}, "a"));
  EXPECT_TRUE(queue.much_waits());
  Drain(queue);
  EXPECT_TRUE(queue.little_waits());

  engine::OutputParams interval = TextAndIds();
  interval.stream_interval = 100;
  EventQueue seldom(Acceptance(), interval, 1);
  seldom.Add(Chunk(0, 0, std::vector<engine::TokenId>(100, 1), "a"));
  EXPECT_FALSE(seldom.much_waits());  // one delta, as asked for
}

// What is held back leaves no way out by itself: it must never count as waiting for the reader.
TEST(EventQueueTest, TokensWithoutVisibleTextDoNotWaitForTheReader) {
  EventQueue queue(Acceptance(), {}, 2);
  queue.Add(Chunk(1, 0, std::vector<engine::TokenId>(500, 1), ""));
  queue.Add(Chunk(0, 0, {1}, "a"));
  EXPECT_FALSE(queue.much_waits());
  EXPECT_TRUE(queue.little_waits());
}

TEST(EventQueueTest, TakesNothingAfterAnEngineWasGivenUp) {
  EventQueue queue(Acceptance(), TextAndIds(), 1);
  queue.Add(Chunk(0, 0, {1}, "a"));
  TokenChunk end = Chunk(0, 1, {}, "");
  end.request_end.emplace();
  end.request_end->status = absl::InternalError("it hangs");
  end.request_end->error_reason = "ENGINE_FAULT";
  queue.Add(std::move(end));
  TokenChunk late = Chunk(0, 1, {2}, "b");
  late.request_end.emplace();
  queue.Add(std::move(late));
  EXPECT_EQ(queue.end()->error_reason, "ENGINE_FAULT");
  Drain(queue);
  EXPECT_EQ(queue.tokens_sent(), 1);
}

TEST(EventQueueTest, SaysNothingOfARequestThatFailedBeforeItsFirstToken) {
  EventQueue queue(Acceptance(), TextAndIds(), 1);
  TokenChunk failed = EndOf(Chunk(0, 0, {}, ""), engine::FinishReason::kError);
  failed.request_end.emplace();
  failed.request_end->status = absl::UnavailableError("down");
  queue.Add(std::move(failed));
  EXPECT_TRUE(Drain(queue).empty());
  ASSERT_TRUE(queue.end().has_value());
  EXPECT_FALSE(queue.end()->status.ok());
}

TEST(EventQueueTest, TakesOnlyTheEndAfterItWasAbandoned) {
  EventQueue queue(Acceptance(), TextAndIds(), 1);
  queue.Add(Chunk(0, 0, {7}, "a"));
  queue.Abandon();
  EXPECT_EQ(queue.waiting_bytes(), 0u);
  TokenChunk last = Chunk(0, 1, {7}, "a");
  last.request_end.emplace();
  queue.Add(std::move(last));
  EXPECT_FALSE(queue.ready());
  EXPECT_TRUE(queue.end().has_value());
  EXPECT_EQ(queue.waiting_bytes(), 0u);
}

}  // namespace
}  // namespace sluice::server
