#include "server/field_limits.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <string_view>

namespace sluice::server {
namespace {

constexpr double kMaxSeconds = 7 * 86400;  // of max_time and queue_timeout
constexpr double kMaxInt32 = std::numeric_limits<int32_t>::max();

}  // namespace

int32_t ModelBounds::MaxPositions() const {
  return static_cast<int32_t>(std::min<int64_t>(max_context, pool_positions));
}

int32_t ModelBounds::MaxTokens() const {
  const int32_t room = std::max(1, MaxPositions() - 1);  // a prompt has one token at least
  return max_tokens_cap > 0 ? std::min(room, max_tokens_cap) : room;
}

int32_t ModelBounds::MaxSequences() const { return std::clamp(max_queue, 1, 16); }

FieldTable::FieldTable(const ModelBounds& bounds) : bounds_(bounds) {
  limits_.resize(static_cast<size_t>(Field::kNumFields));
  const auto set = [this](Field field, FieldLimit limit) {
    limits_[static_cast<size_t>(field)] = limit;
  };
  set(Field::kRequestIdBytes, {"bytes(request_id)", 0, 128, false, {}});
  set(Field::kPromptTokens, {"count(token_ids.ids)", 1, bounds.MaxPositions() - 1, false, {}});
  set(Field::kChatMessages, {"count(chat.messages)", 1, 4096, false, {}});
  set(Field::kTokenId, {"token_ids.ids[]", 0, bounds.vocab_size - 1, false, {}});
  set(Field::kTemperature, {"sampling.temperature", 0, 100, false, 1});
  set(Field::kTopK, {"sampling.top_k", 0, kMaxInt32, false, 0});
  set(Field::kTopP, {"sampling.top_p", 0, 1, true, 1});
  set(Field::kMinP, {"sampling.min_p", 0, 1, false, 0});
  set(Field::kTypicalP, {"sampling.typical_p", 0, 1, true, 1});
  set(Field::kRepetitionPenalty, {"sampling.repetition_penalty", 0, 100, true, 1});
  set(Field::kPresencePenalty, {"sampling.presence_penalty", -2, 2, false, 0});
  set(Field::kFrequencyPenalty, {"sampling.frequency_penalty", -2, 2, false, 0});
  set(Field::kPenaltyLastN, {"sampling.penalty_last_n", 0, kMaxInt32, false, 0});
  set(Field::kLogitBias, {"sampling.logit_bias[]", -100, 100, false, {}});
  set(Field::kLogitBiasEntries, {"count(sampling.logit_bias)", 0, 1024, false, {}});
  set(Field::kN, {"sampling.n", 1, bounds.MaxSequences(), false, 1});
  set(Field::kMaxTokens, {"stopping.max_tokens", 1, bounds.MaxTokens(), false, {}});
  set(Field::kMinTokens, {"stopping.min_tokens", 0, bounds.MaxTokens(), false, 0});
  set(Field::kStopCount, {"count(stopping.stop)", 0, 16, false, {}});
  set(Field::kStopBytes, {"bytes(stopping.stop[])", 1, 256, false, {}});
  set(Field::kStopTokenIdCount, {"count(stopping.stop_token_ids)", 0, 64, false, {}});
  set(Field::kMaxTime, {"stopping.max_time", 0, kMaxSeconds, true, {}});
  set(Field::kLogprobs, {"output.logprobs", 0, 20, false, {}});
  set(Field::kPromptLogprobs, {"output.prompt_logprobs", 0, 20, false, {}});
  set(Field::kStreamInterval, {"output.stream_interval", 1, 1024, false, 1});
  set(Field::kCacheSaltBytes, {"bytes(cache.cache_salt)", 0, 256, false, {}});
  set(Field::kPriority, {"scheduling.priority", -100, 100, false, 0});
  set(Field::kResumeTokens, {"count(resume.token_ids)", 0, bounds.MaxTokens(), false, {}});
  set(Field::kQueueTimeout, {"scheduling.queue_timeout", 0, kMaxSeconds, true, {}});
}

std::optional<std::string> FieldTable::Violation(Field field, double value) const {
  const FieldLimit& limit = (*this)[field];
  // Written so that NaN fails.
  const bool above =
      !limit.minimum || (limit.minimum_excluded ? value > *limit.minimum : value >= *limit.minimum);
  const bool below = !limit.maximum || value <= *limit.maximum;
  if (above && below) return std::nullopt;
  const std::string_view name = limit.field;
  const char* unit = name.starts_with("count(")   ? " entries"
                     : name.starts_with("bytes(") ? " bytes"
                                                  : "";
  return std::string("must be in ") + (limit.minimum_excluded ? "(" : "[") +
         (limit.minimum ? FormatNumber(*limit.minimum) : "-inf") + ", " +
         (limit.maximum ? FormatNumber(*limit.maximum) : "inf") + "]" + unit + ", is " +
         FormatNumber(value);
}

std::string PathOf(const FieldLimit& limit) {
  const std::string name = limit.field;
  const size_t open = name.find('(');
  return open == std::string::npos ? name : name.substr(open + 1, name.size() - open - 2);
}

std::string FormatNumber(double value) {
  char text[32];
  // Nine digits tell any two floats apart; whole numbers of 32 bits print in full.
  const bool whole = value >= -4e9 && value <= 4e9 && value == static_cast<int64_t>(value);
  std::snprintf(text, sizeof text, whole ? "%.0f" : "%.9g", value);
  return text;
}

}  // namespace sluice::server
