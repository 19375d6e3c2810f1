#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tokenizer/tokenizer.h"

namespace sluice::fuzz {

// Aborts unless `holds`: what a fuzzer finds is a crash.
void Check(bool holds);

// Encodes `text` every way there is and checks what holds for any vocabulary: UTF-8 is taken and
// nothing else, ids are in range, special tokens are where they were asked for. The ids of plain
// text, without BOS and EOS; empty when `text` is no UTF-8.
std::vector<engine::TokenId> CheckEncoding(const engine::Tokenizer& tokenizer,
                                           std::string_view text);

// Decodes `ids` one at a time and checks that nothing but UTF-8 comes out, after whatever token,
// and that it is what all bytes together give. The text.
std::string CheckDecoding(const std::shared_ptr<const engine::Tokenizer>& tokenizer,
                          const std::vector<engine::TokenId>& ids, bool skip_special,
                          bool continues_text);

}  // namespace sluice::fuzz
