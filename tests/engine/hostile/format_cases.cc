// What the reader of the format must see through, whatever the file is a model of.

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/hostile/hostile_case.h"

namespace sluice::testing {
namespace {

using engine::MetadataValue;
using kernels::DType;

constexpr uint64_t kHuge = UINT64_MAX;

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

auto CutTo(size_t size) {
  return [size](std::string& bytes) { bytes.resize(size); };
}
void AddKeys(GgufDraft& draft, size_t total) {
  for (size_t i = draft.keys.size(); i < total; ++i) {
    // Not Set: looking for a key of that name first would make the test itself quadratic.
    draft.keys.push_back({"k." + std::to_string(i), 0, std::string(1, '\1'), std::nullopt});
  }
}

std::vector<HostileCase> HeaderCases() {
  return {
      HostileCase{
          "M03_magic", [](GgufDraft& d) { d.magic = "FUGG"; }, {"header", "\"GGUF\"", "'FUGG'"}},
      HostileCase{"M05_version_0", Version(0), {"version: expected 2 or 3, got 0", "at byte 4"}},
      HostileCase{"M06_version_1", Version(1), {"expected 2 or 3, got 1"}, kUnsupported},
      HostileCase{"M07_version_4", Version(4), {"expected 2 or 3, got 4"}, kUnsupported},
      HostileCase{
          "M08_big_endian", Version(0x03000000), {"little-endian", "version 3"}, kUnsupported},
      HostileCase{
          "M09_tensors_2_64", NumTensors(kHuge), {"number of tensors: expected at most 65536"}},
      HostileCase{"M10_tensors_2_63", NumTensors(kHuge >> 1), {"number of tensors", "at byte 8"}},
      HostileCase{"M11_tensors_1e9", NumTensors(1'000'000'000), {"number of tensors"}},
      HostileCase{"M11_tensors_60000", NumTensors(60'000), {"60000 do not fit"}},
      HostileCase{"M15_tensors_one_more",
                  [](GgufDraft& d) { d.num_tensors = d.tensors.size() + 1; },
                  {"tensor "}},
      HostileCase{"M12_keys_2_64",
                  NumKeys(kHuge),
                  {"number of keys: expected at most 65536", "at byte 16"}},
      HostileCase{"M13_keys_1e9", NumKeys(1'000'000'000), {"number of keys"}},
      HostileCase{"M13_keys_50000", NumKeys(50'000), {"50000 do not fit"}},
      HostileCase{"M14_keys_one_less",
                  [](GgufDraft& d) { d.num_keys = d.keys.size() - 1; },
                  {"number of dimensions: expected 1 to 4, got 7"}},
      HostileCase{"M14_keys_one_more",
                  [](GgufDraft& d) { d.num_keys = d.keys.size() + 1; },
                  {"tensor 0: name: expected a length"}}};
}

std::vector<HostileCase> KeyCases() {
  return {
      HostileCase{"M18_key_length_2_64",
                  NameLength(kHuge),
                  {"name: expected a length of 1 to 65535 bytes"}},
      HostileCase{
          "M20_key_length_2_63", NameLength(uint64_t{1} << 63), {"got 9223372036854775808"}},
      HostileCase{"M19_key_length_beyond_end",
                  [](GgufDraft& d) {
                    d.tensors.clear();
                    d.KeyAt("llama.block_count").name_length = 60'000;
                  },
                  {"name: expected a length within the"}},
      HostileCase{
          "M21_key_empty", KeyName(""), {"name: expected a length of 1 to 65535 bytes, got 0"}},
      HostileCase{"M22_key_65536", KeyName(std::string(65'536, 'k')), {"got 65536"}},
      HostileCase{"M23_key_nul", KeyName(std::string("a\0b", 3)), {"printable ASCII", "'a\\x00b'"}},
      HostileCase{
          "M23_key_utf8", KeyName("gr\xc3\xb6sse"), {"printable ASCII", "'gr\\xc3\\xb6sse'"}},
      HostileCase{"M23_key_bad_utf8", KeyName("\xff\xfe"), {"'\\xff\\xfe'"}},
      HostileCase{"M26_key_twice",
                  [](GgufDraft& d) { d.keys.push_back(d.KeyAt("llama.block_count")); },
                  {"key 'llama.block_count': expected each key once"}},
      HostileCase{"M27_key_twice_other_type",
                  [](GgufDraft& d) {
                    d.keys.push_back({"llama.block_count", 0, std::string(1, 'x'), std::nullopt});
                  },
                  {"key 'llama.block_count': expected each key once"}},
      HostileCase{"M28_key_type_13",
                  RawKey(13, "12345678"),
                  {"key 'test.key': type: expected 0 to 12, got 13"}},
      HostileCase{"M28_key_type_2_32", RawKey(0xFFFFFFFF, "12345678"), {"got 4294967295"}},
      HostileCase{"M34_key_bool_7", RawKey(7, "\7"), {"expected a bool of 0 or 1, got 7"}},
      HostileCase{"M24_key_string_2_64",
                  RawKey(8, Word64(kHuge)),
                  {"'test.key': value: expected a length"}},
      HostileCase{
          "M25_key_string_2_gib", RawKey(8, Word64(uint64_t{1} << 31)), {"0 to 16777216 bytes"}},
      HostileCase{"M25_key_string_beyond_end",
                  [](GgufDraft& d) {
                    d.tensors.clear();
                    RawKey(8, Word64(uint64_t{1} << 24))(d);
                  },
                  {"value: expected a length within the"}},
      HostileCase{
          "M28_key_array_type_13", RawArray(13, 1, "12345678"), {"element type: expected 0 to 12"}},
      HostileCase{"M29_key_array_of_arrays",
                  RawArray(9, 1, Word32(4) + Word64(0)),
                  {"arrays of arrays"},
                  kUnsupported},
      HostileCase{"M30_key_array_nested_deep",
                  [](GgufDraft& d) {
                    std::string nest;
                    for (int i = 0; i < 100'000; ++i) nest += Word32(9) + Word64(1);
                    RawKey(9, nest)(d);
                  },
                  {"arrays of arrays"},
                  kUnsupported},
      HostileCase{"M31_key_array_2_61_u64",
                  RawArray(10, uint64_t{1} << 61),
                  {"array length: expected at most"}},
      HostileCase{"M32_key_array_2_40_u8", RawArray(0, uint64_t{1} << 40), {"got 1099511627776"}},
      HostileCase{"M31_key_array_64_mi_u64",
                  RawArray(10, uint64_t{64} << 20),
                  {"67108864 elements do not fit"}},
      HostileCase{"M33_key_array_1e8_strings", RawArray(8, 100'000'000), {"got 100000000"}},
      HostileCase{
          "M34_key_array_of_bool_2", RawArray(7, 3, std::string("\1\2\0", 3)), {"0 or 1, got 2"}},
      HostileCase{"M24_key_array_string_2_64",
                  RawArray(8, 2, Word64(1) + "a" + Word64(kHuge)),
                  {"element: expected a length"}},
      HostileCase{"M37_key_run_to_the_end",
                  [](GgufDraft& d) {
                    d.tensors.clear();
                    d.num_tensors = 0;
                    RawArray(0, 1'000'000)(d);
                  },
                  {"do not fit in the"}}};
}

std::vector<HostileCase> AlignmentCases() {
  return {
      HostileCase{"M38_alignment_zero", Alignment(uint32_t{0}), {"'general.alignment'", "got 0"}},
      HostileCase{"M42_alignment_one",
                  Alignment(uint32_t{1}),
                  {"expected a power of two from 8 to 65536, got 1"}},
      HostileCase{"M42_alignment_four", Alignment(uint32_t{4}), {"got 4"}},
      HostileCase{"M39_alignment_thirteen", Alignment(uint32_t{13}), {"got 13"}},
      HostileCase{"M41_alignment_2_17", Alignment(uint32_t{1} << 17), {"got 131072"}},
      HostileCase{"M41_alignment_2_31", Alignment(uint32_t{1} << 31), {"got 2147483648"}},
      HostileCase{"M41_alignment_2_32_less_1", Alignment(uint32_t{0xFFFFFFFF}), {"got 4294967295"}},
      HostileCase{"M40_alignment_i32", Alignment(int32_t{32}), {"expected a u32, got i32"}},
      HostileCase{"M40_alignment_u64", Alignment(uint64_t{32}), {"expected a u32, got u64"}},
      HostileCase{
          "M40_alignment_string", Alignment(std::string("32")), {"expected a u32, got string"}},
      HostileCase{
          "M41_alignment_not_what_was_used", Alignment(uint32_t{64}), {"tensor '", "expected"}}};
}

std::vector<HostileCase> RecordCases() {
  return {
      HostileCase{"M43_tensor_name_2_64",
                  Record([](GgufDraft::Tensor& t) { t.name_length = kHuge; }),
                  {"name: expected a length of 1 to 63 bytes"}},
      HostileCase{"M44_tensor_name_64",
                  Record([](GgufDraft::Tensor& t) { t.name = std::string(64, 'n'); }),
                  {"got 64"}},
      HostileCase{
          "M45_tensor_name_empty", Record([](GgufDraft::Tensor& t) { t.name = ""; }), {"got 0"}},
      HostileCase{"M45_tensor_name_control",
                  Record([](GgufDraft::Tensor& t) { t.name = "a\nb"; }),
                  {"'a\\x0ab'"}},
      HostileCase{"M46_tensor_name_twice",
                  Record([](GgufDraft::Tensor& t) { t.name = "token_embd.weight"; }),
                  {"tensor 'token_embd.weight': expected each tensor once"}},
      HostileCase{"M47_tensor_dims_0", Dims({}), {"number of dimensions: expected 1 to 4, got 0"}},
      HostileCase{"M48_tensor_dims_5",
                  Dims({64, 1, 1, 1, 1}),
                  {"number of dimensions: expected 1 to 4, got 5"}},
      HostileCase{"M49_tensor_dims_2_32",
                  Record([](GgufDraft::Tensor& t) { t.num_dims = 0xFFFFFFFF; }),
                  {"got 4294967295"}},
      HostileCase{
          "M50_tensor_dim_0", Dims({64, 0}), {"dimension 1: expected 1 to 1099511627776, got 0"}},
      HostileCase{"M51_tensor_dim_2_63",
                  Dims({uint64_t{1} << 63}),
                  {"dimension 0", "got 9223372036854775808"}},
      HostileCase{"M52_tensor_dim_2_63_i8",
                  Record([](GgufDraft::Tensor& t) {
                    t.dims = {(uint64_t{1} << 63) - 1, 2, 1, 1};
                    t.type = 24;
                  }),
                  {"dimension 0"}},
      HostileCase{"M53_tensor_product_wraps_to_0",
                  Dims({uint64_t{1} << 32, uint64_t{1} << 32}),
                  {"the number of elements overflows"}},
      HostileCase{"M53_tensor_product_wraps_to_less",
                  Dims({(uint64_t{1} << 32) + 1, (uint64_t{1} << 32) - 1}),
                  {"the number of elements overflows"}},
      HostileCase{
          "M53_tensor_four_dims_wrap",
          Dims({uint64_t{1} << 40, uint64_t{1} << 40, uint64_t{1} << 40, uint64_t{1} << 40}),
          {"overflows"}},
      HostileCase{"M54_tensor_bytes_wrap",
                  Dims({uint64_t{1} << 40, uint64_t{1} << 22}),
                  {"whose size overflows"}},
      HostileCase{
          "M54_tensor_bytes_beyond_file", Dims({uint64_t{1} << 30}), {"of 4294967296 bytes"}},
      HostileCase{"M58_tensor_row_no_multiple_of_block",
                  Record([](GgufDraft::Tensor& t) {
                    t.dims = {33};
                    t.type = 2;
                  }),
                  {"multiple of 32 values for type Q4_0, got 33"}},
      HostileCase{"M59_tensor_type_removed_4", Type(4), {"type Q4_2 was removed"}},
      HostileCase{"M59_tensor_type_removed_5", Type(5), {"type Q4_3 was removed"}},
      HostileCase{"M59_tensor_type_removed_31", Type(31), {"type Q4_0_4_4 was removed"}},
      HostileCase{
          "M59_tensor_type_count", Type(40), {"type: expected one of the format's, got 40"}},
      HostileCase{"M59_tensor_type_minus_1", Type(0xFFFFFFFF), {"got 4294967295"}},
      HostileCase{"M77_tensor_type_i32",
                  Type(26),
                  {"'output_norm.weight': type I32 is not supported"},
                  kUnsupported},
      HostileCase{
          "M77_tensor_type_iq2_xxs", Type(16), {"type IQ2_XXS is not supported"}, kUnsupported},
      HostileCase{"M77_tensor_type_mxfp4", Type(39), {"type MXFP4 is not supported"}, kUnsupported},
      HostileCase{"M60_tensor_offset_unaligned",
                  Offset([](uint64_t o) { return o + 8; }),
                  {"'output_norm.weight': offset: expected a multiple of the alignment 32"}},
      HostileCase{
          "M61_tensor_offset_2_64", Offset([](uint64_t) { return kHuge; }), {"offset: expected"}},
      HostileCase{"M66_tensor_offset_wraps_into_metadata",
                  Offset([](uint64_t) { return kHuge - 31; }),
                  {"offset: expected", "(gap)"}},
      HostileCase{"M62_tensor_offset_beyond_end",
                  Offset([](uint64_t o) { return o + (uint64_t{1} << 40); }),
                  {"(gap)"}},
      HostileCase{"M65_tensor_offset_gap", Offset([](uint64_t o) { return o + 32; }), {"(gap)"}},
      HostileCase{
          "M65_tensor_offset_overlap", Offset([](uint64_t o) { return o - 32; }), {"(overlap"}},
      HostileCase{
          "M64_tensor_offset_same_as_first", Offset([](uint64_t) { return 0; }), {"(overlap"}},
      HostileCase{"M65_tensor_offsets_swapped",
                  [](GgufDraft& d) {
                    const uint64_t data = d.OffsetOf("data");
                    const uint64_t q = d.OffsetOf("bytes blk.0.attn_q.weight") - data;
                    const uint64_t k = d.OffsetOf("bytes blk.0.attn_k.weight") - data;
                    d.TensorAt("blk.0.attn_q.weight").offset = k;
                    d.TensorAt("blk.0.attn_k.weight").offset = q;
                  },
                  {"'blk.0.attn_q.weight': offset"}},
      HostileCase{"M63_data_one_byte_short",
                  [](GgufDraft& d) {
                    // Nine values take 36 bytes.
                    d.AddTensor("tail", {9}, DType::kF32, std::string(32, 'x'));
                  },
                  {"tensor 'tail': expected data within the file's"}}};
}

std::vector<HostileCase> ExtraCases() {
  return {
      HostileCase{"M01_empty_file",
                  [](GgufDraft&) {},
                  {"header", "got a file of 0 bytes"},
                  kInvalid,
                  true,
                  CutTo(0)},
      HostileCase{"M02_3_bytes",
                  [](GgufDraft&) {},
                  {"header", "got a file of 3 bytes"},
                  kInvalid,
                  true,
                  CutTo(3)},
      HostileCase{"M04_magic_only",
                  [](GgufDraft&) {},
                  {"header: version: expected 4 bytes"},
                  kInvalid,
                  true,
                  CutTo(4)},
      HostileCase{"M16_no_tensors",
                  [](GgufDraft& d) { d.num_tensors = 0; },
                  {"'token_embd.weight'", "missing", "no tensors at all"},
                  kInvalid,
                  false},
      HostileCase{"M36_as_many_keys_as_may_be", [](GgufDraft& d) { AddKeys(d, 65'536); }, {}, kOk},
      HostileCase{"M36_one_key_more",
                  [](GgufDraft& d) { AddKeys(d, 65'537); },
                  {"number of keys: expected at most 65536, got 65537"}},
      // Padding it to the alignment gives 0.
      HostileCase{"M55_bytes_2_64_less_4",
                  Dims({2'147'483'647, 2'147'483'649}),
                  {"'output_norm.weight'", "of 18446744073709551612 bytes"}},
      HostileCase{"M56_two_of_2_63_less_64_bytes",
                  [](GgufDraft& d) {
                    for (const char* name : {"token_embd.weight", "output_norm.weight"}) {
                      d.TensorAt(name).dims = {58'720'144, 39'268'347'319};
                    }
                  },
                  {"'token_embd.weight'", "of 9223372036854775744 bytes"}},
      HostileCase{"M57_sum_wraps",
                  [](GgufDraft& d) {
                    for (GgufDraft::Tensor& t : d.tensors) {
                      t.dims = {uint64_t{1} << 31, uint64_t{1} << 29};
                    }
                  },
                  {"of 4611686018427387904 bytes"}},
      HostileCase{"M67_last_byte_missing",
                  [](GgufDraft&) {},
                  {"tensor 'output.weight': expected data within the file's"},
                  kInvalid,
                  true,
                  [](std::string& bytes) { bytes.pop_back(); }},
      HostileCase{"M92_shard_of_65535",
                  SetKey("split.count", uint16_t{65535}),
                  {"'split.count': expected a model in one file, got one of 65535 parts"},
                  kUnsupported},
      HostileCase{"M92_wrong_part",
                  SetKey("split.no", uint16_t{7}),
                  {"'split.no': expected 0 in a model of one file, got 7"}}};
}

}  // namespace

std::vector<HostileCase> FormatCases() {
  std::vector<HostileCase> all;
  for (auto* cases : {&HeaderCases, &KeyCases, &AlignmentCases, &RecordCases, &ExtraCases}) {
    for (HostileCase& one : (*cases)()) all.push_back(std::move(one));
  }
  return all;
}

}  // namespace sluice::testing
