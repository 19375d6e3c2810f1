#include "engine/inspect.h"

#include <utility>

#include "engine/base/status.h"
#include "engine/inspection.h"

namespace sluice::engine {
namespace {

// The reason without the file's path in front: the reader knows which file was asked for.
std::string Reason(const ModelFile& file, const absl::Status& status) {
  const std::string message = Message(status);
  const std::string prefix = file.path() + ": ";
  return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
}

Inspection Inspect(std::shared_ptr<const ModelFile> file) {
  Inspection inspection;
  inspection.file = std::move(file);
  const ModelFile& held = *inspection.file;
  for (const FileTensor& tensor : held.tensors()) {
    inspection.num_parameters += tensor.cols() * tensor.rows();
  }
  if (held.tensors().empty()) {
    inspection.problems.push_back("no tensors: the file holds a vocabulary at most");
  }
  absl::StatusOr<ModelConfig> config = ModelConfig::FromFile(held);
  if (config.ok()) {
    inspection.config = *std::move(config);
  } else {
    inspection.problems.push_back(Reason(held, config.status()));
  }
  // An architecture that has no roles is among the problems already.
  absl::StatusOr<TensorRoles> roles = DescribeTensors(held);
  if (roles.ok()) {
    inspection.roles = *std::move(roles);
  } else {
    for (const FileTensor& tensor : held.tensors()) {
      inspection.roles.present.push_back({tensor.name, ""});
    }
  }
  auto tokenizer = Tokenizer::FromFile(held, &inspection.tokenizer_warnings);
  if (tokenizer.ok()) {
    inspection.tokenizer = *std::move(tokenizer);
  } else if (tokenizer.status().code() != absl::StatusCode::kNotFound) {
    inspection.problems.push_back(Reason(held, tokenizer.status()));
  }
  return inspection;
}

}  // namespace

absl::StatusOr<std::string> InspectFile(const std::string& path, bool json) {
  ASSIGN_OR_RETURN(std::shared_ptr<const ModelFile> file, ModelFile::Open(path));
  const Inspection inspection = Inspect(std::move(file));
  return json ? InspectionJson(inspection) : InspectionText(inspection);
}

}  // namespace sluice::engine
