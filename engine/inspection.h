#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/model_file/model_file.h"
#include "engine/tokenizer/tokenizer.h"

namespace sluice::engine {

// What is known of a file, found out once and then shown as text or as JSON. Value.
struct Inspection {
  std::shared_ptr<const ModelFile> file;
  std::optional<ModelConfig> config;           // absent when the facts were refused
  TensorRoles roles;                           // `present` is in file order; "" for no known role
  std::shared_ptr<const Tokenizer> tokenizer;  // null when there is none or it was refused
  std::vector<std::string> tokenizer_warnings;
  std::vector<std::string> problems;  // why Sluice would not serve the file; empty: it would
  uint64_t num_parameters = 0;        // values of all tensors
};

std::string InspectionText(const Inspection& inspection);
std::string InspectionJson(const Inspection& inspection);

}  // namespace sluice::engine
