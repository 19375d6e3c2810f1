#include "engine/tokenizer/tokenizer.h"

#include <algorithm>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"
#include "engine/model_file/model_file.h"
#include "engine/tokenizer/bpe_tokenizer.h"
#include "engine/tokenizer/piece_bpe_tokenizer.h"
#include "engine/tokenizer/spm_tokenizer.h"

namespace sluice::engine {
namespace {

// With file and byte offset, where the message, which begins with a key, has none yet.
absl::Status Located(const ModelFile& file, const absl::Status& status) {
  const std::string message = Message(status);
  if (message.starts_with(file.path() + ": ")) return status;
  const std::string key = message.substr(0, message.find_first_of("[: "));
  return Prefix(file.path(), MakeStatus(status.code(), message + file.At(key)));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::FromFile(
    const ModelFile& file, std::vector<std::string>* warnings) {
  static constexpr std::string_view kModelKey = "tokenizer.ggml.model";
  std::vector<std::string> unread;
  std::vector<std::string>& heard = warnings != nullptr ? *warnings : unread;
  ASSIGN_OR_RETURN(const auto model, file.GetString(kModelKey));
  // Converters write the two names for models that take token ids only.
  if (!model.has_value() || *model == "none" || *model == "no_vocab") {
    return Prefix(file.path(),
                  NotFound("no vocabulary: " + std::string(kModelKey) +
                           (model.has_value() ? " is " + Quoted(*model) : " is missing")));
  }
  absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer =
      Unimplemented(std::string(kModelKey) + ": expected 'gpt2' or 'llama', got " + Quoted(*model));
  if (*model == "gpt2") tokenizer = BpeTokenizer::FromFile(file, heard);
  if (*model == "piece-bpe") tokenizer = PieceBpeTokenizer::FromFile(file, heard);
  if (*model == "llama") tokenizer = SpmTokenizer::FromFile(file, heard);
  if (!tokenizer.ok()) return Located(file, tokenizer.status());
  return tokenizer;
}

bool Tokenizer::IsEndOfGeneration(TokenId id) const {
  return std::binary_search(end_of_generation_.begin(), end_of_generation_.end(), id);
}

}  // namespace sluice::engine
