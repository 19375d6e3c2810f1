// No file can crash the server: each case is one edit of a good file and goes through the loading
// that the server does, all in one process. It is refused with an error that names field and byte,
// in little time and memory, or it loads and serves; afterwards the good file gives what it gave
// before.

#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/model_file/model_file.h"
#include "tests/engine/hostile/hostile_case.h"
#include "tests/engine/hostile/load_probe.h"
#include "tests/testing/tally.h"

namespace sluice::testing {
namespace {

using engine::Message;
using ::testing::HasSubstr;

// The good file, and what it answered before anything hostile was loaded.
class GoodFile {
 public:
  explicit GoodFile(const GgufDraft& draft) : file_(draft.Bytes()), first_(LoadAndServe(path())) {
    EXPECT_TRUE(first_.status.ok()) << Message(first_.status);
    EXPECT_EQ(first_.tokens.size(), 8u);
  }
  const std::string& path() const { return file_.path(); }
  void ExpectSameAnswer() const {
    const LoadOutcome again = LoadAndServe(path());
    EXPECT_TRUE(again.status.ok()) << Message(again.status);
    EXPECT_EQ(again.tokens, first_.tokens);
  }

 private:
  TempFile file_;
  LoadOutcome first_;
};

class HostileFileTest : public ::testing::TestWithParam<HostileCase> {
 protected:
  static void SetUpTestSuite() { good_ = new GoodFile(GoodModel()); }
  static void TearDownTestSuite() {
    delete good_;
    good_ = nullptr;
  }

  void Check(GgufDraft draft) {
    const HostileCase& c = GetParam();
    c.edit(draft);
    std::string bytes = draft.Bytes();
    if (c.edit_bytes) c.edit_bytes(bytes);
    const TempFile stored(bytes);
    draft = {};
    bytes = {};
    const LoadOutcome outcome = LoadAndServe(stored.path());
    const std::string message = Message(outcome.status);
    EXPECT_EQ(outcome.status.code(), c.code) << message;
    EXPECT_LE(outcome.cpu_seconds, MostSeconds());
    EXPECT_LE(outcome.peak_bytes, MostBytes());
    if (c.code == kOk) {
      EXPECT_EQ(outcome.tokens.size(), 8u);
      for (const std::string& text : c.says) {
        EXPECT_THAT(outcome.warnings, ::testing::Contains(HasSubstr(text)));
      }
    } else {
      EXPECT_THAT(message, ::testing::StartsWith(stored.path() + ": "));
      EXPECT_LE(message.size(), 1024u);
      if (c.has_offset) {
        EXPECT_THAT(message, HasSubstr("at byte "));
      }
      for (const std::string& text : c.says) EXPECT_THAT(message, HasSubstr(text));
    }
    good_->ExpectSameAnswer();
    Tally({c.code == kOk ? "hostile files/served" : "hostile files/refused"}, "files")
        .Add(!HasFailure());
  }

  static GoodFile* good_;
};
GoodFile* HostileFileTest::good_ = nullptr;

class HostileSentencePieceTest : public HostileFileTest {};

TEST_P(HostileFileTest, IsRefusedOrServedAndTheGoodOneIsServedAfter) { Check(GoodModel()); }
TEST_P(HostileSentencePieceTest, IsRefusedOrServedAndTheGoodOneIsServedAfter) {
  Check(GoodSentencePieceModel());
}

std::string NameOf(const ::testing::TestParamInfo<HostileCase>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Format, HostileFileTest, ::testing::ValuesIn(FormatCases()), NameOf);
INSTANTIATE_TEST_SUITE_P(Model, HostileFileTest, ::testing::ValuesIn(ModelCases()), NameOf);
INSTANTIATE_TEST_SUITE_P(Vocabulary, HostileFileTest, ::testing::ValuesIn(VocabularyCases()),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(SentencePiece, HostileSentencePieceTest,
                         ::testing::ValuesIn(SentencePieceCases()), NameOf);

TEST(HostilePrefixTest, M17EveryTruncationOfTheMetadataIsRefused) {
  const GoodFile good(GoodModel());
  const std::string bytes = GoodModel().Bytes();
  const TempFile stored(bytes);
  uint64_t metadata_bytes = 0;
  {
    const auto file = engine::ModelFile::Open(stored.path());
    ASSERT_TRUE(file.ok());
    metadata_bytes = (*file)->metadata_bytes();
  }
  ASSERT_GT(metadata_bytes, 4000u);
  Tally tally({"hostile files/refused"}, "truncations");
  for (uint64_t length = metadata_bytes + 1; length-- > 0;) {
    ASSERT_EQ(truncate(stored.path().c_str(), static_cast<off_t>(length)), 0);
    const absl::Status status =
        engine::LoadModel(stored.path(), ProbeOptions(), 1, nullptr).status();
    ASSERT_TRUE(tally.Add(status.code() == kInvalid))
        << "prefix of " << length << " bytes: " << Message(status);
    ASSERT_THAT(Message(status), HasSubstr("at byte ")) << length;
  }
  good.ExpectSameAnswer();
}

TEST(HostileSizeTest, M76AStrangerOf2GibCostsNothing) {
  const GoodFile good(GoodModel());
  GgufDraft draft = GoodModel();
  draft.AddTensor("community.tensor", {uint64_t{1} << 29}, kernels::DType::kF32, "");
  const TempFile stored(draft.Bytes());
  const auto data = static_cast<off_t>(draft.OffsetOf("bytes community.tensor"));
  ASSERT_EQ(truncate(stored.path().c_str(), data + (off_t{1} << 31)), 0);
  const LoadOutcome outcome = LoadAndServe(stored.path());
  EXPECT_TRUE(outcome.status.ok()) << Message(outcome.status);
  EXPECT_THAT(outcome.warnings, ::testing::Contains(HasSubstr("'community.tensor'")));
  EXPECT_LE(outcome.cpu_seconds, MostSeconds());
  EXPECT_LE(outcome.peak_bytes, MostBytes());
}

TEST(HostileSizeTest, M68JunkAfterTheDataCostsNothing) {
  const GoodFile good(GoodModel());
  const TempFile stored(GoodModel().Bytes());
  ASSERT_EQ(truncate(stored.path().c_str(), off_t{1} << 30), 0);
  const LoadOutcome outcome = LoadAndServe(stored.path());
  EXPECT_TRUE(outcome.status.ok()) << Message(outcome.status);
  EXPECT_LE(outcome.cpu_seconds, MostSeconds());
  EXPECT_LE(outcome.peak_bytes, MostBytes());
}

}  // namespace
}  // namespace sluice::testing
