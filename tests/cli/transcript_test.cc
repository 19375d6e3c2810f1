#include "cli/transcript.h"

#include <cstdio>
#include <cstdlib>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sluice::cli {
namespace {

using engine::TokenChunk;
using std::chrono::milliseconds;
using testing::HasSubstr;

const engine::Time kStart{std::chrono::seconds(1000)};

// A stream into memory.
class TranscriptTest : public testing::Test {
 protected:
  TranscriptTest() : out_(open_memstream(&text_, &size_)) {}
  ~TranscriptTest() override {
    std::fclose(out_);
    std::free(text_);
  }
  std::string Text() {
    std::fflush(out_);
    return std::string(text_, size_);
  }
  static TokenChunk Chunk(int index, std::vector<engine::TokenId> ids, std::string text) {
    TokenChunk chunk;
    chunk.index = index;
    chunk.token_ids = std::move(ids);
    chunk.text = std::move(text);
    return chunk;
  }
  static TokenChunk End(int index, engine::FinishReason reason) {
    TokenChunk chunk;
    chunk.index = index;
    chunk.sequence_end.emplace();
    chunk.sequence_end->reason = reason;
    return chunk;
  }

  char* text_ = nullptr;
  size_t size_ = 0;
  std::FILE* out_;
};

TEST_F(TranscriptTest, StreamsOneSequenceAsItComes) {
  Transcript transcript(out_, Transcript::Form::kText, 1, kStart);
  EXPECT_TRUE(transcript.Add(Chunk(0, {5}, " Par"), kStart + milliseconds(20)));
  EXPECT_EQ(Text(), " Par");
  EXPECT_TRUE(transcript.Add(Chunk(0, {6, 7}, "is."), kStart + milliseconds(40)));
  EXPECT_TRUE(transcript.Add(End(0, engine::FinishReason::kLength), kStart + milliseconds(40)));
  transcript.Finish();
  EXPECT_EQ(Text(), " Paris.\n");
}

TEST_F(TranscriptTest, MeasuresFromTheFirstToken) {
  Transcript transcript(out_, Transcript::Form::kText, 1, kStart);
  transcript.Add(Chunk(0, {5}, "a"), kStart + milliseconds(20));
  transcript.Add(Chunk(0, {6, 7}, "b"), kStart + milliseconds(40));
  transcript.Add(End(0, engine::FinishReason::kEos), kStart + milliseconds(50));
  engine::Usage usage;
  usage.prompt_tokens = 4;
  const std::string summary = transcript.Summary(usage);
  EXPECT_THAT(summary, HasSubstr("3 tokens (eos)"));
  EXPECT_THAT(summary, HasSubstr("100.0 tokens/s"));  // two tokens in 20 ms
  EXPECT_THAT(summary, HasSubstr("first token after 20.0 ms"));
  EXPECT_THAT(summary, HasSubstr("prompt of 4 tokens"));
}

TEST_F(TranscriptTest, PrintsSeveralSequencesWhole) {
  Transcript transcript(out_, Transcript::Form::kText, 2, kStart);
  transcript.Add(Chunk(0, {1}, "a"), kStart);
  transcript.Add(Chunk(1, {1}, "x"), kStart);
  EXPECT_EQ(Text(), "");
  transcript.Add(Chunk(1, {2}, "y"), kStart);
  transcript.Add(End(1, engine::FinishReason::kStop), kStart);
  transcript.Add(Chunk(0, {2}, "b\n"), kStart);
  transcript.Add(End(0, engine::FinishReason::kLength), kStart);
  transcript.Finish();
  EXPECT_EQ(Text(), "--- sequence 1 ---\nxy\n--- sequence 0 ---\nab\n");
}

TEST_F(TranscriptTest, PrintsIdsAndLogprobs) {
  Transcript transcript(out_, Transcript::Form::kTokenIds, 1, kStart);
  TokenChunk chunk = Chunk(0, {504, 28}, "never shown");
  chunk.logprobs.push_back({504, -0.5f, {{504, -0.5f}, {28, -1.25f}}});
  chunk.logprobs.push_back({28, -2.0f, {}});
  transcript.Add(chunk, kStart);
  transcript.Add(End(0, engine::FinishReason::kLength), kStart);
  transcript.Finish();
  EXPECT_EQ(Text(), "504 28 \n504 -0.500000 | 504 -0.500000, 28 -1.250000\n28 -2.000000\n");
}

TEST_F(TranscriptTest, NoticesAClosedOutput) {
  std::FILE* const full = std::fopen("/dev/full", "w");
  ASSERT_NE(full, nullptr);
  Transcript transcript(full, Transcript::Form::kText, 1, kStart);
  EXPECT_FALSE(transcript.Add(Chunk(0, {1}, "a"), kStart));
  std::fclose(full);
}

}  // namespace
}  // namespace sluice::cli
