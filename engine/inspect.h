#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace sluice::engine {

// What a model's file or directory holds, for people: facts, metadata, every tensor with shape,
// type and role, what is missing and unused. With `json`, one JSON object for programs (keys: path,
// format, files, version, alignment, architecture, facts, metadata, tensors, missing, unused,
// tokenizer, problems). A file that Sluice would refuse is still described as far as it can be, its
// problems named. Errors: those of ModelFile::Open.
absl::StatusOr<std::string> InspectFile(const std::string& path, bool json);

}  // namespace sluice::engine
