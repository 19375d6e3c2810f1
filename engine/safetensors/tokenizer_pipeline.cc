#include "engine/safetensors/tokenizer_pipeline.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {
namespace {

constexpr size_t kShownPart = 400;  // bytes of a part in a message

// Steps of pre-tokenizers; any other text is a regular expression whose matches are isolated.
constexpr std::string_view kBytes = "<bytes>";           // ByteLevel without its own expression
constexpr std::string_view kGpt2Bytes = "<gpt2 bytes>";  // with it
constexpr std::string_view kDigits = "<digits>";         // each one apart

constexpr std::string_view kQwen2Split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen35Split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N})"
    R"(| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kGpt4oSplit =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+)"
    R"(|\s+(?!\S)|\s+)";
constexpr std::string_view kTekkenSplit =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Byte-level families; the names are PreTokenizerRules' own.
struct ByteFamily {
  std::string_view pre;
  bool nfc;
  bool ignores_merges;
  std::array<std::string_view, 2> steps;  // the second may be empty
};
constexpr ByteFamily kByteFamilies[] = {
    {"gpt-2", false, false, {kGpt2Bytes}},
    {"olmo", true, false, {kGpt2Bytes}},
    {"smollm", false, false, {kDigits, kGpt2Bytes}},
    {"command-r", true, false, {kDigits, kGpt2Bytes}},
    {"qwen2", true, false, {kQwen2Split, kBytes}},
    {"qwen35", true, false, {kQwen35Split, kBytes}},
    {"llama-bpe", false, true, {kLlama3Split, kBytes}},
    {"dbrx", false, false, {kLlama3Split, kBytes}},
    {"gpt-4o", false, true, {kGpt4oSplit, kBytes}},
    {"tekken", false, true, {kTekkenSplit, kBytes}},
};

// Families over characters, with U+2581 for a space; each part as JsonValue::Dump writes it.
constexpr std::string_view kSpaceToMark =
    R"({"content":"▁","pattern":{"String":" "},"type":"Replace"})";
constexpr std::string_view kPrependAndMark =
    R"({"normalizers":[{"prepend":"▁","type":"Prepend"},)"
    R"({"content":"▁","pattern":{"String":" "},"type":"Replace"}],"type":"Sequence"})";
// Of no effect after the normaliser, which leaves no space.
constexpr std::string_view kSplitAtSpaces =
    R"({"behavior":"MergedWithPrevious","invert":false,"pattern":{"String":" "},"type":"Split"})";
constexpr std::string_view kMetaspaceFirst =
    R"({"prepend_scheme":"first","replacement":"▁","split":false,"type":"Metaspace"})";
constexpr std::string_view kMetaspaceAlways =
    R"({"prepend_scheme":"always","replacement":"▁","split":false,"type":"Metaspace"})";
constexpr std::string_view kMetaspaceNever =
    R"({"prepend_scheme":"never","replacement":"▁","split":false,"type":"Metaspace"})";
constexpr std::string_view kPieces =
    R"({"decoders":[{"content":" ","pattern":{"String":"▁"},"type":"Replace"},)"
    R"({"type":"ByteFallback"},{"type":"Fuse"}],"type":"Sequence"})";
constexpr std::string_view kPiecesWithoutFirstSpace =
    R"({"decoders":[{"content":" ","pattern":{"String":"▁"},"type":"Replace"},)"
    R"({"type":"ByteFallback"},{"type":"Fuse"},)"
    R"({"content":" ","start":1,"stop":0,"type":"Strip"}],"type":"Sequence"})";

struct PieceFamily {
  std::string_view space_prefix;
  std::string_view normalizer;
  std::string_view pre_tokenizer;
  std::string_view decoder;
};
constexpr PieceFamily kPieceFamilies[] = {
    {"each", kPrependAndMark, "null", kPiecesWithoutFirstSpace},
    {"none", kSpaceToMark, "null", kPieces},
    {"none", kSpaceToMark, kSplitAtSpaces, kPieces},
    {"first-unspaced", "null", kMetaspaceFirst, kPiecesWithoutFirstSpace},
    {"each-unspaced", "null", kMetaspaceAlways, kPiecesWithoutFirstSpace},
    {"none", "null", kMetaspaceNever, kPieces},
};

