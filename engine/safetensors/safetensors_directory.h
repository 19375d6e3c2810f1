#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/model_file/open_file.h"
#include "engine/safetensors/json_document.h"
#include "engine/safetensors/safetensors_header.h"

namespace sluice::engine {

// A file of tensors, open, and what its header says.
struct SafetensorsShard {
  OpenFile file;
  SafetensorsHeader header;
};

// A JSON file of a model directory.
struct JsonFile {
  std::string name;  // "config.json"
  std::string text;
  JsonDocument document;  // an object
};

// The text of the file `name` in `directory`; nullopt when there is none of that name.
// INVALID_ARGUMENT when it is larger than `most_bytes`.
absl::StatusOr<std::optional<std::string>> ReadTextFile(const std::string& directory,
                                                        std::string_view name, uint64_t most_bytes);
// The same, parsed. INVALID_ARGUMENT "DIRECTORY/NAME: .." for what is no JSON object.
absl::StatusOr<std::optional<JsonFile>> ReadJsonFile(const std::string& directory,
                                                     std::string_view name);

// Opens the files of tensors of a model directory in the order of their names: those that
// model.safetensors.index.json names, or without it model.safetensors, or all of
// model-00001-of-0000N.safetensors.
//
// INVALID_ARGUMENT naming file, key or tensor: for an index that names what is no file of this
// directory, or another file for a tensor than the one it lies in, or not all tensors; for a tensor
// in two files; for a set of which files are missing. NOT_FOUND when there is nothing to open.
absl::StatusOr<std::vector<SafetensorsShard>> OpenShards(const std::string& directory);

}  // namespace sluice::engine
