// Vocabularies and chat templates that contradict themselves or try to cost too much.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/engine/hostile/hostile_case.h"

namespace sluice::testing {
namespace {

using engine::MetadataArray;

constexpr const char* kTokens = "tokenizer.ggml.tokens";
constexpr const char* kTypes = "tokenizer.ggml.token_type";
constexpr const char* kScores = "tokenizer.ggml.scores";
constexpr const char* kMerges = "tokenizer.ggml.merges";
constexpr const char* kTemplate = "tokenizer.chat_template";
constexpr int32_t kControl = 3;

// Replaces piece 317 of the byte-level vocabulary, a control token that nothing refers to.
auto WithPiece(std::string piece, int32_t type = kControl) {
  return [piece, type](GgufDraft& draft) {
    // The file's array, one string's bytes exchanged: type, count, then length and bytes of each.
    std::string& payload = draft.KeyAt(kTokens).payload;
    size_t at = 12;
    const auto length = [&payload](size_t offset) {
      uint64_t size = 0;
      for (int i = 7; i >= 0; --i) {
        size = size << 8 | static_cast<uint8_t>(payload[offset + static_cast<size_t>(i)]);
      }
      return static_cast<size_t>(size);
    };
    for (int i = 0; i < 317; ++i) at += 8 + length(at);
    payload.replace(at, 8 + length(at), Word64(piece.size()) + piece);
    std::string& types = draft.KeyAt(kTypes).payload;
    types.replace(12 + 4 * 317, 4, Word32(static_cast<uint32_t>(type)));
  };
}

// Appends to the merges that the file has.
auto WithMerge(std::string merge) {
  return [merge](GgufDraft& draft) {
    std::string& payload = draft.KeyAt(kMerges).payload;
    uint64_t count = 0;
    for (size_t i = 12; i-- > 4;) count = count << 8 | static_cast<uint8_t>(payload[i]);
    payload.replace(4, 8, Word64(count + 1));
    payload += Word64(merge.size()) + merge;
  };
}

auto Id(std::string name, engine::MetadataValue value) {
  return SetKey("tokenizer.ggml." + name + "_token_id", std::move(value));
}

std::vector<HostileCase> PieceCases() {
  return {
      {"M78_tokens_missing", RemoveKey(kTokens), {kTokens, "missing"}, kInvalid, false},
      {"M78_tokens_empty",
       [](GgufDraft& d) { d.SetStrings(kTokens, {}); },
       {kTokens, "expected 2 to 1048576 tokens, got 0"}},
      {"M78_tokens_of_ints",
       SetKey(kTokens, MetadataArray(std::vector<int32_t>(320))),
       {kTokens, "expected array of string, got array of i32"}},
      // Byte-level vocabularies have no use for scores, and real files carry odd ones.
      {"M79_scores_of_u8_unused",
       SetKey(kScores, MetadataArray(std::vector<uint8_t>(320))),
       {},
       kOk},
      {"M79_types_of_u8_right_count",
       SetKey(kTypes, MetadataArray(std::vector<uint8_t>(320, 1))),
       {},
       kOk},
      {"M79_types_of_f32",
       SetKey(kTypes, MetadataArray(std::vector<float>(320, 1))),
       {kTypes, "expected an array of integers, got array of f32"}},
      {"M80_scores_shorter_unused",
       SetKey(kScores, MetadataArray(std::vector<float>(319))),
       {},
       kOk},
      {"M80_types_shorter",
       SetKey(kTypes, MetadataArray(std::vector<int32_t>(319, 1))),
       {kTypes, "expected 320 types, one a token, got 319"}},
      {"M81_type_99",
       SetKey(kTypes, MetadataArray(std::vector<int32_t>(320, 99))),
       {"tokenizer.ggml.token_type[0]: expected a type from 1 to 6, got 99"}},
      {"M81_type_negative",
       SetKey(kTypes, MetadataArray(std::vector<int32_t>(320, -1))),
       {"tokenizer.ggml.token_type[0]", "got -1"}},
      {"M83_piece_of_10_mib",
       WithPiece(std::string(10 << 20, 'x')),
       {"tokenizer.ggml.tokens[317]: expected at most 65536 bytes, got 10485760"}},
      {"M83_piece_empty",
       WithPiece(""),
       {"1 tokens are empty and never made from text, the first one tokenizer.ggml.tokens[317]"},
       kOk},
      {"M83_piece_no_utf8",
       WithPiece("a\xc3("),
       {"tokenizer.ggml.tokens[317]: expected UTF-8, got 'a\\xc3('"}},
      {"M83_piece_with_nul",
       WithPiece(std::string("a\0b", 3)),
       {"tokenizer.ggml.tokens[317]: expected no NUL, got 'a\\x00b'"}},
      {"M84_merge_of_unknown_tokens",
       WithMerge("zz qq"),
       {"tokenizer.ggml.merges[", "'zz qq': the left side is no token"}},
      {"M84_merge_without_space",
       WithMerge("etao"),
       {"tokenizer.ggml.merges[", "'etao': expected two tokens with a space between"}},
      {"M84_merges_10_million",
       [](GgufDraft& d) {
         std::string& payload = d.KeyAt(kMerges).payload;
         payload = Word32(8) + Word64(10'000'000);
         for (int i = 0; i < 10'000'000; ++i) payload += Word64(0);
       },
       {kMerges, "expected at most 4194304 strings, got 10000000"}},
      {"M84_merges_missing", RemoveKey(kMerges), {kMerges, "missing"}, kInvalid, false},
      {"M86_pre_unknown",
       SetText("tokenizer.ggml.pre", "nonesuch"),
       {"tokenizer.ggml.pre: expected one of", "got 'nonesuch'"},
       kUnsupported},
      {"M86_pre_missing",
       RemoveKey("tokenizer.ggml.pre"),
       {"tokenizer.ggml.pre is missing, which means \"default\""},
       kOk},
      {"M86_model_unknown",
       SetText("tokenizer.ggml.model", "nonesuch"),
       {"tokenizer.ggml.model: expected", "got 'nonesuch'"},
       kUnsupported},
      {"M87_vocabulary_2_31",
       [](GgufDraft& d) { d.KeyAt(kTokens).payload.replace(4, 8, Word64(uint64_t{1} << 31)); },
       {kTokens, "array length: expected at most 67108864, got 2147483648"}},
      {"M88_piece_twice", WithPiece("et", 1), {"spelled like one before"}, kOk}};
}

std::vector<HostileCase> IdCases() {
  std::vector<HostileCase> cases;
  const std::vector<std::pair<std::string, engine::MetadataValue>> wrong = {
      {"minus_1", int32_t{-1}},
      {"as_vocabulary", uint32_t{320}},
      {"2_31", uint32_t{1u << 31}},
      {"2_64_less_1", UINT64_MAX}};
  for (const auto& [word, id] : wrong) {
    cases.push_back({"M82_eos_" + word, Id("eos", id), {"tokenizer.ggml.eos_token_id"}});
    cases.push_back({"M82_bos_needed_" + word,
                     [id = id](GgufDraft& d) {
                       d.Set("tokenizer.ggml.add_bos_token", true);
                       d.Set("tokenizer.ggml.bos_token_id", id);
                     },
                     {"tokenizer.ggml.bos_token_id"}});
    for (const char* name : {"bos", "unknown", "padding"}) {
      cases.push_back({"M82_" + std::string(name) + "_" + word,
                       Id(name, id),
                       {"tokenizer.ggml." + std::string(name) + "_token_id", "ignored"},
                       kOk});
    }
  }
  return cases;
}

// Templates are parsed, not rendered, while a model loads: a bad one costs its chat only.
std::vector<HostileCase> TemplateCases() {
  const auto nested = [](std::string_view open, std::string_view inner, std::string_view close) {
    std::string text = "{{ ";
    for (int i = 0; i < 100'000; ++i) text += open;
    text += inner;
    for (int i = 0; i < 100'000; ++i) text += close;
    return text + " }}";
  };
  return {{"M89_template_10_mib",
           SetText(kTemplate, std::string(10 << 20, 'x')),
           {"tokenizer.chat_template: expected a template of at most 1048576 bytes, got 10485760",
            "no chat"},
           kOk},
          {"M89_template_17_mib",
           SetText(kTemplate, std::string(17 << 20, 'x')),
           {"'tokenizer.chat_template': value: expected a length of 0 to 16777216 bytes"}},
          {"M89_template_nested",
           SetText(kTemplate, nested("(", "1", ")")),
           {"tokenizer.chat_template: line 1: nested deeper than 100", "no chat"},
           kOk},
          {"M89_template_of_open_blocks",
           SetText(kTemplate, nested("1 }}{% if x %}{{ ", "1", "")),
           {"tokenizer.chat_template: expected a template of at most 1048576 bytes", "no chat"},
           kOk},
          {"M89_template_calls_itself",
           SetText(kTemplate, "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
           {},
           kOk},
          {"M89_template_range",
           SetText(kTemplate, "{% for i in range(10**9) %}{{ i }}{% endfor %}"),
           {},
           kOk},
          {"M89_template_injection",
           SetText(kTemplate,
                   "{{ ''.__class__.__mro__[1].__subclasses__() }}{% include '/etc/passwd' %}"),
           {"tokenizer.chat_template: line 1: unknown block 'include'", "no chat"},
           kOk},
          {"M89_template_no_string",
           SetKey(kTemplate, uint32_t{1}),
           {"'tokenizer.chat_template': expected string, got u32"}}};
}

// Replaces piece 100, the byte token <0x61>.
auto WithBytePiece(std::string piece) {
  return [piece](GgufDraft& draft) {
    std::string& payload = draft.KeyAt(kTokens).payload;
    const size_t at = payload.find(Word64(6) + "<0x61>");
    payload.replace(at, 14, Word64(piece.size()) + piece);
  };
}

}  // namespace

std::vector<HostileCase> VocabularyCases() {
  std::vector<HostileCase> all = PieceCases();
  for (auto* cases : {&IdCases, &TemplateCases}) {
    for (HostileCase& one : (*cases)()) all.push_back(std::move(one));
  }
  return all;
}

std::vector<HostileCase> SentencePieceCases() {
  const std::string expected = "]: expected a byte token from <0x00> to <0xFF>, got ";
  return {
      {"M79_scores_of_strings",
       SetKey(kScores, MetadataArray(std::vector<std::string>(320, "a"))),
       {kScores, "got array of string"}},
      {"M80_scores_missing", RemoveKey(kScores), {kScores, "missing"}, kInvalid, false},
      {"M80_scores_shorter_spm",
       SetKey(kScores, MetadataArray(std::vector<float>(3))),
       {kScores, "one a token, got 3"}},
      {"M85_byte_minus_1", WithBytePiece("<0x-1>"), {kTokens, expected + "'<0x-1>'"}},
      {"M85_byte_zz", WithBytePiece("<0xZZ>"), {kTokens, expected + "'<0xZZ>'"}},
      {"M85_byte_of_nothing", WithBytePiece("<0x>"), {kTokens, expected + "'<0x>'"}},
      {"M85_byte_100", WithBytePiece("<0x100>"), {kTokens, expected + "'<0x100>'"}},
      {"M90_charsmap_short",
       SetKey("tokenizer.ggml.precompiled_charsmap", MetadataArray(std::vector<uint8_t>{1, 2, 3})),
       {"tokenizer.ggml.precompiled_charsmap is present"},
       kUnsupported},
      {"M90_charsmap_that_points_outside",
       SetKey("tokenizer.ggml.precompiled_charsmap",
              MetadataArray(std::vector<uint8_t>(4096, 0xFF))),
       {"tokenizer.ggml.precompiled_charsmap is present"},
       kUnsupported}};
}

}  // namespace sluice::testing
