#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/base/hash.h"
#include "engine/model_file/model_file.h"

namespace sluice::engine {

// The keys "ARCHITECTURE.NAME" of a file, each read with the range it must lie in. Remembers which
// were asked for, so that a key nobody understands is an error and never ignored. One thread.
class FactReader {
 public:
  FactReader(const ModelFile& file, std::string architecture);

  std::string FullKey(std::string_view name) const { return prefix_ + std::string(name); }
  bool Has(std::string_view name) const { return file_.Find(FullKey(name)) != nullptr; }

  // INVALID_ARGUMENT when missing or out of [least, most]; UNIMPLEMENTED for a value a layer.
  absl::StatusOr<int32_t> Count(std::string_view name, int32_t least, int32_t most);
  absl::StatusOr<std::optional<int32_t>> OptionalCount(std::string_view name, int32_t least,
                                                       int32_t most);
  // Finite and above 0.
  absl::StatusOr<float> Positive(std::string_view name);
  absl::StatusOr<std::optional<float>> OptionalPositive(std::string_view name);
  // The same, but 0 is fine: converters write it for "none".
  absl::StatusOr<std::optional<float>> OptionalPositiveOrZero(std::string_view name);
  absl::StatusOr<std::optional<std::string_view>> OptionalText(std::string_view name);
  absl::StatusOr<std::optional<bool>> OptionalBool(std::string_view name);
  // A flag for each of `num_layers` layers: an array of them, or a number n that means all layers
  // but each n-th (0: all).
  absl::StatusOr<std::optional<std::vector<bool>>> OptionalPattern(std::string_view name,
                                                                   int32_t num_layers);

  // A trait that Sluice has no code for: fine where the key is absent or says so, else
  // UNIMPLEMENTED. `tolerance` is relative to `neutral`.
  absl::Status OnlyNumber(std::string_view name, double neutral, double tolerance = 0.0);
  absl::Status OnlyBool(std::string_view name, bool neutral);
  // A key that changes nothing.
  void Ignore(std::string_view name) { asked_.insert(FullKey(name)); }

  // All keys "ARCHITECTURE.NAME" whose NAME begins with `prefix`: facts about something else in the
  // file. Returns whether there are any.
  bool IgnoreAll(std::string_view prefix);

  // UNIMPLEMENTED naming the first key of the architecture that was never asked for.
  absl::Status CheckAllAsked() const;

  // INVALID_ARGUMENT or UNIMPLEMENTED "FILE: key 'ARCHITECTURE.NAME': TEXT (at byte N)".
  absl::Status Bad(std::string_view name, std::string_view text) const;
  absl::Status Unsupported(std::string_view name, std::string_view text) const;

 private:
  std::string Where(std::string_view name, std::string_view text) const;

  const ModelFile& file_;
  const std::string prefix_;
  std::unordered_set<std::string, StringHash, StringEqual> asked_;
};

// Fewest digits that read back as the same number: "1e-05", "0.125", "100000", "nan".
std::string NumberString(double value);

}  // namespace sluice::engine
