// Files that end where they should not, and files with bytes exchanged. The edits of single fields
// are in tests/engine/hostile/format_cases.cc.

#include <unistd.h>

#include <cstdio>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/model_file/model_file.h"
#include "tests/testing/gguf_writer.h"

namespace sluice::engine {
namespace {

using kernels::DType;
using testing::GgufDraft;
using ::testing::HasSubstr;
using testing::TempFile;
using testing::Word32;
using testing::Word64;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

TEST(MalformedFileTest, TheLastByteOfDataIsNeededAndItsPaddingIsNot) {
  GgufDraft draft = testing::MakeTinyModelDraft({});
  draft.AddTensor("tail", {9}, DType::kF32, std::string(36, 'x'));
  const std::string bytes = draft.Bytes();
  const uint64_t end = draft.OffsetOf("bytes tail") + 36;
  ASSERT_GT(bytes.size(), end);
  const TempFile stored(bytes);
  ASSERT_EQ(truncate(stored.path().c_str(), static_cast<off_t>(end)), 0);
  EXPECT_TRUE(ModelFile::Open(stored.path()).ok());
  ASSERT_EQ(truncate(stored.path().c_str(), static_cast<off_t>(end - 1)), 0);
  const absl::Status status = ModelFile::Open(stored.path()).status();
  EXPECT_EQ(status.code(), kInvalid);
  EXPECT_THAT(Message(status), HasSubstr("tensor 'tail'"));
}

TEST(MalformedFileTest, MetadataBeyondTheCapIsRefused) {
  // Six arrays of 60 MiB in a sparse file: the fifth ends beyond 256 MiB.
  const TempFile stored("");
  uint64_t at = 0;
  FILE* out = fopen(stored.path().c_str(), "wb");
  ASSERT_NE(out, nullptr);
  const std::string header = std::string("GGUF") + Word32(3) + Word64(0) + Word64(6);
  fwrite(header.data(), 1, header.size(), out);
  at += header.size();
  for (char name = 'a'; name <= 'f'; ++name) {
    const std::string key = Word64(1) + name + Word32(9) + Word32(0) + Word64(uint64_t{60} << 20);
    fseeko(out, static_cast<off_t>(at), SEEK_SET);
    fwrite(key.data(), 1, key.size(), out);
    at += key.size() + (uint64_t{60} << 20);
  }
  fclose(out);
  ASSERT_EQ(truncate(stored.path().c_str(), static_cast<off_t>(at)), 0);
  const absl::Status status = ModelFile::Open(stored.path()).status();
  EXPECT_EQ(status.code(), kInvalid);
  EXPECT_THAT(Message(status), HasSubstr("key 'e': array length: 62914560 elements do not fit"));
}

TEST(MalformedFileTest, FlippedBytesNeverCrashAndNeverReadBeyondTheFile) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  testing::TinyModelSpec spec;
  spec.layers = 1;
  const std::string good = testing::MakeTinyModel(spec);
  uint64_t metadata_bytes = 0;
  {
    const TempFile stored(good);
    const auto file = ModelFile::Open(stored.path());
    ASSERT_TRUE(file.ok());
    metadata_bytes = (*file)->metadata_bytes();
  }
  int refused = 0;
  for (int round = 0; round < 400; ++round) {
    std::string bytes = good;
    for (uint64_t flips = 1 + random() % 3; flips > 0; --flips) {
      bytes[random() % metadata_bytes] = static_cast<char>(random());
    }
    const TempFile stored(bytes);
    const auto file = ModelFile::Open(stored.path());
    if (!file.ok()) {
      ++refused;
      continue;
    }
    for (const FileTensor& tensor : (*file)->tensors()) {
      ASSERT_LE(tensor.offset + tensor.bytes, bytes.size());
      ASSERT_EQ(tensor.offset % (*file)->alignment(), 0u);
    }
  }
  EXPECT_GT(refused, 20);
}

}  // namespace
}  // namespace sluice::engine
