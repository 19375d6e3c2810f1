#include "engine/inspect.h"

#include <map>
#include <utility>

#include "engine/base/status.h"
#include "engine/inspection.h"
#include "kernels/ops.h"

namespace sluice::engine {
namespace {

// The reason without the file's path in front: the reader knows which file was asked for.
std::string Reason(const ModelFile& file, const absl::Status& status) {
  const std::string message = Message(status);
  const std::string prefix = file.path() + ": ";
  return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
}

void AddTypeProblems(Inspection& inspection) {
  struct Users {
    int count = 0;
    std::string first;
  };
  std::map<std::string, Users> unsupported;
  for (const FileTensor& tensor : inspection.file->tensors()) {
    // Norms and biases are used in f32 whatever they are stored as.
    if (tensor.rows() == 1 || kernels::SupportsWeight(kernels::Backend::kCpu, tensor.type))
      continue;
    Users& users = unsupported[std::string(kernels::Name(tensor.type))];
    if (users.count++ == 0) users.first = tensor.name;
  }
  for (const auto& [type, users] : unsupported) {
    inspection.problems.push_back("type " + type + " has no products on the CPU; " +
                                  std::to_string(users.count) + " tensors have it, '" +
                                  users.first + "' first");
  }
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
  AddTypeProblems(inspection);
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
