#include "engine/tokenizer/vocabulary_tokenizer.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "engine/base/status.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::engine {
namespace {

// Positions inside a text are counted in 32 bits.
constexpr size_t kMaxTextBytes = std::numeric_limits<int32_t>::max();

// What to do about an id that the vocabulary does not have.
enum class IdUse : uint8_t { kNeeded, kChecked, kOptional };

absl::StatusOr<std::optional<TokenId>> ReadId(const ModelFile& file, std::string_view name,
                                              int32_t vocab_size, IdUse use,
                                              std::vector<std::string>& warnings) {
  const std::string key = "tokenizer.ggml." + std::string(name) + "_token_id";
  if (file.Find(key) == nullptr) {
    if (use != IdUse::kNeeded) return std::nullopt;
    return InvalidArgument(key + " is missing, but text is to be encoded with this token");
  }
  const auto value = file.GetUint(key);
  absl::Status error = value.status();
  if (value.ok()) {
    const uint64_t id = **value;
    if (id < static_cast<uint64_t>(vocab_size)) return static_cast<TokenId>(id);
    error = InvalidArgument(key + ": expected an id below " + std::to_string(vocab_size) +
                            ", got " + std::to_string(id));
  }
  if (use != IdUse::kOptional) return InvalidArgument(Message(error));
  warnings.push_back(Message(error) + "; ignored");
  return std::nullopt;
}

absl::StatusOr<std::vector<TokenId>> FindEnds(const ModelFile& file, const Vocabulary& vocabulary,
                                              std::optional<TokenId> eos,
                                              std::vector<std::string>& warnings) {
  std::vector<TokenId> ends;
  if (eos.has_value()) ends.push_back(*eos);
  for (const std::string_view name : {"eot", "eom"}) {
    ASSIGN_OR_RETURN(const std::optional<TokenId> id,
                     ReadId(file, name, vocabulary.size(), IdUse::kOptional, warnings));
    if (id.has_value()) ends.push_back(*id);
  }
  // Of a Hugging Face model: all that its generation_config.json names.
  ASSIGN_OR_RETURN(const auto more, file.GetInts("tokenizer.ggml.eog_token_ids"));
  for (const int64_t id : more.value_or(std::vector<int64_t>())) {
    if (id >= 0 && id < vocabulary.size()) ends.push_back(static_cast<TokenId>(id));
  }
  std::vector<TokenId> named;
  bool has_return = false;
  bool has_call = false;
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    if (vocabulary.Type(id) != TokenType::kControl || !IsEndName(vocabulary.Bytes(id))) continue;
    named.push_back(id);
    has_return |= vocabulary.Bytes(id) == "<|return|>";
    has_call |= vocabulary.Bytes(id) == "<|call|>";
  }
  for (const TokenId id : named) {
    // In OpenAI's harmony format it ends one message of several in a turn.
    if (has_return && has_call && vocabulary.Bytes(id) == "<|end|>") continue;
    ends.push_back(id);
  }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  return ends;
}

absl::Status CheckText(std::string_view text) {
  if (text.size() > kMaxTextBytes) {
    return InvalidArgument("expected a text of at most " + std::to_string(kMaxTextBytes) +
                           " bytes, got " + std::to_string(text.size()));
  }
  return CheckUtf8(text);
}

