#include "engine/live_request.h"

#include <algorithm>
#include <string>
#include <utility>

#include "engine/kv/page_size.h"

namespace sluice::engine {

LiveRequest::LiveRequest(Request&& request) : request_(std::move(request)) {
  kv_.page_tokens = kPageTokens;
  completion_tokens_ = static_cast<int>(request_.resume.token_ids.size());
}

void LiveRequest::Admit(Time now) { first_planned_ = now; }

bool LiveRequest::AddToken(Time now, std::optional<Duration> since_last) {
  ++completion_tokens_;
  last_token_ = now;
  if (since_last) max_inter_token_ = std::max(max_inter_token_, *since_last);
  if (first_token_) return false;
  first_token_ = now;
  return true;
}

void LiveRequest::AddPages(int delta, Time now) {
  kv_.page_seconds += pages_ * Seconds(now - pages_since_);
  pages_since_ = now;
  pages_ += delta;
  kv_.peak_pages = std::max(kv_.peak_pages, pages_);
}

std::optional<Time> LiveRequest::NextDeadline() const {
  std::optional<Time> next;
  const auto consider = [&](const std::optional<Time>& time) {
    if (time && (!next || *time < *next)) next = time;
  };
  consider(request_.deadline);
  consider(request_.max_time);
  if (!admitted()) consider(request_.queue_deadline);
  return next;
}

RequestEnd LiveRequest::End(absl::Status status, std::string_view error_reason, Time now) {
  AddPages(0, now);
  RequestEnd end;
  end.status = std::move(status);
  end.error_reason = std::string(error_reason);
  end.usage = {.prompt_tokens = static_cast<int32_t>(request_.prompt.size()),
               .cached_prompt_tokens = cached_prompt_tokens_,
               .completion_tokens = completion_tokens_,
               .resumed_tokens = static_cast<int32_t>(request_.resume.token_ids.size())};
  end.timing.queue_seconds = Seconds(first_planned_.value_or(now) - request_.arrival);
  end.timing.total_seconds = Seconds(now - request_.arrival);
  if (first_token_) {
    end.timing.prefill_seconds = Seconds(*first_token_ - *first_planned_);
    end.timing.time_to_first_token_seconds = Seconds(*first_token_ - request_.arrival);
    end.timing.decode_seconds = Seconds(last_token_ - *first_token_);
    end.timing.max_inter_token_seconds = Seconds(max_inter_token_);
  }
  end.kv = kv_;
  return end;
}

}  // namespace sluice::engine
