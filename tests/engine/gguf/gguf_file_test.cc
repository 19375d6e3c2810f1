#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/model_file/model_file.h"
#include "tests/testing/gguf_writer.h"
#include "tests/testing/tally.h"

namespace sluice::engine {
namespace {

using kernels::DType;
using testing::EncodeTensor;
using testing::GgufDraft;
using ::testing::HasSubstr;
using testing::TempFile;

std::shared_ptr<const ModelFile> OpenOrDie(const std::string& path) {
  auto file = ModelFile::Open(path);
  if (!file.ok()) ADD_FAILURE() << Message(file.status());
  return file.ok() ? *file : nullptr;
}

GgufDraft EveryType() {
  GgufDraft draft;
  draft.Set("a.u8", uint8_t{200});
  draft.Set("a.i8", int8_t{-100});
  draft.Set("a.u16", uint16_t{60000});
  draft.Set("a.i16", int16_t{-30000});
  draft.Set("a.u32", uint32_t{4'000'000'000});
  draft.Set("a.i32", int32_t{-2'000'000'000});
  draft.Set("a.u64", UINT64_MAX);
  draft.Set("a.i64", INT64_MIN);
  draft.Set("a.f32", 1.5f);
  draft.Set("a.f64", 1e300);
  draft.Set("a.bool", true);
  draft.SetString("a.string", "Größe");
  draft.SetString("a.empty", "");
  draft.Set("l.u8", MetadataArray(std::vector<uint8_t>{1, 2, 3}));
  draft.Set("l.i32", MetadataArray(std::vector<int32_t>{-1, 2}));
  draft.Set("l.u64", MetadataArray(std::vector<uint64_t>{UINT64_MAX}));
  draft.Set("l.i64", MetadataArray(std::vector<int64_t>{INT64_MIN, INT64_MAX}));
  draft.Set("l.f32", MetadataArray(std::vector<float>{0.5f, -0.25f}));
  draft.Set("l.f64", MetadataArray(std::vector<double>{0.1}));
  draft.Set("l.bool", MetadataArray(std::vector<bool>{true, false, true}));
  draft.SetStrings("l.string", {"one", "", "three"});
  draft.Set("l.none", MetadataArray(std::vector<int16_t>{}));
  return draft;
}

class GgufVersionTest : public ::testing::TestWithParam<uint32_t> {};

TEST_P(GgufVersionTest, EveryValueTypeReadsBack) {
  GgufDraft draft = EveryType();
  draft.version = GetParam();
  const TempFile stored(draft.Bytes());
  const auto file = OpenOrDie(stored.path());
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->version(), GetParam());
  ASSERT_EQ(file->entries().size(), draft.keys.size());
  testing::Tally tally({"file formats/GGUF v" + std::to_string(GetParam())}, "keys read back");
  for (size_t i = 0; i < draft.keys.size(); ++i) {
    const ModelFile::Entry& entry = file->entries()[i];
    EXPECT_EQ(entry.key, draft.keys[i].name);
    EXPECT_EQ(entry.offset, draft.OffsetOf("key " + entry.key));
    EXPECT_EQ(testing::ValueTypeNumber(entry.value), draft.keys[i].type) << entry.key;
    EXPECT_TRUE(tally.Add(testing::EncodeValue(entry.value) == draft.keys[i].payload)) << entry.key;
  }
  EXPECT_EQ(file->tensors().size(), 0u);
  EXPECT_LE(file->metadata_bytes(), file->file_bytes());
}

TEST_P(GgufVersionTest, TensorsAreFoundWhereTheyWereWritten) {
  testing::Tally tally({"file formats/GGUF v" + std::to_string(GetParam())}, "tensors read back");
  for (const uint32_t alignment : {8u, 32u, 64u, 65'536u}) {
    GgufDraft draft;
    draft.version = GetParam();
    draft.alignment = alignment;
    draft.Set("general.alignment", alignment);
    const std::string odd = EncodeTensor(DType::kF32, {1, 2, 3, 4, 5});
    const std::string half = EncodeTensor(DType::kF16, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
    const std::string blocks = EncodeTensor(DType::kQ4_1, std::vector<float>(64, 0.5f));
    draft.AddTensor("odd", {5}, DType::kF32, odd);
    draft.AddTensor("half", {3, 2, 2, 1}, DType::kF16, half);
    draft.AddTensor("blocks", {32, 2}, DType::kQ4_1, blocks);
    const TempFile stored(draft.Bytes());
    const auto file = OpenOrDie(stored.path());
    ASSERT_NE(file, nullptr);
    EXPECT_EQ(file->alignment(), alignment);
    EXPECT_EQ(file->metadata_bytes(), draft.OffsetOf("data"));
    ASSERT_EQ(file->tensors().size(), 3u);
    for (const auto& tensor : file->tensors()) {
      const std::string& bytes = draft.TensorAt(tensor.name).bytes;
      EXPECT_EQ(tensor.offset, draft.OffsetOf("bytes " + tensor.name));
      EXPECT_EQ(tensor.offset % alignment, 0u);
      ASSERT_EQ(tensor.bytes, bytes.size());
      std::string read(tensor.bytes, '\0');
      ASSERT_TRUE(file->Read(tensor.offset, std::as_writable_bytes(std::span(read))).ok());
      EXPECT_TRUE(tally.Add(read == bytes)) << tensor.name;
    }
    EXPECT_EQ(file->FindTensor("half")->rows(), 4u);
    EXPECT_EQ(file->FindTensor("half")->cols(), 3u);
    EXPECT_EQ(file->FindTensor("blocks")->ShapeString(), "[32, 2] Q4_1");
    EXPECT_EQ(file->FindTensor("none"), nullptr);
  }
}

INSTANTIATE_TEST_SUITE_P(Versions, GgufVersionTest, ::testing::Values(2u, 3u));

TEST(GgufFileTest, TypedAccessWidensAndRefuses) {
  const TempFile stored(EveryType().Bytes());
  const auto file = OpenOrDie(stored.path());
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(**file->GetUint("a.u8"), 200u);
  EXPECT_EQ(**file->GetUint("a.u64"), UINT64_MAX);
  EXPECT_EQ(**file->GetFloat("a.f32"), 1.5);
  EXPECT_EQ(**file->GetFloat("a.f64"), 1e300);
  EXPECT_EQ(**file->GetBool("a.bool"), true);
  EXPECT_EQ(**file->GetString("a.string"), "Größe");
  EXPECT_THAT(**file->GetStrings("l.string"), ::testing::ElementsAre("one", "", "three"));
  EXPECT_THAT(**file->GetFloats("l.f32"), ::testing::ElementsAre(0.5f, -0.25f));
  EXPECT_THAT(**file->GetInts("l.u8"), ::testing::ElementsAre(1, 2, 3));
  EXPECT_THAT(**file->GetInts("l.i64"), ::testing::ElementsAre(INT64_MIN, INT64_MAX));
  EXPECT_THAT(**file->GetInts("l.none"), ::testing::ElementsAre());

  EXPECT_FALSE(file->GetUint("absent")->has_value());
  EXPECT_FALSE(file->GetFloat("absent")->has_value());
  EXPECT_FALSE(file->GetBool("absent")->has_value());
  EXPECT_FALSE(file->GetString("absent")->has_value());
  EXPECT_FALSE(file->GetInts("absent")->has_value());
  EXPECT_EQ(*file->GetStrings("absent"), nullptr);
  EXPECT_EQ(*file->GetFloats("absent"), nullptr);

  const auto refused = [&](const absl::Status& status, const std::string& text) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(Message(status), HasSubstr(stored.path()));
    EXPECT_THAT(Message(status), HasSubstr(text));
  };
  refused(file->GetUint("a.i8").status(), "key 'a.i8': expected 0 or more, got -100");
  refused(file->GetUint("a.f32").status(), "key 'a.f32': expected an integer, got f32");
  refused(file->GetUint("a.bool").status(), "expected an integer, got bool");
  refused(file->GetFloat("a.u32").status(), "expected f32 or f64, got u32");
  refused(file->GetBool("a.u8").status(), "expected bool, got u8");
  refused(file->GetString("l.string").status(), "expected string, got array of string");
  refused(file->GetStrings("l.i32").status(), "expected array of string, got array of i32");
  refused(file->GetFloats("l.f64").status(), "expected array of f32, got array of f64");
  refused(file->GetInts("l.u64").status(), "element 0");
  refused(file->GetInts("l.bool").status(), "got array of bool");
}

TEST(GgufFileTest, AFileThatShrinksAfterOpenIsDataLoss) {
  const std::string bytes = testing::MakeTinyModel({});
  const TempFile stored(bytes);
  const auto file = OpenOrDie(stored.path());
  ASSERT_NE(file, nullptr);
  EXPECT_TRUE(file->CheckUnchanged().ok());
  ASSERT_EQ(truncate(stored.path().c_str(), static_cast<off_t>(bytes.size() - 100)), 0);
  EXPECT_EQ(file->CheckUnchanged().code(), absl::StatusCode::kDataLoss);
  std::vector<std::byte> tail(200);
  const absl::Status status = file->Read(bytes.size() - 200, tail);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr("at byte " + std::to_string(bytes.size() - 100)));
  EXPECT_TRUE(file->Read(bytes.size() - 200, std::span(tail).first(100)).ok());
}

TEST(GgufFileTest, AFileWrittenToAfterOpenIsDataLoss) {
  const TempFile stored(testing::MakeTinyModel({}));
  const auto file = OpenOrDie(stored.path());
  ASSERT_NE(file, nullptr);
  const timespec times[2] = {{0, UTIME_OMIT}, {1'000'000'000, 0}};
  ASSERT_EQ(utimensat(AT_FDCWD, stored.path().c_str(), times, 0), 0);
  const absl::Status status = file->CheckUnchanged();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr("modified"));
}

TEST(GgufFileTest, ReadsGoOnFromSeveralThreads) {
  const std::string bytes = testing::MakeTinyModel({});
  const TempFile stored(bytes);
  const auto file = OpenOrDie(stored.path());
  ASSERT_NE(file, nullptr);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      std::string piece(1000, '\0');
      for (size_t at = t * 37; at + piece.size() <= bytes.size(); at += 997) {
        const bool read = file->Read(at, std::as_writable_bytes(std::span(piece))).ok();
        if (!read || piece != bytes.substr(at, piece.size())) ++wrong[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, ::testing::Each(0));
}

TEST(GgufFileTest, GoldenFilesOpen) {
  int seen = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SLUICE_GOLDEN_DIR "/tiny")) {
    if (entry.path().extension() != ".gguf") continue;
    const auto file = OpenOrDie(entry.path().string());
    ASSERT_NE(file, nullptr);
    EXPECT_EQ(file->version(), 3u);
    ++seen;
  }
  EXPECT_GE(seen, 6);
  const auto file = OpenOrDie(SLUICE_GOLDEN_DIR "/tiny/tiny-llama.q4_1.gguf");
  ASSERT_NE(file, nullptr);
  ASSERT_EQ(file->tensors().size(), 12u);
  EXPECT_EQ(file->tensors()[0].name, "output.weight");
  EXPECT_EQ(file->tensors()[0].ShapeString(), "[256, 384] Q4_1");
  EXPECT_EQ(file->tensors()[2].offset, file->metadata_bytes() + 62464);
  EXPECT_EQ((*file->GetStrings("tokenizer.ggml.tokens"))->size(), 384u);
}

TEST(GgufDirectoryTest, StandsForItsOneFile) {
  const std::filesystem::path directory =
      std::filesystem::path(::testing::TempDir()) / ("gguf_directory." + std::to_string(getpid()));
  std::filesystem::create_directories(directory / "lost+found");
  const TempFile source(EveryType().Bytes());
  std::filesystem::copy_file(source.path(), directory / "model.gguf");
  std::ofstream(directory / "README.md") << "a model";
  const auto file = OpenOrDie(directory.string());
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->format(), ModelFile::Format::kGguf);
  EXPECT_EQ(file->path(), (directory / "model.gguf").string());

  std::filesystem::copy_file(source.path(), directory / "another.gguf");
  const auto two = ModelFile::Open(directory.string());
  EXPECT_THAT(Message(two.status()), HasSubstr("expected one GGUF file, got 2, "));
  EXPECT_THAT(Message(two.status()), HasSubstr("another.gguf"));

  // What says that it is the model's own directory counts more than what else lies there.
  std::ofstream(directory / "config.json") << "{";
  const auto safetensors = ModelFile::Open(directory.string());
  EXPECT_THAT(Message(safetensors.status()), HasSubstr("config.json"));
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace sluice::engine
