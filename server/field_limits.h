#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace sluice::server {

// The bounded fields of GenerateRequest. The validator checks each against FieldTable(), and
// GetModel prints the same table, so what is advertised is what is enforced.
enum class Field : uint8_t {
  kRequestIdBytes,
  kPromptTokens,
  kChatMessages,
  kTokenId,
  kTemperature,
  kTopK,
  kTopP,
  kMinP,
  kTypicalP,
  kRepetitionPenalty,
  kPresencePenalty,
  kFrequencyPenalty,
  kPenaltyLastN,
  kLogitBias,
  kLogitBiasEntries,
  kN,
  kMaxTokens,
  kMinTokens,
  kStopCount,
  kStopBytes,
  kStopTokenIdCount,
  kMaxTime,
  kLogprobs,
  kPromptLogprobs,
  kStreamInterval,
  kCacheSaltBytes,
  kPriority,
  kQueueTimeout,
  kResumeTokens,
  kNumFields,
};

// Limits are inclusive unless `minimum_excluded`. Value.
struct FieldLimit {
  const char* field = "";  // path; "x[]" is an element of x, "count(x)" and "bytes(x)" its size
  std::optional<double> minimum;
  std::optional<double> maximum;
  bool minimum_excluded = false;
  std::optional<double> default_value;
};

// What the limits of a served model depend on.
struct ModelBounds {
  int32_t vocab_size = 0;
  int32_t max_context = 0;     // of the model, as served
  int64_t pool_positions = 0;  // of the whole KV pool of an engine
  int32_t max_queue = 0;       // waiting sequences of an engine
  int32_t max_tokens_cap = 0;  // the server's; 0: none

  // Positions that one sequence may fill, prompt included.
  int32_t MaxPositions() const;
  // The largest max_tokens that any request may ask for.
  int32_t MaxTokens() const;
  // The most sequences of a request: it is queued as a whole.
  int32_t MaxSequences() const;
};

// One limit a Field, in the order of the enum. Immutable; thread-safe.
class FieldTable {
 public:
  explicit FieldTable(const ModelBounds& bounds);

  const FieldLimit& operator[](Field field) const { return limits_[static_cast<size_t>(field)]; }
  std::span<const FieldLimit> all() const { return limits_; }
  const ModelBounds& bounds() const { return bounds_; }

  // Nothing when `value` is within; otherwise "must be in [0, 100], is -0.1", with a unit for
  // sizes. NaN is never within.
  std::optional<std::string> Violation(Field field, double value) const;

 private:
  ModelBounds bounds_;
  std::vector<FieldLimit> limits_;
};

// The path of a limit's field in a request: "stopping.stop" of "count(stopping.stop)".
std::string PathOf(const FieldLimit& limit);

// A number the way a person writes it: "100", "0.1", "1e+30".
std::string FormatNumber(double value);

}  // namespace sluice::server
