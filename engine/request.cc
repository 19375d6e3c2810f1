#include "engine/request.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "engine/base/check.h"

namespace sluice::engine {

std::string_view Name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "none";
    case FinishReason::kEos:
      return "eos";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kContext:
      return "context";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kConstraintComplete:
      return "constraint_complete";
    case FinishReason::kError:
      return "error";
  }
  return "unknown";
}

std::string CacheDomain(std::string_view tenant, std::string_view salt) {
  std::string domain = std::to_string(tenant.size());
  return domain.append(":").append(tenant).append(salt);
}

void TokenChunk::Merge(TokenChunk&& later) {
  SLUICE_CHECK(request == later.request && index == later.index,
               "only chunks of one sequence merge");
  SLUICE_CHECK(!request_end, "nothing follows the end of a request");
  if (token_ids.empty()) position = later.position;
  admitted = admitted || later.admitted;
  queue_position = later.queue_position;
  prompt_tokens_done = std::max(prompt_tokens_done, later.prompt_tokens_done);
  preemptions = std::max(preemptions, later.preemptions);
  token_ids.insert(token_ids.end(), later.token_ids.begin(), later.token_ids.end());
  text += later.text;
  logprobs.insert(logprobs.end(), std::make_move_iterator(later.logprobs.begin()),
                  std::make_move_iterator(later.logprobs.end()));
  if (prompt_logprobs.empty()) prompt_position = later.prompt_position;
  prompt_logprobs.insert(prompt_logprobs.end(),
                         std::make_move_iterator(later.prompt_logprobs.begin()),
                         std::make_move_iterator(later.prompt_logprobs.end()));
  if (later.sequence_end) sequence_end = std::move(later.sequence_end);
  if (later.request_end) request_end = std::move(later.request_end);
}

std::vector<TokenId> EndTokens(const StoppingParams& stopping,
                               std::span<const TokenId> end_of_generation) {
  std::vector<TokenId> ids = stopping.stop_token_ids;
  if (!stopping.ignore_eos) {
    ids.insert(ids.end(), end_of_generation.begin(), end_of_generation.end());
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace sluice::engine