// Of several templates converters write "default" as if it were the only one, and each of the
// others under a key of its own.
absl::Status ReadChatTemplates(const ModelFile& file, TokenizerTraits& traits) {
  const std::string key = "tokenizer.chat_template", prefix = key + ".";
  ASSIGN_OR_RETURN(const auto only, file.GetString(key));
  ASSIGN_OR_RETURN(const auto by_name, file.GetString(prefix + "default"));
  ASSIGN_OR_RETURN(const auto tool_use, file.GetString(prefix + "tool_use"));
  traits.chat_template = only.has_value() ? *only : by_name.value_or("");
  traits.tool_use_template = tool_use.value_or("");
  for (const ModelFile::Entry& entry : file.entries()) {
    if (!entry.key.starts_with(prefix)) continue;
    traits.first_template_name = entry.key.substr(prefix.size());
    break;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerTraits> TokenizerTraits::FromFile(const ModelFile& file,
                                                          const Vocabulary& vocabulary,
                                                          bool adds_bos_by_default,
                                                          std::vector<std::string>& warnings) {
  TokenizerTraits traits;
  ASSIGN_OR_RETURN(const auto adds_bos, file.GetBool("tokenizer.ggml.add_bos_token"));
  ASSIGN_OR_RETURN(const auto adds_eos, file.GetBool("tokenizer.ggml.add_eos_token"));
  traits.adds_bos = adds_bos.value_or(adds_bos_by_default);
  traits.adds_eos = adds_eos.value_or(false);
  ASSIGN_OR_RETURN(traits.bos,
                   ReadId(file, "bos", vocabulary.size(),
                          traits.adds_bos ? IdUse::kNeeded : IdUse::kOptional, warnings));
  // A wrong end is never harmless: generation would go on until the context is full.
  ASSIGN_OR_RETURN(traits.eos,
                   ReadId(file, "eos", vocabulary.size(),
                          traits.adds_eos ? IdUse::kNeeded : IdUse::kChecked, warnings));
  if (!traits.eos.has_value()) warnings.push_back("tokenizer.ggml.eos_token_id is missing");
  for (const std::string_view name : {"padding", "unknown"}) {
    RETURN_IF_ERROR(ReadId(file, name, vocabulary.size(), IdUse::kOptional, warnings).status());
  }
  ASSIGN_OR_RETURN(traits.end_of_generation, FindEnds(file, vocabulary, traits.eos, warnings));
  RETURN_IF_ERROR(ReadChatTemplates(file, traits));
  return traits;
}

absl::StatusOr<VocabularyTokenizer::Matchers> VocabularyTokenizer::Matchers::FromVocabulary(
    const Vocabulary& vocabulary, bool has_user_defined) {
  std::vector<TokenMatcher::Token> special;
  std::vector<TokenMatcher::Token> plain;
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    const TokenMatcher::Token token = {vocabulary.Bytes(id), id};
    if (token.text.empty()) continue;
    switch (vocabulary.Type(id)) {
      case TokenType::kUserDefined:
        if (!has_user_defined && !vocabulary.IsAddedToPieces(id)) break;
        special.push_back(token);
        plain.push_back(token);
        break;
      case TokenType::kControl:
      case TokenType::kUnknown:  // its name is a control token's to Hugging Face
        special.push_back(token);
        break;
      default:
        break;
    }
  }
  ASSIGN_OR_RETURN(TokenMatcher special_matcher, TokenMatcher::Create(std::move(special)));
  ASSIGN_OR_RETURN(TokenMatcher plain_matcher, TokenMatcher::Create(std::move(plain)));
  return Matchers{std::move(special_matcher), std::move(plain_matcher)};
}

VocabularyTokenizer::VocabularyTokenizer(Vocabulary vocabulary, TokenizerTraits traits,
                                         Matchers matchers)
    : vocabulary_(std::move(vocabulary)), matchers_(std::move(matchers)) {
  vocab_size_ = vocabulary_.size();
  model_ = std::move(traits.model);
  pre_ = std::move(traits.pre);
  bos_ = traits.bos;
  eos_ = traits.eos;
  adds_bos_ = traits.adds_bos;
  adds_eos_ = traits.adds_eos;
  end_of_generation_ = std::move(traits.end_of_generation);
  chat_template_ = std::move(traits.chat_template);
  tool_use_template_ = std::move(traits.tool_use_template);
  first_template_name_ = std::move(traits.first_template_name);
}

absl::StatusOr<std::vector<TokenId>> VocabularyTokenizer::Encode(
    std::string_view text, const EncodeOptions& options) const {
  RETURN_IF_ERROR(CheckText(text));
  const TokenMatcher& matcher = options.parse_special ? matchers_.special : matchers_.plain;
  ASSIGN_OR_RETURN(std::vector<TokenId> ids,
                   EncodeAround(text, matcher.FindAll(text), options.add_special));
  if (options.add_special && adds_eos_) ids.push_back(*eos_);
  return ids;
}

absl::StatusOr<std::vector<TokenId>> VocabularyTokenizer::EncodeChat(
    const MarkedText& text, const EncodeOptions& options) const {
  const std::string_view bytes = text.bytes();
  RETURN_IF_ERROR(CheckText(bytes));
  if (options.parse_special) {
    return EncodeAround(bytes, matchers_.special.FindAll(bytes), options.add_special);
  }
  // Control tokens within runs of template text, user-defined ones everywhere.
  std::vector<TokenMatcher::Match> matches = matchers_.plain.FindLongest(bytes);
  for (const MarkedText::Run& run : text.Runs()) {
    if (run.mark != MarkedText::Mark::kTemplate) continue;
    for (TokenMatcher::Match match :
         matchers_.special.FindLongest(bytes.substr(run.begin, run.end - run.begin))) {
      match.begin += run.begin;
      matches.push_back(match);
    }
  }
  std::sort(matches.begin(), matches.end(), [](const auto& a, const auto& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.size > b.size;
  });
  return EncodeAround(bytes, TokenMatcher::WithoutOverlaps(std::move(matches)),
                      options.add_special);
}

absl::StatusOr<std::vector<TokenId>> VocabularyTokenizer::EncodeAround(
    std::string_view text, const std::vector<TokenMatcher::Match>& matches, bool add_bos) const {
  std::vector<TokenId> ids;
  if (add_bos && adds_bos_) ids.push_back(*bos_);
  const size_t num_added = ids.size();
  size_t begin = 0;
  for (const TokenMatcher::Match& match : matches) {
    if (match.begin > begin) {
      RETURN_IF_ERROR(EncodeText(text.substr(begin, match.begin - begin), begin == 0, ids));
    }
    ids.push_back(match.id);
    begin = match.begin + match.size;
  }
  if (begin < text.size()) RETURN_IF_ERROR(EncodeText(text.substr(begin), begin == 0, ids));

  // A text made by a template begins with its own BOS.
  if (num_added == 1 && ids.size() > 1 && ids[1] == *bos_) ids.erase(ids.begin());
  return ids;
}

}  // namespace sluice::engine