// Reads the parts of one tokenizer.json; used once.
class PipelineReader {
 public:
  PipelineReader(const std::string& path, JsonValue tokenizer)
      : path_(path), tokenizer_(tokenizer) {}

  absl::StatusOr<TokenizerPipeline> Read() {
    ASSIGN_OR_RETURN(const bool has_bytes, ReadModel());
    return has_bytes ? ReadPieces() : ReadByteLevel();
  }

 private:
  static std::string Dump(const std::optional<JsonValue>& value, size_t most = SIZE_MAX) {
    return value.has_value() ? value->Dump(most) : "null";
  }
  absl::Status Unknown(std::string_view key) const {
    return Unimplemented(path_ + ": key " + Quoted(key) +
                         ": only those of known families of tokenizers are supported, got " +
                         Dump(tokenizer_.Find(key), kShownPart));
  }

  // Whether characters that are no token become bytes.
  absl::StatusOr<bool> ReadModel() {
    const std::optional<JsonValue> model = tokenizer_.Find("model");
    const std::optional<JsonValue> type = model.has_value() ? model->Find("type") : std::nullopt;
    if (!type.has_value() || type->AsString() != "BPE") {
      return Unimplemented(path_ + ": key 'model': only type 'BPE' is supported, got " +
                           Dump(type, kShownPart));
    }
    bool byte_fallback = false;
    for (const JsonValue option : *model) {
      const std::string_view key = option.key();
      const std::string value =
          option.is_object() || option.is_array() ? "" : option.Dump(kShownPart);
      if (key == "type" || key == "vocab" || key == "merges") continue;
      if (key == "byte_fallback") {
        byte_fallback = value == "true";
      } else if (key == "ignore_merges") {
        ignores_merges_ = value == "true";
      } else if (key == "unk_token") {
        has_unknown_ = value != "null" && value != "\"\"";
      } else if (key != "fuse_unk" && value != "null" && value != "\"\"" && value != "false" &&
                 value != "0" && value != "0.0") {
        return Unimplemented(path_ + ": key 'model': option " + Quoted(key) +
                             " is not supported, got " + option.Dump(kShownPart));
      }
    }
    return byte_fallback;
  }

  // Appends what `part` does; false when it is none of the known steps.
  static bool AppendSteps(const JsonValue& part, std::vector<std::string>& steps) {
    const std::optional<JsonValue> type = part.Find("type");
    const std::string_view name = type.has_value() ? type->AsString().value_or("") : "";
    if (name == "Sequence") {
      const std::optional<JsonValue> parts = part.Find("pretokenizers");
      if (!parts.has_value() || !parts->is_array() || part.size() != 2) return false;
      for (const JsonValue one : *parts) {
        if (!AppendSteps(one, steps)) return false;
      }
      return true;
    }
    std::string dump = part.Dump();
    // What it says of offsets changes no token, and it cuts text unless told not to.
    for (const char* offsets : {R"("trim_offsets":true,)", R"("trim_offsets":false,)"}) {
      if (const size_t at = dump.find(offsets); name == "ByteLevel" && at != std::string::npos) {
        dump.erase(at, std::string_view(offsets).size());
      }
    }
    if (dump == R"({"add_prefix_space":false,"type":"ByteLevel","use_regex":false})") {
      steps.emplace_back(kBytes);
    } else if (dump == R"({"add_prefix_space":false,"type":"ByteLevel","use_regex":true})" ||
               dump == R"({"add_prefix_space":false,"type":"ByteLevel"})") {
      steps.emplace_back(kGpt2Bytes);
    } else if (dump == R"({"individual_digits":true,"type":"Digits"})") {
      steps.emplace_back(kDigits);
    } else if (name == "Split") {
      const std::optional<JsonValue> pattern = part.Find("pattern");
      const std::optional<JsonValue> regex =
          pattern.has_value() ? pattern->Find("Regex") : std::nullopt;
      const std::optional<JsonValue> behavior = part.Find("behavior");
      const std::optional<JsonValue> invert = part.Find("invert");
      if (part.size() != 4 || !regex.has_value() || !regex->is_string() || pattern->size() != 1 ||
          !behavior.has_value() || behavior->AsString() != "Isolated" || !invert.has_value() ||
          invert->AsBool() != false) {
        return false;
      }
      steps.emplace_back(*regex->AsString());
    } else {
      return false;
    }
    return true;
  }

