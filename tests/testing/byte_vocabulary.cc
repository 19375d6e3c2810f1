#include "tests/testing/byte_vocabulary.h"

namespace sluice::testing {

std::string ByteSymbol(int byte) {
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  }
  if (code < 128) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
}

ByteVocabulary ByteVocabulary::Make(int size) {
  constexpr int kNormal = 1, kControl = 3;
  ByteVocabulary vocabulary;
  std::vector<std::string>& tokens = vocabulary.tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(ByteSymbol(byte));
  const auto num_normal = static_cast<size_t>(size - 3);
  // Token 256 * (i + 1) + b is token i and byte b: every token is made by one merge of two that
  // come before it.
  for (size_t i = 0; tokens.size() < num_normal; ++i) {
    for (size_t byte = 0; byte < 256 && tokens.size() < num_normal; ++byte) {
      vocabulary.merges.push_back(tokens[i] + " " + tokens[byte]);
      tokens.push_back(tokens[i] + tokens[byte]);
    }
  }
  vocabulary.types.assign(tokens.size(), kNormal);
  for (const char* name : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) {
    tokens.push_back(name);
    vocabulary.types.push_back(kControl);
  }
  vocabulary.bos = static_cast<uint32_t>(size - 2);
  vocabulary.eos = static_cast<uint32_t>(size - 1);
  return vocabulary;
}

}  // namespace sluice::testing
