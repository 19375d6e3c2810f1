// Weights that are no numbers, vocabularies made to cost time, paths that are no files, and files
// that change while they are read or after.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "tests/engine/hostile/hostile_case.h"
#include "tests/engine/hostile/load_probe.h"

namespace sluice::testing {
namespace {

using engine::LoadProgress;
using engine::Message;
using ::testing::HasSubstr;

std::vector<engine::TokenId> GoodAnswer() {
  const TempFile good(GoodModel().Bytes());
  const LoadOutcome outcome = LoadAndServe(good.path());
  EXPECT_TRUE(outcome.status.ok()) << Message(outcome.status);
  return outcome.tokens;
}

engine::LoadedModel Load(const std::string& path) {
  auto model = engine::LoadModel(path, ProbeOptions(), 1, nullptr);
  EXPECT_TRUE(model.ok()) << Message(model.status());
  return *std::move(model);
}

struct BadWeight {
  std::string name;
  kernels::DType type;
  uint64_t row_bytes;  // of token_embd.weight, 64 wide
  std::string bits;    // at the start of a row
};
void PrintTo(const BadWeight& weight, std::ostream* out) { *out << weight.name; }

class NonFiniteWeightTest : public ::testing::TestWithParam<BadWeight> {};

TEST_P(NonFiniteWeightTest, M93EndsTheRequestThatMeetsItAndNoOther) {
  const std::vector<engine::TokenId> good_answer = GoodAnswer();
  TinyModelSpec spec;
  spec.embedding_type = GetParam().type;
  GgufDraft draft = MakeTinyModelDraft(spec);
  {
    std::string& rows = draft.TensorAt("token_embd.weight").bytes;
    ASSERT_EQ(rows.size(), 320 * GetParam().row_bytes);
    rows.replace(7 * GetParam().row_bytes, GetParam().bits.size(), GetParam().bits);
  }
  const TempFile stored(draft.Bytes());
  engine::LoadedModel model = Load(stored.path());
  const Answer before = Ask(*model.dispatcher, {1, 2, 3});
  EXPECT_TRUE(before.status.ok()) << Message(before.status);
  const Answer bad = Ask(*model.dispatcher, {1, 7, 3});
  EXPECT_EQ(bad.status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(bad.status), HasSubstr("are not finite"));
  EXPECT_TRUE(bad.tokens.empty());
  const Answer after = Ask(*model.dispatcher, {1, 2, 3});
  EXPECT_TRUE(after.status.ok()) << Message(after.status);
  EXPECT_EQ(after.tokens, before.tokens);
  EXPECT_EQ(GoodAnswer(), good_answer);
}

INSTANTIATE_TEST_SUITE_P(
    Types, NonFiniteWeightTest,
    ::testing::Values(BadWeight{"f32_nan", kernels::DType::kF32, 256, Word32(0x7FC00000)},
                      BadWeight{"f32_infinity", kernels::DType::kF32, 256, Word32(0x7F800000)},
                      BadWeight{"f16_nan", kernels::DType::kF16, 128, "\xff\x7f"},
                      BadWeight{"q8_0_nan_scale", kernels::DType::kQ8_0, 68, "\xff\x7f"},
                      BadWeight{"q8_0_infinite_scale", kernels::DType::kQ8_0, 68,
                                std::string("\x00\x7c", 2)},
                      BadWeight{"q4_1_nan_minimum", kernels::DType::kQ4_1, 40, "\x11\x11\xff\x7f"}),
    [](const auto& info) { return info.param.name; });

TEST(NonFiniteWeightTest, M93ANormThatIsNoNumberFailsEveryRequestAndTakesNothingDown) {
  GgufDraft draft = GoodModel();
  draft.TensorAt("output_norm.weight").bytes.replace(0, 4, Word32(0x7FC00000));
  const TempFile stored(draft.Bytes());
  engine::LoadedModel model = Load(stored.path());
  EXPECT_FALSE(model.self_check.passed);
  EXPECT_THAT(model.warnings, ::testing::Contains(HasSubstr("not finite")));
  for (int i = 0; i < 3; ++i) {
    const Answer answer = Ask(*model.dispatcher, {1, 2, 3});
    EXPECT_EQ(answer.status.code(), absl::StatusCode::kInternal) << Message(answer.status);
  }
  EXPECT_TRUE(model.dispatcher->any_up());
}

TEST(ZeroWeightTest, M94AnswersAreTheSameEachTime) {
  GgufDraft draft = GoodModel();
  for (GgufDraft::Tensor& t : draft.tensors) t.bytes.assign(t.bytes.size(), '\0');
  const TempFile stored(draft.Bytes());
  engine::LoadedModel model = Load(stored.path());
  const Answer first = Ask(*model.dispatcher, {1, 2, 3});
  EXPECT_TRUE(first.status.ok()) << Message(first.status);
  EXPECT_EQ(first.tokens, std::vector<engine::TokenId>(8, 0));
  EXPECT_EQ(Ask(*model.dispatcher, {1, 2, 3}).tokens, first.tokens);
}

TEST(AddedTokenTest, M91AHundredThousandThatOverlapAreFoundInOnePass) {
  constexpr int32_t kNormal = 1, kUserDefined = 4;
  constexpr size_t kAdded = 100'000, kRun = 48;
  TinyModelSpec spec;
  spec.layers = 1;
  spec.width = 32;
  spec.heads = 2;
  spec.kv_heads = 1;
  spec.ffn_width = 32;
  spec.vocab_size = 256 + static_cast<int>(kAdded) + 3;
  spec.embedding_type = kernels::DType::kQ8_0;
  spec.tied_head = true;
  GgufDraft draft = MakeTinyModelDraft(spec);
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) {
    tokens.push_back(byte > 32 && byte < 127 ? std::string(1, static_cast<char>(byte))
                                             : "byte" + std::to_string(byte));
  }
  // Runs of one letter, ended by a number: each is the beginning of many others, and a text of the
  // letter alone begins to be every one of them at every byte.
  for (size_t i = 0; i < kAdded + 3; ++i) {
    tokens.push_back(std::string(1 + i % kRun, 'a') + std::to_string(i / kRun));
  }
  std::vector<int32_t> types(256, kNormal);
  types.resize(tokens.size(), kUserDefined);
  draft.SetStrings("tokenizer.ggml.tokens", std::move(tokens));
  draft.SetStrings("tokenizer.ggml.merges", {});
  draft.Set("tokenizer.ggml.token_type", engine::MetadataArray(std::move(types)));
  const TempFile stored(draft.Bytes());
  draft = {};
  const LoadOutcome outcome = LoadAndServe(stored.path());
  EXPECT_TRUE(outcome.status.ok()) << Message(outcome.status);
  EXPECT_LE(outcome.cpu_seconds, MostSeconds());
  EXPECT_LE(outcome.peak_bytes, MostBytes());

