#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/model_file/model_file.h"
#include "engine/safetensors/safetensors_directory.h"

namespace sluice::engine {

// The files of a model directory that its tokenizer is made of.
struct TokenizerFiles {
  std::string directory;
  JsonFile tokenizer;                          // tokenizer.json
  const JsonFile* tokenizer_config = nullptr;  // null: not there
  const JsonFile* special_tokens_map = nullptr;
  const JsonFile* generation_config = nullptr;
  const JsonFile* config = nullptr;
  std::optional<std::string> chat_template;      // chat_template.jinja
  std::optional<std::string> tool_use_template;  // additional_chat_templates/tool_use.jinja
};

// The vocabulary in GGUF's terms: the entries tokenizer.ggml.* and tokenizer.chat_template, for
// templates with names also tokenizer.chat_templates and tokenizer.chat_template.NAME.
//
// tokenizer.json decides what happens to a text, its post-processor whether BOS and EOS are added;
// what tokenizer_config.json says of that is not asked, as in transformers 5. Which tokens are BOS
// and EOS the files say in the order tokenizer_config.json, special_tokens_map.json,
// generation_config.json, config.json; every id of generation_config.json's eos_token_id ends a
// generation. Truncation and padding are the caller's affair and ignored.
//
// INVALID_ARGUMENT naming file, key and token for what contradicts itself; UNIMPLEMENTED for a
// pipeline that is none of the known (TokenizerPipeline), and for added tokens that take the spaces
// beside them along or are found as whole words only.
absl::StatusOr<std::vector<ModelFile::Entry>> ReadTokenizerFacts(const TokenizerFiles& files);

}  // namespace sluice::engine
