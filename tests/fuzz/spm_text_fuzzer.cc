// Text through SentencePiece BPE and back. An input is one byte that chooses whether a space is put
// before the text, then the text.

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "tests/fuzz/bytes_reader.h"
#include "tests/fuzz/fixed_vocabularies.h"
#include "tests/fuzz/text_checks.h"

namespace {

// The mark that pieces spell a space with is a space to the encoder.
std::string WithSpaces(std::string_view text) {
  std::string out(text);
  for (size_t at = out.find("\xE2\x96\x81"); at != std::string::npos;
       at = out.find("\xE2\x96\x81", at)) {
    out.replace(at, 3, " ");
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::array<std::shared_ptr<const sluice::engine::Tokenizer>, 2> kTokenizers = {
      sluice::fuzz::MakeSpm(/*adds_space=*/false), sluice::fuzz::MakeSpm(/*adds_space=*/true)};
  sluice::fuzz::BytesReader input(data, size);
  const size_t chosen = input.Byte() % kTokenizers.size();
  const std::string_view text = input.Rest();
  const auto ids = sluice::fuzz::CheckEncoding(*kTokenizers[chosen], text);
  const std::string back = sluice::fuzz::CheckDecoding(kTokenizers[chosen], ids, false, false);
  // Every byte has a token, and without a space put in nothing is added either.
  if (!ids.empty() && chosen == 0) sluice::fuzz::Check(back == WithSpaces(text));
  return 0;
}
