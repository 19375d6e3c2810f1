#include "engine/safetensors/tokenizer_facts.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "engine/base/hash.h"
#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"
#include "engine/safetensors/json_document.h"
#include "engine/safetensors/tokenizer_pipeline.h"

namespace sluice::engine {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 20;
constexpr size_t kShownToken = 120;
constexpr std::string_view kTemplateKey = "tokenizer.chat_template";

// Token types of GGUF.
constexpr int32_t kNormal = 1;
constexpr int32_t kControl = 3;
constexpr int32_t kUserDefined = 4;
constexpr int32_t kUnused = 5;
constexpr int32_t kByte = 6;

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 128; });
}

// "<0x00>" to "<0xFF>".
bool IsByteToken(std::string_view piece) {
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); };
  return piece.size() == 6 && piece.starts_with("<0x") && piece[5] == '>' && is_digit(piece[3]) &&
         is_digit(piece[4]);
}

// A chat template's name as a part of a key, as gguf-py makes it.
std::string NameInKey(std::string_view name) {
  std::string part(name);
  for (char& c : part) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return part;
}

// Makes the entries of one tokenizer; used once.
class TokenizerMaker {
 public:
  explicit TokenizerMaker(const TokenizerFiles& files)
      : files_(files),
        path_(files.directory + "/tokenizer.json"),
        root_(files.tokenizer.document.root()) {}

  absl::StatusOr<std::vector<ModelFile::Entry>> Make() {
    ASSIGN_OR_RETURN(pipeline_, TokenizerPipeline::Read(path_, root_));
    Add("tokenizer.ggml.model", pipeline_.model, "model");
    if (!pipeline_.pre.empty()) Add("tokenizer.ggml.pre", pipeline_.pre, "pre_tokenizer");
    if (!pipeline_.space_prefix.empty()) {
      Add("tokenizer.ggml.space_prefix", pipeline_.space_prefix, "normalizer");
    }
    RETURN_IF_ERROR(ReadVocabulary());
    RETURN_IF_ERROR(ReadAddedTokens());
    RETURN_IF_ERROR(FillAndAddTokens());
    RETURN_IF_ERROR(AddMerges());
    RETURN_IF_ERROR(ReadPostProcessor(root_.Find("post_processor")));
    RETURN_IF_ERROR(AddSpecialIds());
    RETURN_IF_ERROR(AddChatTemplate());
    return std::move(entries_);
  }

 private:
  absl::Status Bad(std::string_view key, const std::string& text) const {
    return InvalidArgument(path_ + ": key " + Quoted(key) + ": " + text);
  }
  absl::Status Unsupported(std::string_view key, const std::string& text) const {
    return Unimplemented(path_ + ": key " + Quoted(key) + ": " + text);
  }
  void Add(std::string_view key, MetadataValue value, std::string_view from,
           std::string_view file = "tokenizer.json") {
    entries_.push_back(
        {std::string(key), std::move(value), 0, std::string(file) + " key " + Quoted(from)});
  }

  absl::StatusOr<size_t> TakeId(std::string_view key, std::string_view piece,
                                const std::optional<JsonValue>& value) {
    const std::optional<int64_t> id = value.has_value() ? value->AsInteger() : std::nullopt;
    if (!id.has_value() || *id < 0 || *id >= kMaxTokens) {
      return Bad(key, "token " + Quoted(piece) + ": expected an id from 0 to " +
                          std::to_string(kMaxTokens - 1) + ", got " +
                          (value.has_value() ? value->Dump(kShownToken) : "none"));
    }
    const auto index = static_cast<size_t>(*id);
    if (index >= pieces_.size()) {
      pieces_.resize(index + 1);
      types_.resize(index + 1, kUnused);
    }
    return index;
  }

  absl::Status ReadVocabulary() {
    const std::optional<JsonValue> vocabulary = root_.Find("model")->Find("vocab");
    if (!vocabulary.has_value() || !vocabulary->is_object()) {
      return Bad("model", "option 'vocab': expected an object of tokens and their ids");
    }
    const bool has_bytes = pipeline_.model == "piece-bpe";
    size_t num_bytes = 0;
    for (const JsonValue member : *vocabulary) {
      const std::string_view piece = member.key();
      ASSIGN_OR_RETURN(const size_t id, TakeId("model", piece, member));
      if (types_[id] != kUnused) {
        return Bad("model", "token " + Quoted(piece) + ": expected an id of its own, got " +
                                std::to_string(id) + " of " + Quoted(pieces_[id]));
      }
      if (has_bytes && piece.find(' ') != std::string_view::npos) {
        return Unsupported("model",
                           "token " + Quoted(piece) + ": only U+2581 is supported for a space");
      }
      const bool is_byte = has_bytes && IsByteToken(piece);
      num_bytes += is_byte ? 1 : 0;
      pieces_[id] = piece;
      types_[id] = is_byte ? kByte : kNormal;
      ids_.emplace(piece, id);
    }
    if (has_bytes && num_bytes != 256) {
      return Unsupported("model",
                         "option 'byte_fallback': expected a token for each of the 256 "
                         "bytes, got " +
                             std::to_string(num_bytes));
    }
    return absl::OkStatus();
  }

