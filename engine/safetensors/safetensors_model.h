#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/model_file/model_file.h"
#include "engine/safetensors/config_facts.h"
#include "engine/safetensors/safetensors_directory.h"

namespace sluice::engine {

// Turns a directory as Hugging Face's save_pretrained writes it (config.json, tokenizer.json and
// its companions, safetensors files with or without an index) into a ModelFile: the same keys,
// tensor names and checks as those of a GGUF file of the same model. No bytes move for it: what
// Hugging Face stores in another order is said as a fact ("llama.tensor_data_layout").
//
// The ModelFile's metadata is the text of every file and header that was read, each after its name
// and size, so that equal models have equal digests. Used once, by ModelFile::Open.
class SafetensorsModel {
 public:
  // Errors as ModelFile's, from OpenShards, ConfigFacts and ReadTokenizerFacts; UNIMPLEMENTED for a
  // tensor that the model class has no place for, or whose type is none of F32, F16, BF16.
  static absl::StatusOr<std::shared_ptr<const ModelFile>> Open(const std::string& path);

 private:
  explicit SafetensorsModel(ModelFile& file) : file_(file) {}

  absl::Status Make();
  void AddText(std::string_view name, std::string_view text);
  absl::Status AddEntries(std::vector<ModelFile::Entry> entries);
  absl::Status AddTokenizer(const JsonFile& config);
  absl::Status AddTensors(const ConfigFacts& facts, std::vector<SafetensorsShard> shards);
  absl::Status AddTensor(const SafetensorsShard& shard, const StoredTensor& stored,
                         const TensorTarget& target, uint64_t shard_begin);
  void AddDerived(const DerivedTensor& derived);

  ModelFile& file_;
};

}  // namespace sluice::engine
