#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/base/hash.h"
#include "engine/safetensors/json_document.h"

namespace sluice::engine {

// The keys of one JSON object of a config.json, each read with the range it must lie in; null is
// absent. Remembers which were asked for, so that a key nobody understands is an error unless its
// value says that there is nothing of the kind. The document has to outlive it. One thread.
class ConfigReader {
 public:
  // `subject`: the file, and the key of the object inside it.
  ConfigReader(std::string subject, JsonValue object)
      : subject_(std::move(subject)), object_(object) {}

  const std::string& subject() const { return subject_; }
  // INVALID_ARGUMENT when missing, of another kind, or out of [least, most].
  absl::StatusOr<int64_t> Count(std::string_view key, int64_t least, int64_t most = INT32_MAX);
  absl::StatusOr<std::optional<int64_t>> OptionalCount(std::string_view key, int64_t least,
                                                       int64_t most = INT32_MAX);
  absl::StatusOr<double> Number(std::string_view key);
  absl::StatusOr<std::optional<double>> OptionalNumber(std::string_view key);
  absl::StatusOr<std::optional<bool>> OptionalBool(std::string_view key);
  absl::StatusOr<std::optional<std::string_view>> OptionalText(std::string_view key);
  // Whatever there is.
  std::optional<JsonValue> Take(std::string_view key);

  // UNIMPLEMENTED unless the key is absent or one of `texts`.
  absl::Status OnlyTexts(std::string_view key, std::initializer_list<std::string_view> texts);
  absl::Status OnlyBool(std::string_view key, bool neutral);
  absl::Status OnlyNumber(std::string_view key, double neutral);
  // Keys that change nothing in what a model computes.
  void Ignore(std::initializer_list<std::string_view> keys);

  // UNIMPLEMENTED naming the first key that was never asked for and whose value is not null, false,
  // 0, or an empty string, array or object.
  absl::Status CheckAllAsked() const;

  // "SUBJECT: key 'KEY': TEXT".
  absl::Status Bad(std::string_view key, std::string_view text) const;
  absl::Status Unsupported(std::string_view key, std::string_view text) const;

 private:
  std::string Where(std::string_view key, std::string_view text) const;

  const std::string subject_;
  const JsonValue object_;
  std::unordered_set<std::string, StringHash, StringEqual> asked_;
};

}  // namespace sluice::engine
