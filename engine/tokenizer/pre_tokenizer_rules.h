#pragma once

#include <array>
#include <span>
#include <string_view>

#include "engine/tokenizer/normal_form.h"

namespace sluice::engine {

// How one value of `tokenizer.ggml.pre` cuts text, and what else a GGUF file means by that name
// without saying so. Value.
struct PreTokenizerRules {
  std::string_view name;
  // Regular expressions for PCRE2 with PCRE2_UTF and PCRE2_UCP, applied one after the other: each
  // isolates its matches in every piece that the one before left. The rest is empty.
  std::array<std::string_view, 6> patterns = {};
  NormalForm normal_form = NormalForm::kNone;  // the text is brought to it before it is cut
  bool ignores_merges = false;       // a piece that is in the vocabulary becomes that token
  bool adds_bos_by_default = false;  // where the file does not say
  // At last, in the alphabet of bytes: runs of digits, and in those every three ASCII digits.
  bool cuts_digits_of_alphabet = false;
};

// All names that are known: those whose Hugging Face tokenizer.json settles the rules, and
// "default". Names that converters give to tokenizers whose rules are not certain are left out.
std::span<const PreTokenizerRules> KnownPreTokenizerRules();

}  // namespace sluice::engine