  engine::LoadedModel model = Load(stored.path());
  const std::string text = std::string(1 << 20, 'a') + "7";
  const double begin = CpuSeconds();
  const auto ids = model.tokenizer->Encode(text, {});
  EXPECT_LE(CpuSeconds() - begin, MostSeconds());
  ASSERT_TRUE(ids.ok()) << Message(ids.status());
  // One letter a token until the longest run before the number.
  ASSERT_EQ(ids->size(), (size_t{1} << 20) - kRun + 1);
  EXPECT_EQ(ids->front(), 'a');
  EXPECT_EQ(ids->back(), static_cast<engine::TokenId>(256 + 7 * kRun + kRun - 1));
}

struct NoFile {
  const char* what;
  std::string path;
  absl::StatusCode code;
  const char* says;
};

TEST(PathTest, M95WhatIsNoReadableFileIsRefusedAtOnce) {
  const std::vector<engine::TokenId> good_answer = GoodAnswer();
  const TempFile scratch(GoodModel().Bytes());
  const std::string fifo = scratch.path() + ".fifo", dangling = scratch.path() + ".link";
  const std::string loop = scratch.path() + ".loop", folder = scratch.path() + ".folder";
  ASSERT_EQ(mkdir(folder.c_str(), 0700), 0);
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  ASSERT_EQ(symlink("/nonexistent/model.gguf", dangling.c_str()), 0);
  ASSERT_EQ(symlink(loop.c_str(), loop.c_str()), 0);
  const std::vector<NoFile> cases = {
      {"FIFO", fifo, absl::StatusCode::kFailedPrecondition, "got a FIFO"},
      {"empty directory", folder, absl::StatusCode::kNotFound, "expected"},
      {"/dev/zero", "/dev/zero", absl::StatusCode::kFailedPrecondition, "got a device"},
      // A regular file of 0 bytes, to stat.
      {"/proc/self/mem", "/proc/self/mem", kInvalid, "got a file of 0 bytes"},
      {"dangling link", dangling, absl::StatusCode::kNotFound, "No such file"},
      {"link to itself", loop, absl::StatusCode::kFailedPrecondition, "symbolic links"},
      {"nothing", "/nonexistent/model.gguf", absl::StatusCode::kNotFound, "No such file"},
      {"no path", "", absl::StatusCode::kNotFound, "No such file"}};
  for (const NoFile& c : cases) {
    const LoadOutcome outcome = LoadAndServe(c.path);
    EXPECT_EQ(outcome.status.code(), c.code) << c.what << ": " << Message(outcome.status);
    EXPECT_THAT(Message(outcome.status), HasSubstr(c.says)) << c.what;
    EXPECT_LE(outcome.peak_bytes, MostBytes()) << c.what;
  }
  // The superuser may read every file: be somebody else for a while.
  ASSERT_EQ(chmod(scratch.path().c_str(), 0), 0);
  constexpr uid_t kNobody = 65534;
  const bool is_root = geteuid() == 0;
  if (is_root) {
    ASSERT_EQ(seteuid(kNobody), 0);
  }
  const absl::Status denied =
      engine::LoadModel(scratch.path(), ProbeOptions(), 1, nullptr).status();
  if (is_root) {
    ASSERT_EQ(seteuid(0), 0);
  }
  EXPECT_EQ(denied.code(), absl::StatusCode::kPermissionDenied) << Message(denied);
  for (const std::string& path : {fifo, dangling, loop}) unlink(path.c_str());
  rmdir(folder.c_str());
  EXPECT_EQ(GoodAnswer(), good_answer);
}

// Calls `change` once, when the weights have begun to be read.
std::function<void(const LoadProgress&)> Once(std::function<void()> change) {
  return [change = std::move(change), done = false](const LoadProgress& progress) mutable {
    if (done || progress.phase != "weights") return;
    done = true;
    change();
  };
}

// The file's time of modification is long ago: a write is seen however coarse the clock is.
void Age(const std::string& path) {
  const timespec times[2] = {{0, UTIME_OMIT}, {1'000'000'000, 0}};
  ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
}

TEST(ChangingFileTest, M96TruncatedWhileItIsRead) {
  const std::string bytes = GoodModel().Bytes();
  for (const size_t left : {size_t{0}, size_t{100}, bytes.size() / 2, bytes.size() - 1}) {
    const TempFile stored(bytes);
    const LoadOutcome outcome = LoadAndServe(
        stored.path(),
        Once([&] { EXPECT_EQ(truncate(stored.path().c_str(), static_cast<off_t>(left)), 0); }));
    EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDataLoss) << left;
    EXPECT_THAT(Message(outcome.status), HasSubstr(stored.path())) << left;
    EXPECT_THAT(Message(outcome.status), HasSubstr("when it was opened")) << left;
  }
}

TEST(ChangingFileTest, M96WrittenToWhileItIsRead) {
  const TempFile stored(GoodModel().Bytes());
  Age(stored.path());
  const LoadOutcome outcome = LoadAndServe(stored.path(), Once([&] {
                                             FILE* out = fopen(stored.path().c_str(), "r+b");
                                             ASSERT_NE(out, nullptr);
                                             fseek(out, -8, SEEK_END);
                                             fwrite("hostile!", 1, 8, out);
                                             fclose(out);
                                           }));
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(outcome.status), HasSubstr("was modified while it was being read"));
}

TEST(ChangingFileTest, M96ReplacedOrRemovedWhileItIsRead) {
  // The open file stays what it was, whatever its name comes to mean.
  const std::vector<engine::TokenId> good_answer = GoodAnswer();
  const TempFile replaced(GoodModel().Bytes()), by("FUGG");
  const LoadOutcome other =
      LoadAndServe(replaced.path(),
                   Once([&] { EXPECT_EQ(rename(by.path().c_str(), replaced.path().c_str()), 0); }));
  EXPECT_TRUE(other.status.ok()) << Message(other.status);
  EXPECT_EQ(other.tokens, good_answer);
  EXPECT_EQ(LoadAndServe(replaced.path()).status.code(), kInvalid);

  const TempFile removed(GoodModel().Bytes());
  const LoadOutcome none =
      LoadAndServe(removed.path(), Once([&] { EXPECT_EQ(unlink(removed.path().c_str()), 0); }));
  EXPECT_TRUE(none.status.ok()) << Message(none.status);
  EXPECT_EQ(none.tokens, good_answer);
}

TEST(ChangingFileTest, M96TruncatedOrRemovedAfterItWasLoaded) {
  const TempFile stored(GoodModel().Bytes());
  engine::LoadedModel model = Load(stored.path());
  const Answer before = Ask(*model.dispatcher, {1, 2, 3});
  EXPECT_EQ(before.tokens.size(), 8u);
  ASSERT_EQ(truncate(stored.path().c_str(), 0), 0);
  EXPECT_EQ(Ask(*model.dispatcher, {1, 2, 3}).tokens, before.tokens);
  ASSERT_EQ(unlink(stored.path().c_str()), 0);
  EXPECT_EQ(Ask(*model.dispatcher, {1, 2, 3}).tokens, before.tokens);
}

}  // namespace
}  // namespace sluice::testing
