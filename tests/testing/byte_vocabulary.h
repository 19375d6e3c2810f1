#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sluice::testing {

// UTF-8 of the character that byte-level BPE (GPT-2) writes for a byte: itself where it is
// printable in Latin-1, else the next code point from 256 on.
std::string ByteSymbol(int byte);

// A byte-level BPE vocabulary of any size, made and not learned: 256 bytes, then pairs of bytes,
// then pairs and a byte, each with the merge that makes it; last three control tokens. Value.
struct ByteVocabulary {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;  // as in tokenizer.ggml.token_type
  std::vector<std::string> merges;
  uint32_t bos = 0, eos = 0;

  // `size` is at least 259 and at most about 16 million.
  static ByteVocabulary Make(int size);
};

}  // namespace sluice::testing
