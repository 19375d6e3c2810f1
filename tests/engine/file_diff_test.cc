// DiffFiles on files that differ in one thing each.

#include "engine/file_diff.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "tests/testing/gguf_writer.h"

namespace sluice::engine {
namespace {

using testing::GgufDraft;
using ::testing::HasSubstr;
using testing::TempFile;

nlohmann::json Diff(const GgufDraft& a, const GgufDraft& b) {
  const TempFile file_a(a.Bytes()), file_b(b.Bytes());
  const auto diff = DiffFiles(file_a.path(), file_b.path(), /*json=*/true);
  EXPECT_TRUE(diff.ok()) << Message(diff.status());
  nlohmann::json json = nlohmann::json::parse(diff->text);
  EXPECT_EQ(json["equal"], diff->equal);
  return json;
}

size_t NumDifferences(const nlohmann::json& diff) {
  size_t count = 0;
  for (const char* what : {"metadata", "tensors"}) {
    for (const nlohmann::json& list : diff[what]) count += list.size();
  }
  return count;
}

void SetValue(GgufDraft& draft, const std::string& tensor, size_t index, float value) {
  std::memcpy(draft.TensorAt(tensor).bytes.data() + index * sizeof(value), &value, sizeof(value));
}

TEST(FileDiffTest, EqualModelsAreEqualWhateverTheirLayout) {
  const GgufDraft draft = testing::MakeTinyModelDraft({});
  GgufDraft moved = draft;
  std::swap(moved.keys.front(), moved.keys.back());
  std::swap(moved.tensors.front(), moved.tensors.back());
  const nlohmann::json diff = Diff(draft, moved);
  EXPECT_EQ(diff["equal"], true);
  EXPECT_EQ(NumDifferences(diff), 0u);
  EXPECT_EQ(diff["equal_keys"], draft.keys.size());
  EXPECT_EQ(diff["equal_tensors"], draft.tensors.size());
}

TEST(FileDiffTest, KeysOfOneOrOther) {
  const GgufDraft draft = testing::MakeTinyModelDraft({});
  GgufDraft other = draft;
  other.Set("test.new", uint32_t{7});
  for (const bool swapped : {false, true}) {
    const nlohmann::json diff = swapped ? Diff(other, draft) : Diff(draft, other);
    EXPECT_EQ(diff["equal"], false);
    EXPECT_EQ(NumDifferences(diff), 1u);
    const nlohmann::json& entry = diff["metadata"][swapped ? "only_a" : "only_b"][0];
    EXPECT_EQ(entry["key"], "test.new");
    EXPECT_EQ(entry[swapped ? "a" : "b"], "7 (u32)");
  }
}

TEST(FileDiffTest, ValuesThatDiffer) {
  GgufDraft draft = testing::MakeTinyModelDraft({});
  draft.Set("test.type", uint32_t{7});
  draft.SetString("test.long", std::string(1000, 'x') + "1");
  draft.Set("test.nan", std::numeric_limits<float>::quiet_NaN());
  GgufDraft other = draft;
  other.Set("test.type", uint64_t{7});
  other.SetString("test.long", std::string(1000, 'x') + "2");
  const nlohmann::json diff = Diff(draft, other);
  EXPECT_EQ(NumDifferences(diff), 2u);
  const nlohmann::json& different = diff["metadata"]["different"];
  ASSERT_EQ(different.size(), 2u);
  EXPECT_EQ(different[0]["a"], "7 (u32)");
  EXPECT_EQ(different[0]["b"], "7 (u64)");
  const std::string a = different[1]["a"], b = different[1]["b"];
  EXPECT_THAT(a, HasSubstr("string, 1001 bytes, sha256 "));
  EXPECT_LT(a.size(), 64u);
  EXPECT_NE(a, b);
}

TEST(FileDiffTest, TensorsThatDiffer) {
  const GgufDraft draft = testing::MakeTinyModelDraft({});
  const std::string name = "blk.0.attn_norm.weight";  // [64] F32
  GgufDraft base = draft;
  for (size_t i = 0; i < 64; ++i) SetValue(base, name, i, 2.0f);
  GgufDraft other = base;
  SetValue(other, name, 10, 2.5f);
  SetValue(other, name, 63, 1.0f);
  nlohmann::json diff = Diff(base, other);
  EXPECT_EQ(NumDifferences(diff), 1u);
  nlohmann::json entry = diff["tensors"]["different"][0];
  EXPECT_EQ(entry["name"], name);
  EXPECT_EQ(entry["largest_difference"], 1.0);
  EXPECT_NEAR(entry["relative_rms"].get<double>(), std::sqrt((0.25 + 1) / (64 * 4)), 1e-12);

  SetValue(other, name, 10, std::numeric_limits<float>::quiet_NaN());
  diff = Diff(base, other);
  EXPECT_TRUE(diff["tensors"]["different"][0]["largest_difference"].is_null());

  other = base;
  other.TensorAt(name).dims = {32, 2};  // another shape of as many values
  diff = Diff(base, other);
  entry = diff["tensors"]["different"][0];
  EXPECT_EQ(entry["a"], "[64] F32");
  EXPECT_EQ(entry["b"], "[32, 2] F32");
  EXPECT_FALSE(entry.contains("largest_difference"));

  other = base;
  other.RemoveTensor(name);
  EXPECT_EQ(Diff(base, other)["tensors"]["only_a"][0]["name"], name);
  EXPECT_EQ(Diff(other, base)["tensors"]["only_b"][0]["name"], name);
}

TEST(FileDiffTest, TypesAreComparedByTheirValues) {
  testing::TinyModelSpec spec;
  const GgufDraft floats = testing::MakeTinyModelDraft(spec);
  spec.matrix_type = kernels::DType::kQ8_0;
  const nlohmann::json diff = Diff(floats, testing::MakeTinyModelDraft(spec));
  size_t matrices = 0;
  for (const nlohmann::json& entry : diff["tensors"]["different"]) {
    ++matrices;
    EXPECT_GT(entry["relative_rms"], 1e-4) << entry;
    EXPECT_LT(entry["relative_rms"], 0.01) << entry;  // half a step of 1 / 127, and less
  }
  EXPECT_EQ(matrices, 2u + 2 * 7) << "embedding, output, seven of each layer";
}

TEST(FileDiffTest, TextNamesBothSidesAndCounts) {
  const GgufDraft draft = testing::MakeTinyModelDraft({});
  GgufDraft other = draft;
  other.Set("llama.context_length", uint32_t{1024});
  const TempFile a(draft.Bytes()), b(other.Bytes());
  const auto diff = DiffFiles(a.path(), b.path(), /*json=*/false);
  ASSERT_TRUE(diff.ok());
  EXPECT_FALSE(diff->equal);
  EXPECT_THAT(diff->text, HasSubstr("key llama.context_length: 512 (u32) | 1024 (u32)\n"));
  EXPECT_THAT(diff->text, HasSubstr("keys equal, 1 different; "));
  EXPECT_FALSE(DiffFiles(a.path(), b.path() + ".none", false).ok());
}

}  // namespace
}  // namespace sluice::engine
