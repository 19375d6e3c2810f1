// Text through byte-level BPE and back. An input is one byte that chooses the rules for words, then
// the text.

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>

#include "engine/tokenizer/normal_form.h"
#include "tests/fuzz/bytes_reader.h"
#include "tests/fuzz/fixed_vocabularies.h"
#include "tests/fuzz/text_checks.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::array<std::shared_ptr<const sluice::engine::Tokenizer>, 3> kTokenizers = {
      sluice::fuzz::MakeBpe("smollm"), sluice::fuzz::MakeBpe("qwen2"),
      sluice::fuzz::MakeBpe("llama-bpe")};
  sluice::fuzz::BytesReader input(data, size);
  const size_t chosen = input.Byte() % kTokenizers.size();
  const std::string_view text = input.Rest();
  const auto ids = sluice::fuzz::CheckEncoding(*kTokenizers[chosen], text);
  const std::string back = sluice::fuzz::CheckDecoding(kTokenizers[chosen], ids, false, true);
  // Every byte has a token: nothing is lost but what normalisation changes.
  const auto form = kTokenizers[chosen]->pre() == "qwen2" ? sluice::engine::NormalForm::kNfc
                                                          : sluice::engine::NormalForm::kNone;
  if (!ids.empty() && sluice::engine::IsSurelyNormal(text, form)) {
    sluice::fuzz::Check(back == text);
  }
  return 0;
}