  absl::StatusOr<TokenizerPipeline> ReadByteLevel() const {
    const std::string normalizer = Dump(tokenizer_.Find("normalizer"));
    const bool nfc = normalizer == R"({"type":"NFC"})" ||
                     normalizer == R"({"normalizers":[{"type":"NFC"}],"type":"Sequence"})";
    const bool none =
        normalizer == "null" || normalizer == R"({"normalizers":[],"type":"Sequence"})";
    if (!nfc && !none) return Unknown("normalizer");
    const std::optional<JsonValue> pre_tokenizer = tokenizer_.Find("pre_tokenizer");
    std::vector<std::string> steps;
    if (!pre_tokenizer.has_value() || !AppendSteps(*pre_tokenizer, steps)) {
      return Unknown("pre_tokenizer");
    }
    const std::optional<JsonValue> decoder = tokenizer_.Find("decoder");
    if (!decoder.has_value() || !decoder->Find("type").has_value() ||
        decoder->Find("type")->AsString() != "ByteLevel") {
      return Unknown("decoder");
    }
    if (has_unknown_) {
      return Unimplemented(path_ +
                           ": key 'model': option 'unk_token' is not supported here: bytes "
                           "are always tokens");
    }
    steps.resize(std::max<size_t>(steps.size(), 2));
    for (const ByteFamily& family : kByteFamilies) {
      if (!std::equal(steps.begin(), steps.end(), family.steps.begin(), family.steps.end()) ||
          family.nfc != nfc) {
        continue;
      }
      if (family.ignores_merges != ignores_merges_) continue;
      TokenizerPipeline pipeline;
      pipeline.model = "gpt2";
      pipeline.pre = family.pre;
      pipeline.normalizes = nfc;
      return pipeline;
    }
    return Unimplemented(
        path_ +
        ": keys 'normalizer', 'pre_tokenizer' and 'model': no family of tokenizers is "
        "known that has this pre-tokenizer with normaliser " +
        normalizer + " and ignore_merges " + (ignores_merges_ ? "true" : "false") + ", got " +
        pre_tokenizer->Dump(kShownPart));
  }

  absl::StatusOr<TokenizerPipeline> ReadPieces() const {
    if (ignores_merges_) {
      return Unimplemented(path_ +
                           ": key 'model': option 'ignore_merges' is not supported beside "
                           "'byte_fallback'");
    }
    const std::string normalizer = Dump(tokenizer_.Find("normalizer"));
    const std::string pre_tokenizer = Dump(tokenizer_.Find("pre_tokenizer"));
    const std::string decoder = Dump(tokenizer_.Find("decoder"));
    std::string_view unknown = "normalizer";
    for (const PieceFamily& family : kPieceFamilies) {
      if (family.normalizer != normalizer) continue;
      if (unknown == "normalizer") unknown = "pre_tokenizer";
      if (family.pre_tokenizer != pre_tokenizer) continue;
      unknown = "decoder";
      if (family.decoder != decoder) continue;
      TokenizerPipeline pipeline;
      pipeline.model = "piece-bpe";
      pipeline.space_prefix = family.space_prefix;
      pipeline.normalizes = normalizer != "null";
      return pipeline;
    }
    return Unknown(unknown);
  }

  const std::string& path_;
  const JsonValue tokenizer_;
  bool ignores_merges_ = false;
  bool has_unknown_ = false;
};

}  // namespace

absl::StatusOr<TokenizerPipeline> TokenizerPipeline::Read(const std::string& path,
                                                          JsonValue tokenizer) {
  return PipelineReader(path, tokenizer).Read();
}

}  // namespace sluice::engine
