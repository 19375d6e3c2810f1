#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/hash.h"
#include "engine/model_file/model_file.h"
#include "engine/safetensors/json_document.h"

namespace sluice::engine {

// Where a stored tensor belongs.
struct TensorTarget {
  std::string name;  // GGUF's
  bool required = true;
  float added = 0.0f;  // FileTensor's
};

// A vector of F32 that GGUF files have and Hugging Face computes from config.json.
struct DerivedTensor {
  std::string name;  // GGUF's
  std::vector<float> values;
};

// What the config.json of a Hugging Face model says, in GGUF's terms. Value.
struct ConfigFacts {
  std::string class_name;                 // "LlamaForCausalLM"
  std::vector<ModelFile::Entry> entries;  // "general.architecture", "llama.block_count", ..
  std::vector<DerivedTensor> tensors;     // "rope_freqs.weight"
  std::unordered_map<std::string, TensorTarget, StringHash, StringEqual>
      targets;  // by the name that Hugging Face stores a tensor under
  int64_t vocab_size = 0;

  // Reads the keys of config.json as transformers does, those of its versions 4 and 5. `path` is
  // for messages.
  //
  // INVALID_ARGUMENT naming the key for one that is missing or makes no sense; UNIMPLEMENTED for a
  // model class that Sluice has no forward pass for, for a trait it has no code for, and for a key
  // that it does not know, unless its value is null, false, 0 or empty.
  static absl::StatusOr<ConfigFacts> Read(const std::string& path, const JsonDocument& config);
};

}  // namespace sluice::engine
