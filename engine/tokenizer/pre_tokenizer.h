#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/tokenizer/normal_form.h"
#include "engine/tokenizer/pre_tokenizer_rules.h"

namespace sluice::engine {

// Cuts text into the pre-tokens that byte-level BPE merges inside of: the rules that
// `tokenizer.ggml.pre` names, as the Hugging Face tokenizer of the same family applies them.
// Immutable; thread-safe.
class PreTokenizer {
 public:
  // `pre` is the file's value. UNIMPLEMENTED for one that is not known, with all that are.
  static absl::StatusOr<std::unique_ptr<const PreTokenizer>> Create(std::string_view pre);
  ~PreTokenizer();

  // The form that the text is to be brought to before it is cut.
  NormalForm normal_form() const { return rules_.normal_form; }
  // A pre-token that is in the vocabulary becomes that token, merges or not.
  bool ignores_merges() const { return rules_.ignores_merges; }
  // Whether a file that says nothing about a leading BOS wants one.
  bool adds_bos_by_default() const { return rules_.adds_bos_by_default; }

  // `text` must be valid UTF-8. `pieces` are views of it that cover it without gaps; they may end
  // inside a character (falcon).
  absl::Status Split(std::string_view text, std::vector<std::string_view>& pieces) const;

 private:
  class Pattern;

  explicit PreTokenizer(const PreTokenizerRules& rules);

  const PreTokenizerRules& rules_;
  std::vector<std::unique_ptr<const Pattern>> patterns_;
};

}  // namespace sluice::engine
