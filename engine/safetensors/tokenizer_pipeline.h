#pragma once

#include <string>

#include "absl/status/statusor.h"

#include "engine/safetensors/json_document.h"

namespace sluice::engine {

// What a tokenizer.json does to a text before and after BPE, in terms that Sluice has code for.
// Value.
struct TokenizerPipeline {
  std::string model;         // tokenizer.ggml.model: "gpt2" or "piece-bpe"
  std::string pre;           // of gpt2: whose normaliser and pre-tokenizers these are
  std::string space_prefix;  // of piece-bpe: see PieceBpeTokenizer
  bool normalizes = false;   // the text that added tokens with "normalized" are looked for in

  // Compares `normalizer`, `pre_tokenizer`, `decoder` and the options of `model` with those of the
  // families that Sluice knows, each option of each part. UNIMPLEMENTED quoting the part that is
  // another; INVALID_ARGUMENT when there is no BPE model. `path` is for messages.
  static absl::StatusOr<TokenizerPipeline> Read(const std::string& path, JsonValue tokenizer);
};

}  // namespace sluice::engine
