#pragma once

#include <memory>
#include <string_view>

#include "engine/tokenizer/tokenizer.h"

namespace sluice::fuzz {

// Byte-level BPE with a token for every byte, words merged from them, and added tokens that are the
// beginning of others. `pre`: smollm, qwen2, llama-bpe.
std::shared_ptr<const engine::Tokenizer> MakeBpe(std::string_view pre);

// SentencePiece with a token for every byte, pieces that are never given out, and added tokens.
std::shared_ptr<const engine::Tokenizer> MakeSpm(bool adds_space);

}  // namespace sluice::fuzz