  absl::Status CheckAddedToken(const JsonValue& token, std::string_view content) const {
    for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
      const std::optional<JsonValue> value = token.Find(flag);
      if (!value.has_value() || value->AsBool() == false) continue;
      return Unsupported("added_tokens", "token " + Quoted(content) + ": " + flag +
                                             ": only false is supported, got " +
                                             value->Dump(kShownToken));
    }
    // A token that is looked for in normalised text: the same where that text is the raw one.
    const std::optional<JsonValue> normalized = token.Find("normalized");
    const bool is_raw = !normalized.has_value() || normalized->AsBool() == false;
    const bool is_alike = !pipeline_.normalizes || (pipeline_.model == "gpt2" && IsAscii(content));
    if (is_raw || is_alike) return absl::OkStatus();
    return Unsupported("added_tokens", "token " + Quoted(content) +
                                           ": normalized: only false is supported with this "
                                           "normalizer");
  }

  absl::Status ReadAddedTokens() {
    const std::optional<JsonValue> added = root_.Find("added_tokens");
    if (!added.has_value() || added->is_null()) return absl::OkStatus();
    if (!added->is_array()) return Bad("added_tokens", "expected an array");
    for (const JsonValue token : *added) {
      const std::optional<JsonValue> text = token.Find("content");
      const std::string_view content = text.has_value() ? text->AsString().value_or("") : "";
      if (content.empty()) {
        return Bad("added_tokens",
                   "expected tokens with a content, got " + token.Dump(kShownToken));
      }
      RETURN_IF_ERROR(CheckAddedToken(token, content));
      ASSIGN_OR_RETURN(const size_t id, TakeId("added_tokens", content, token.Find("id")));
      const auto [known, is_new] = ids_.emplace(content, id);
      if (known->second != id || (types_[id] != kUnused && pieces_[id] != content)) {
        return Bad("added_tokens", "token " + Quoted(content) + ": expected id " +
                                       std::to_string(known->second) + " of its own, got " +
                                       std::to_string(id) +
                                       (pieces_[id].empty() ? "" : " of " + Quoted(pieces_[id])));
      }
      const std::optional<JsonValue> special = token.Find("special");
      pieces_[id] = content;
      types_[id] = special.has_value() && special->AsBool() == true ? kControl : kUserDefined;
      // Written in a text it means itself, not the spaces that pieces spell so.
      if (types_[id] == kUserDefined && pipeline_.model == "piece-bpe" &&
          content.find("\xE2\x96\x81") != std::string_view::npos) {
        return Unsupported("added_tokens", "token " + Quoted(content) +
                                               ": no U+2581 is supported in an added token");
      }
    }
    return absl::OkStatus();
  }

  absl::Status FillAndAddTokens() {
    for (size_t id = 0; id < pieces_.size(); ++id) {
      if (types_[id] == kUnused) pieces_[id] = "[PAD" + std::to_string(id) + "]";
    }
    Add("tokenizer.ggml.tokens", MetadataArray(std::move(pieces_)), "model");
    Add("tokenizer.ggml.token_type", MetadataArray(types_), "added_tokens");
    return absl::OkStatus();
  }

  // Merges are pairs of tokens, or in files of old versions one text with a space between.
  absl::Status AddMerges() {
    const std::optional<JsonValue> merges = root_.Find("model")->Find("merges");
    if (!merges.has_value() || !merges->is_array()) {
      return Bad("model", "option 'merges': expected an array");
    }
    std::vector<std::string> texts;
    for (const JsonValue merge : *merges) {
      std::string text(merge.AsString().value_or(""));
      if (merge.is_array() && merge.size() == 2) {
        for (const JsonValue side : merge) {
          if (!text.empty()) text += ' ';
          text += side.AsString().value_or(" ");
        }
      }
      if (text.empty() || std::count(text.begin(), text.end(), ' ') != 1) {
        return Bad("model", "option 'merges': element " + std::to_string(texts.size()) +
                                ": expected two tokens without spaces, got " +
                                merge.Dump(kShownToken));
      }
      texts.push_back(std::move(text));
    }
    Add("tokenizer.ggml.merges", MetadataArray(std::move(texts)), "model");
    return absl::OkStatus();
  }

  // What is put before and after the text.
  absl::Status ReadPostProcessor(const std::optional<JsonValue>& processor) {
    if (!processor.has_value() || processor->is_null()) return absl::OkStatus();
    const std::optional<JsonValue> type = processor->Find("type");
    const std::string_view name = type.has_value() ? type->AsString().value_or("") : "";
    const std::optional<JsonValue> parts = processor->Find("processors");
    if (name == "ByteLevel") return absl::OkStatus();  // of offsets only
    if (name == "Sequence" && parts.has_value() && parts->is_array()) {
      for (const JsonValue part : *parts) RETURN_IF_ERROR(ReadPostProcessor(part));
      return absl::OkStatus();
    }
    const std::optional<JsonValue> single = processor->Find("single");
    if (name != "TemplateProcessing" || !single.has_value() || !single->is_array()) {
      return Unsupported("post_processor",
                         "only 'TemplateProcessing' and 'ByteLevel' are "
                         "supported, got " +
                             processor->Dump(kShownToken));
    }
    bool is_after = false;
    for (const JsonValue part : *single) {
      if (part.Find("Sequence").has_value()) {
        if (is_after) return Unsupported("post_processor", "the text comes twice");
        is_after = true;
        continue;
      }
      const std::optional<JsonValue> special = part.Find("SpecialToken");
      const std::optional<JsonValue> id = special.has_value() ? special->Find("id") : std::nullopt;
      const auto found = ids_.find(id.has_value() ? id->AsString().value_or("") : "");
      std::optional<size_t>& place = is_after ? after_ : before_;
      if (found == ids_.end() || place.has_value()) {
        return Unsupported("post_processor",
                           "only one known token before the text and one after "
                           "it are supported, got " +
                               single->Dump(kShownToken));
      }
      place = found->second;
    }
    if (!is_after) return Bad("post_processor", "expected a place for the text");
    return absl::OkStatus();
  }

  // The token that a file names as a text, as an object with a content, or by its id.
  absl::StatusOr<std::optional<size_t>> Named(const JsonFile* file, std::string_view key) const {
    if (file == nullptr) return std::nullopt;
    std::optional<JsonValue> value = file->document.root().Find(key);
    if (value.has_value() && value->is_object()) value = value->Find("content");
    if (!value.has_value() || value->is_null() || value->is_array()) return std::nullopt;
    const auto found = ids_.find(value->AsString().value_or(""));
    if (value->is_string() && found != ids_.end()) return found->second;
    const std::optional<int64_t> id = value->AsInteger();
    if (id.has_value() && *id >= 0 && *id < static_cast<int64_t>(types_.size())) {
      return static_cast<size_t>(*id);
    }
    return InvalidArgument(files_.directory + "/" + file->name + ": key " + Quoted(key) +
                           ": expected a token of tokenizer.json, got " + value->Dump(kShownToken));
  }

  // Of the first file that names one.
  absl::StatusOr<std::optional<size_t>> FindSpecial(std::string_view name) {
    const std::string token = std::string(name) + "_token", id = token + "_id";
    const std::pair<const JsonFile*, std::string_view> places[] = {
        {files_.tokenizer_config, token},
        {files_.special_tokens_map, token},
        {files_.generation_config, id},
        {files_.config, id}};
    for (const auto& [file, key] : places) {
      ASSIGN_OR_RETURN(const std::optional<size_t> found, Named(file, key));
      if (!found.has_value()) continue;
      special_source_ = {std::string(key), file->name};
      return found;
    }
    return std::nullopt;
  }

  absl::Status AddSpecialId(std::string_view name, std::string_view key,
                            const std::optional<size_t>& added) {
    special_source_ = {"post_processor", "tokenizer.json"};
    ASSIGN_OR_RETURN(std::optional<size_t> id, FindSpecial(name));
    if (id.has_value() && added.has_value() && *id != *added) {
      return Unsupported("post_processor", "the token added to the text: expected the " +
                                               std::string(name) + " token, id " +
                                               std::to_string(*id) + " (" + special_source_.second +
                                               "), got id " + std::to_string(*added));
    }
    if (added.has_value()) id = added;
    if (!id.has_value()) return absl::OkStatus();
    Add("tokenizer.ggml." + std::string(key) + "_token_id", static_cast<uint32_t>(*id),
        special_source_.first, special_source_.second);
    return absl::OkStatus();
  }

  absl::Status AddSpecialIds() {
    Add("tokenizer.ggml.add_bos_token", before_.has_value(), "post_processor");
    Add("tokenizer.ggml.add_eos_token", after_.has_value(), "post_processor");
    ASSIGN_OR_RETURN(const std::vector<int32_t> ends, ReadEnds());
    if (!ends.empty()) {
      Add("tokenizer.ggml.eog_token_ids", MetadataArray(ends), "eos_token_id",
          "generation_config.json");
    }
    RETURN_IF_ERROR(AddSpecialId("bos", "bos", before_));
    RETURN_IF_ERROR(AddSpecialId("eos", "eos", after_));
    RETURN_IF_ERROR(AddSpecialId("pad", "padding", std::nullopt));
    return AddSpecialId("unk", "unknown", std::nullopt);
  }

  absl::StatusOr<std::vector<int32_t>> ReadEnds() const {
    std::vector<int32_t> ends;
    if (files_.generation_config == nullptr) return ends;
    const std::optional<JsonValue> value =
        files_.generation_config->document.root().Find("eos_token_id");
    if (!value.has_value() || value->is_null()) return ends;
    std::vector<JsonValue> ids;
    if (!value->is_array()) ids.push_back(*value);
    if (value->is_array()) {
      for (const JsonValue one : *value) ids.push_back(one);
    }
    for (const JsonValue& one : ids) {
      const std::optional<int64_t> id = one.AsInteger();
      if (!id.has_value() || *id < 0 || *id >= static_cast<int64_t>(types_.size())) {
        return InvalidArgument(files_.directory +
                               "/generation_config.json: key 'eos_token_id': expected ids of "
                               "tokenizer.json, below " +
                               std::to_string(types_.size()) + ", got " + one.Dump(kShownToken));
      }
      ends.push_back(static_cast<int32_t>(*id));
    }
    return ends;
  }

  absl::StatusOr<std::string> TemplateText(const JsonValue& value) const {
    if (value.is_string()) return std::string(*value.AsString());
    return InvalidArgument(files_.directory +
                           "/tokenizer_config.json: key 'chat_template': expected a string, got " +
                           std::string(KindName(value.kind())));
  }

  absl::Status AddConfigTemplate(const JsonValue& value) {
    ASSIGN_OR_RETURN(std::string text, TemplateText(value));
    Add(kTemplateKey, std::move(text), "chat_template", "tokenizer_config.json");
    return absl::OkStatus();
  }

  void AddNamedTemplates(const std::map<std::string, std::string>& templates,
                         const std::string& source) {
    if (templates.empty()) return;
    std::vector<std::string> names;
    for (const auto& [name, text] : templates) {
      entries_.push_back({std::string(kTemplateKey) + "." + name, text, 0, source});
      names.push_back(name);
    }
    entries_.push_back({"tokenizer.chat_templates", MetadataArray(std::move(names)), 0, source});
  }

  absl::Status AddChatTemplate() {
    // Files of templates take the place of all that tokenizer_config.json has.
    if (files_.chat_template.has_value()) {
      entries_.push_back(
          {std::string(kTemplateKey), *files_.chat_template, 0, "chat_template.jinja"});
    }
    if (files_.tool_use_template.has_value()) {
      AddNamedTemplates({{"tool_use", *files_.tool_use_template}},
                        "additional_chat_templates/tool_use.jinja");
    }
    if (files_.chat_template.has_value() || files_.tool_use_template.has_value()) {
      return absl::OkStatus();
    }
    if (files_.tokenizer_config == nullptr) return absl::OkStatus();
    const std::optional<JsonValue> value =
        files_.tokenizer_config->document.root().Find("chat_template");
    if (!value.has_value() || value->is_null()) return absl::OkStatus();
    if (!value->is_array()) return AddConfigTemplate(*value);
    std::map<std::string, std::string> others;
    std::optional<JsonValue> plain;
    for (const JsonValue one : *value) {
      const std::optional<JsonValue> name = one.Find("name"), text = one.Find("template");
      const std::string_view called = name.has_value() ? name->AsString().value_or("") : "";
      if (called.empty() || !text.has_value()) continue;
      if (called == "default") {
        plain = text;
        continue;
      }
      ASSIGN_OR_RETURN(others[NameInKey(called)], TemplateText(*text));
    }
    if (plain.has_value()) RETURN_IF_ERROR(AddConfigTemplate(*plain));
    AddNamedTemplates(others, "tokenizer_config.json key 'chat_template'");
    return absl::OkStatus();
  }

  const TokenizerFiles& files_;
  const std::string path_;
  const JsonValue root_;
  TokenizerPipeline pipeline_;
  std::vector<ModelFile::Entry> entries_;
  std::vector<std::string> pieces_;
  std::vector<int32_t> types_;
  std::unordered_map<std::string, size_t, StringHash, StringEqual> ids_;
  std::optional<size_t> before_, after_;                // the text
  std::pair<std::string, std::string> special_source_;  // key and file
};

}  // namespace

absl::StatusOr<std::vector<ModelFile::Entry>> ReadTokenizerFacts(const TokenizerFiles& files) {
  return TokenizerMaker(files).Make();
}

}  // namespace sluice::engine
