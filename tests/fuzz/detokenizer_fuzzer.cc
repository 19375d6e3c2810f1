// Token ids to text, one at a time. An input is one byte of options, then an id in each byte or
// two.

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "tests/fuzz/bytes_reader.h"
#include "tests/fuzz/fixed_vocabularies.h"
#include "tests/fuzz/text_checks.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::array<std::shared_ptr<const sluice::engine::Tokenizer>, 3> kTokenizers = {
      sluice::fuzz::MakeBpe("smollm"), sluice::fuzz::MakeSpm(/*adds_space=*/false),
      sluice::fuzz::MakeSpm(/*adds_space=*/true)};
  sluice::fuzz::BytesReader input(data, size);
  const uint8_t options = input.Byte();
  const auto& tokenizer = kTokenizers[options / 4 % kTokenizers.size()];
  std::vector<sluice::engine::TokenId> ids;
  for (const char byte : input.Rest()) {
    // Bytes are tokens of their own; the highest ones reach the words and added tokens behind them.
    const auto low = static_cast<uint8_t>(byte);
    ids.push_back(low < 250 ? low : tokenizer->vocab_size() - 1 - (low - 250) * 7 % 40);
  }
  sluice::fuzz::CheckDecoding(tokenizer, ids, options % 2 == 1, options / 2 % 2 == 1);
  return 0;
}
