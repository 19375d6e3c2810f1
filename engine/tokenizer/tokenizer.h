#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/ids.h"
#include "engine/tokenizer/marked_text.h"

namespace sluice::engine {

class ModelFile;

// Token types of `tokenizer.ggml.token_type` (ggml/docs/gguf.md).
enum class TokenType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// Text to token ids and back, made from the vocabulary inside a GGUF file. Immutable; thread-safe.
//
//   auto tokenizer = Tokenizer::FromFile(*file);         // StatusOr
//   auto ids = (*tokenizer)->Encode("The capital of France is", {});
class Tokenizer {
 public:
  // NOT_FOUND when the file has no vocabulary (tokenizer.ggml.model absent): such a model serves
  // token ids only. INVALID_ARGUMENT for a contradictory vocabulary; UNIMPLEMENTED naming an
  // unknown model or pre-tokeniser. Warnings (ids out of range that are not needed) are appended to
  // `warnings` when it is not null.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromFile(
      const ModelFile& file, std::vector<std::string>* warnings = nullptr);
  virtual ~Tokenizer() = default;

  struct EncodeOptions {
    bool add_special = true;  // BOS (and EOS) as the file asks for
    bool parse_special =
        true;  // control tokens written in the text become their ids; user-defined ones always do
  };
  // INVALID_ARGUMENT with the byte offset when `text` is not valid UTF-8.
  virtual absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text,
                                                      const EncodeOptions& options) const = 0;
  // The same for a prompt that a chat template made. Without parse_special control tokens are
  // recognised where template text spells them, and nowhere else; with it in content too. BOS comes
  // before it unless the template has put it there, and EOS never follows: the prompt is to be
  // continued.
  virtual absl::StatusOr<std::vector<TokenId>> EncodeChat(const MarkedText& text,
                                                          const EncodeOptions& options) const = 0;

  // The bytes that `id` stands for in text: may be a part of a UTF-8 sequence. Control tokens give
  // their name. `id` must be in [0, vocab_size()).
  virtual std::string_view TokenBytes(TokenId id) const = 0;
  virtual TokenType Type(TokenId id) const = 0;
  // A space that SPM vocabularies put before the first word and that decoding takes away again.
  virtual bool RemovesLeadingSpace() const { return false; }

  int32_t vocab_size() const { return vocab_size_; }
  std::string_view model() const { return model_; }  // "gpt2", "llama"
  std::string_view pre() const { return pre_; }      // "smollm"; empty for SPM
  std::optional<TokenId> bos() const { return bos_; }
  std::optional<TokenId> eos() const { return eos_; }
  bool adds_bos() const { return adds_bos_; }
  bool adds_eos() const { return adds_eos_; }
  // eos, eot, eom ids and the control tokens that end a turn, ascending.
  const std::vector<TokenId>& end_of_generation() const { return end_of_generation_; }
  bool IsEndOfGeneration(TokenId id) const;
  // Of the model's file, empty where it has none: the one of every conversation, and the one named
  // tool_use, which is for those with tools.
  const std::string& chat_template() const { return chat_template_; }
  const std::string& tool_use_template() const { return tool_use_template_; }
  // The first of the file's templates that have a name, as "rag"; empty: they have none.
  const std::string& first_template_name() const { return first_template_name_; }

 protected:
  int32_t vocab_size_ = 0;
  std::string model_;
  std::string pre_;
  std::optional<TokenId> bos_;
  std::optional<TokenId> eos_;
  bool adds_bos_ = false;
  bool adds_eos_ = false;
  std::vector<TokenId> end_of_generation_;
  std::string chat_template_;
  std::string tool_use_template_;
  std::string first_template_name_;
};

}  // namespace sluice::engine
