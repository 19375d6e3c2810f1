// A file that is wrong in one place is refused with an error that names the place: one edit of a
// good file each, as a hostile or careless writer might make it.

#include <unistd.h>

#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

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
constexpr absl::StatusCode kUnsupported = absl::StatusCode::kUnimplemented;
constexpr uint64_t kHuge = UINT64_MAX;

struct Case {
  const char* name;
  std::function<void(GgufDraft&)> edit;
  std::vector<std::string> says;
  absl::StatusCode code = kInvalid;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class MalformedTest : public ::testing::TestWithParam<Case> {};

TEST_P(MalformedTest, IsRefusedWithTheReason) {
  const Case& c = GetParam();
  GgufDraft draft = testing::MakeTinyModelDraft({});
  {
    const TempFile good(draft.Bytes());
    ASSERT_TRUE(ModelFile::Open(good.path()).ok());
  }
  c.edit(draft);
  const TempFile bad(draft.Bytes());
  const absl::Status status = ModelFile::Open(bad.path()).status();
  EXPECT_EQ(status.code(), c.code) << Message(status);
  EXPECT_THAT(Message(status), ::testing::StartsWith(bad.path() + ": "));
  EXPECT_THAT(Message(status), HasSubstr("at byte "));
  for (const std::string& text : c.says) EXPECT_THAT(Message(status), HasSubstr(text));
}

// Appends a key whose type and payload are as given.
auto RawKey(uint32_t type, std::string payload) {
  return [type, payload](GgufDraft& draft) {
    draft.keys.push_back({"test.key", type, payload, std::nullopt});
  };
}
auto RawArray(uint32_t type, uint64_t count, const std::string& elements = "") {
  return RawKey(9, Word32(type) + Word64(count) + elements);
}
// Edits the record of the last tensor but one.
auto Record(std::function<void(GgufDraft::Tensor&)> edit) {
  return [edit](GgufDraft& draft) { edit(draft.TensorAt("output_norm.weight")); };
}
auto Type(uint32_t type) {
  return Record([type](GgufDraft::Tensor& t) { t.type = type; });
}
auto Dims(std::vector<uint64_t> dims) {
  return Record([dims](GgufDraft::Tensor& t) { t.dims = dims; });
}
auto Offset(std::function<uint64_t(uint64_t)> edit) {
  return [edit](GgufDraft& draft) {
    const uint64_t right = draft.OffsetOf("bytes output_norm.weight") - draft.OffsetOf("data");
    draft.TensorAt("output_norm.weight").offset = edit(right);
  };
}
auto Version(uint32_t version) {
  return [version](GgufDraft& draft) { draft.version = version; };
}
auto NumTensors(uint64_t count) {
  return [count](GgufDraft& draft) { draft.num_tensors = count; };
}
auto NumKeys(uint64_t count) {
  return [count](GgufDraft& draft) { draft.num_keys = count; };
}
auto NameLength(uint64_t length) {
  return [length](GgufDraft& draft) { draft.KeyAt("llama.block_count").name_length = length; };
}
auto KeyName(std::string name) {
  return [name](GgufDraft& draft) { draft.KeyAt("llama.block_count").name = name; };
}
auto Alignment(MetadataValue value) {
  return [value](GgufDraft& draft) { draft.Set("general.alignment", value); };
}

INSTANTIATE_TEST_SUITE_P(
    Header, MalformedTest,
    ::testing::Values(
        Case{"magic", [](GgufDraft& d) { d.magic = "FUGG"; }, {"header", "\"GGUF\"", "'FUGG'"}},
        Case{"version_0", Version(0), {"version: expected 2 or 3, got 0", "at byte 4"}},
        Case{"version_1", Version(1), {"expected 2 or 3, got 1"}, kUnsupported},
        Case{"version_4", Version(4), {"expected 2 or 3, got 4"}, kUnsupported},
        Case{"big_endian", Version(0x03000000), {"little-endian", "version 3"}, kUnsupported},
        Case{"tensors_2_64", NumTensors(kHuge), {"number of tensors: expected at most 65536"}},
        Case{"tensors_2_63", NumTensors(kHuge >> 1), {"number of tensors", "at byte 8"}},
        Case{"tensors_1e9", NumTensors(1'000'000'000), {"number of tensors"}},
        Case{"tensors_60000", NumTensors(60'000), {"60000 do not fit"}},
        Case{"tensors_one_more",
             [](GgufDraft& d) { d.num_tensors = d.tensors.size() + 1; },
             {"tensor "}},
        Case{"keys_2_64", NumKeys(kHuge), {"number of keys: expected at most 65536", "at byte 16"}},
        Case{"keys_1e9", NumKeys(1'000'000'000), {"number of keys"}},
        Case{"keys_50000", NumKeys(50'000), {"50000 do not fit"}},
        Case{"keys_one_less",
             [](GgufDraft& d) { d.num_keys = d.keys.size() - 1; },
             {"number of dimensions: expected 1 to 4, got 7"}},
        Case{"keys_one_more",
             [](GgufDraft& d) { d.num_keys = d.keys.size() + 1; },
             {"tensor 0: name: expected a length"}}));

INSTANTIATE_TEST_SUITE_P(
    Keys, MalformedTest,
    ::testing::Values(
        Case{"length_2_64", NameLength(kHuge), {"name: expected a length of 1 to 65535 bytes"}},
        Case{"length_2_63", NameLength(uint64_t{1} << 63), {"got 9223372036854775808"}},
        Case{"length_beyond_end",
             [](GgufDraft& d) {
               d.tensors.clear();
               d.KeyAt("llama.block_count").name_length = 60'000;
             },
             {"name: expected a length within the"}},
        Case{"empty", KeyName(""), {"name: expected a length of 1 to 65535 bytes, got 0"}},
        Case{"65536", KeyName(std::string(65'536, 'k')), {"got 65536"}},
        Case{"nul", KeyName(std::string("a\0b", 3)), {"printable ASCII", "'a\\x00b'"}},
        Case{"utf8", KeyName("gr\xc3\xb6sse"), {"printable ASCII", "'gr\\xc3\\xb6sse'"}},
        Case{"bad_utf8", KeyName("\xff\xfe"), {"'\\xff\\xfe'"}},
        Case{"twice",
             [](GgufDraft& d) { d.keys.push_back(d.KeyAt("llama.block_count")); },
             {"key 'llama.block_count': expected each key once"}},
        Case{"twice_other_type",
             [](GgufDraft& d) {
               d.keys.push_back({"llama.block_count", 0, std::string(1, 'x'), std::nullopt});
             },
             {"key 'llama.block_count': expected each key once"}},
        Case{"type_13", RawKey(13, "12345678"), {"key 'test.key': type: expected 0 to 12, got 13"}},
        Case{"type_2_32", RawKey(0xFFFFFFFF, "12345678"), {"got 4294967295"}},
        Case{"bool_7", RawKey(7, "\7"), {"expected a bool of 0 or 1, got 7"}},
        Case{"string_2_64", RawKey(8, Word64(kHuge)), {"'test.key': value: expected a length"}},
        Case{"string_2_gib", RawKey(8, Word64(uint64_t{1} << 31)), {"0 to 16777216 bytes"}},
        Case{"string_beyond_end",
             [](GgufDraft& d) {
               d.tensors.clear();
               RawKey(8, Word64(uint64_t{1} << 24))(d);
             },
             {"value: expected a length within the"}},
        Case{"array_type_13", RawArray(13, 1, "12345678"), {"element type: expected 0 to 12"}},
        Case{"array_of_arrays", RawArray(9, 1, Word32(4) + Word64(0)), {"arrays of arrays"},
             kUnsupported},
        Case{"array_nested_deep",
             [](GgufDraft& d) {
               std::string nest;
               for (int i = 0; i < 100'000; ++i) nest += Word32(9) + Word64(1);
               RawKey(9, nest)(d);
             },
             {"arrays of arrays"},
             kUnsupported},
        Case{"array_2_61_u64", RawArray(10, uint64_t{1} << 61), {"array length: expected at most"}},
        Case{"array_2_40_u8", RawArray(0, uint64_t{1} << 40), {"got 1099511627776"}},
        Case{"array_64_mi_u64", RawArray(10, uint64_t{64} << 20), {"67108864 elements do not fit"}},
        Case{"array_1e8_strings", RawArray(8, 100'000'000), {"got 100000000"}},
        Case{"array_of_bool_2", RawArray(7, 3, std::string("\1\2\0", 3)), {"0 or 1, got 2"}},
        Case{"array_string_2_64", RawArray(8, 2, Word64(1) + "a" + Word64(kHuge)),
             {"element: expected a length"}},
        Case{"run_to_the_end",
             [](GgufDraft& d) {
               d.tensors.clear();
               d.num_tensors = 0;
               RawArray(0, 1'000'000)(d);
             },
             {"do not fit in the"}}));

INSTANTIATE_TEST_SUITE_P(
    Alignments, MalformedTest,
    ::testing::Values(
        Case{"zero", Alignment(uint32_t{0}), {"'general.alignment'", "got 0"}},
        Case{"one", Alignment(uint32_t{1}), {"expected a power of two from 8 to 65536, got 1"}},
        Case{"four", Alignment(uint32_t{4}), {"got 4"}},
        Case{"thirteen", Alignment(uint32_t{13}), {"got 13"}},
        Case{"2_17", Alignment(uint32_t{1} << 17), {"got 131072"}},
        Case{"2_31", Alignment(uint32_t{1} << 31), {"got 2147483648"}},
        Case{"2_32_less_1", Alignment(uint32_t{0xFFFFFFFF}), {"got 4294967295"}},
        Case{"i32", Alignment(int32_t{32}), {"expected a u32, got i32"}},
        Case{"u64", Alignment(uint64_t{32}), {"expected a u32, got u64"}},
        Case{"string", Alignment(std::string("32")), {"expected a u32, got string"}},
        Case{"not_what_was_used", Alignment(uint32_t{64}), {"tensor '", "expected"}}));

INSTANTIATE_TEST_SUITE_P(
    Records, MalformedTest,
    ::testing::Values(
        Case{"name_2_64", Record([](GgufDraft::Tensor& t) { t.name_length = kHuge; }),
             {"name: expected a length of 1 to 63 bytes"}},
        Case{"name_64", Record([](GgufDraft::Tensor& t) { t.name = std::string(64, 'n'); }),
             {"got 64"}},
        Case{"name_empty", Record([](GgufDraft::Tensor& t) { t.name = ""; }), {"got 0"}},
        Case{"name_control", Record([](GgufDraft::Tensor& t) { t.name = "a\nb"; }),
             {"'a\\x0ab'"}},
        Case{"name_twice", Record([](GgufDraft::Tensor& t) { t.name = "token_embd.weight"; }),
             {"tensor 'token_embd.weight': expected each tensor once"}},
        Case{"dims_0", Dims({}), {"number of dimensions: expected 1 to 4, got 0"}},
        Case{"dims_5", Dims({64, 1, 1, 1, 1}), {"number of dimensions: expected 1 to 4, got 5"}},
        Case{"dims_2_32", Record([](GgufDraft::Tensor& t) { t.num_dims = 0xFFFFFFFF; }),
             {"got 4294967295"}},
        Case{"dim_0", Dims({64, 0}), {"dimension 1: expected 1 to 1099511627776, got 0"}},
        Case{"dim_2_63", Dims({uint64_t{1} << 63}), {"dimension 0", "got 9223372036854775808"}},
        Case{"dim_2_63_i8",
             Record([](GgufDraft::Tensor& t) {
               t.dims = {(uint64_t{1} << 63) - 1, 2, 1, 1};
               t.type = 24;
             }),
             {"dimension 0"}},
        Case{"product_wraps_to_0", Dims({uint64_t{1} << 32, uint64_t{1} << 32}),
             {"the number of elements overflows"}},
        Case{"product_wraps_to_less", Dims({(uint64_t{1} << 32) + 1, (uint64_t{1} << 32) - 1}),
             {"the number of elements overflows"}},
        Case{"four_dims_wrap",
             Dims({uint64_t{1} << 40, uint64_t{1} << 40, uint64_t{1} << 40, uint64_t{1} << 40}),
             {"overflows"}},
        Case{"bytes_wrap", Dims({uint64_t{1} << 40, uint64_t{1} << 22}), {"whose size overflows"}},
        Case{"bytes_beyond_file", Dims({uint64_t{1} << 30}), {"of 4294967296 bytes"}},
        Case{"row_no_multiple_of_block",
             Record([](GgufDraft::Tensor& t) {
               t.dims = {33};
               t.type = 2;
             }),
             {"multiple of 32 values for type Q4_0, got 33"}},
        Case{"type_removed_4", Type(4), {"type Q4_2 was removed"}},
        Case{"type_removed_5", Type(5), {"type Q4_3 was removed"}},
        Case{"type_removed_31", Type(31), {"type Q4_0_4_4 was removed"}},
        Case{"type_count", Type(40), {"type: expected one of the format's, got 40"}},
        Case{"type_minus_1", Type(0xFFFFFFFF), {"got 4294967295"}},
        Case{"type_i32", Type(26), {"'output_norm.weight': type I32 is not supported"},
             kUnsupported},
        Case{"type_iq2_xxs", Type(16), {"type IQ2_XXS is not supported"}, kUnsupported},
        Case{"type_mxfp4", Type(39), {"type MXFP4 is not supported"}, kUnsupported},
        Case{"offset_unaligned", Offset([](uint64_t o) { return o + 8; }),
             {"'output_norm.weight': offset: expected a multiple of the alignment 32"}},
        Case{"offset_2_64", Offset([](uint64_t) { return kHuge; }), {"offset: expected"}},
        Case{"offset_wraps_into_metadata", Offset([](uint64_t) { return kHuge - 31; }),
             {"offset: expected", "(gap)"}},
        Case{"offset_beyond_end", Offset([](uint64_t o) { return o + (uint64_t{1} << 40); }),
             {"(gap)"}},
        Case{"offset_gap", Offset([](uint64_t o) { return o + 32; }), {"(gap)"}},
        Case{"offset_overlap", Offset([](uint64_t o) { return o - 32; }), {"(overlap"}},
        Case{"offset_same_as_first", Offset([](uint64_t) { return 0; }), {"(overlap"}},
        Case{"offsets_swapped",
             [](GgufDraft& d) {
               const uint64_t data = d.OffsetOf("data");
               const uint64_t q = d.OffsetOf("bytes blk.0.attn_q.weight") - data;
               const uint64_t k = d.OffsetOf("bytes blk.0.attn_k.weight") - data;
               d.TensorAt("blk.0.attn_q.weight").offset = k;
               d.TensorAt("blk.0.attn_k.weight").offset = q;
             },
             {"'blk.0.attn_q.weight': offset"}},
        Case{"data_one_byte_short",
             [](GgufDraft& d) {
               // Nine values take 36 bytes.
               d.AddTensor("tail", {9}, DType::kF32, std::string(32, 'x'));
             },
             {"tensor 'tail': expected data within the file's"}}));

TEST(MalformedFileTest, ShortFilesAreRefused) {
  const std::string start = std::string("GGUF") + Word32(3);
  for (const std::string& bytes : {std::string(), std::string("GGU"), std::string("GGUF"), start}) {
    const TempFile stored(bytes);
    const absl::Status status = ModelFile::Open(stored.path()).status();
    EXPECT_EQ(status.code(), kInvalid) << Message(status);
    EXPECT_THAT(Message(status), HasSubstr("header")) << bytes.size();
  }
}

TEST(MalformedFileTest, EveryTruncationOfTheMetadataIsRefused) {
  testing::TinyModelSpec spec;
  spec.layers = 1;
  const std::string bytes = testing::MakeTinyModel(spec);
  const TempFile stored(bytes);
  uint64_t metadata_bytes = 0;
  {
    const auto file = ModelFile::Open(stored.path());
    ASSERT_TRUE(file.ok());
    metadata_bytes = (*file)->metadata_bytes();
  }
  ASSERT_GT(metadata_bytes, 1000u);
  for (uint64_t length = metadata_bytes + 1; length-- > 0;) {
    ASSERT_EQ(truncate(stored.path().c_str(), static_cast<off_t>(length)), 0);
    const absl::Status status = ModelFile::Open(stored.path()).status();
    ASSERT_EQ(status.code(), kInvalid) << "prefix of " << length << " bytes: " << Message(status);
  }
}

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
