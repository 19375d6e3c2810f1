#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace sluice::engine {

struct FileDiff {
  bool equal = false;
  std::string text;  // for people, or one JSON object
};

// How two models' files differ: keys and tensors that only one has, values, shapes and types that
// are not the same, and for tensors of one shape the largest difference of two values and the root
// mean square of all differences relative to that of `a`'s values. Order, alignment and version of
// the files do not count. Memory does not depend on the models' size. With `json` the keys are a,
// b, equal, metadata and tensors (each only_a, only_b, different), equal_keys, equal_tensors; a
// difference that is not finite is null. Errors: those of ModelFile::Open and Read.
absl::StatusOr<FileDiff> DiffFiles(const std::string& a, const std::string& b, bool json);

}  // namespace sluice::engine
