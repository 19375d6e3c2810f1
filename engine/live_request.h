#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

#include "engine/base/clock.h"
#include "engine/request.h"

namespace sluice::engine {

class Sequence;

// A request that an engine has taken on: its parameters, what its sequences share, and the accounts
// that its end reports. Owned by the scheduler until its last sequence ends; engine thread only.
class LiveRequest {
 public:
  explicit LiveRequest(Request&& request);

  const Request& request() const { return request_; }
  RequestHandle handle() const { return request_.handle; }

  // Sequences by index; null once ended.
  std::vector<Sequence*> sequences;
  int num_live = 0;
  bool paused = false;
  bool tokens_sent = false;  // a chunk with tokens has gone out
  int told_place = 0;        // in the queue, when the request asked for progress

  // The first of its sequences leaves the queue.
  void Admit(Time now);
  bool admitted() const { return first_planned_.has_value(); }
  double queue_seconds() const { return Seconds(*first_planned_ - request_.arrival); }

  // A token was made; `since_last`: after the one before it in its sequence, if any. True when it
  // is the first of the request.
  bool AddToken(Time now, std::optional<Duration> since_last);
  void AddPreemption() { ++kv_.preemptions; }
  // A sequence was admitted with `pages` that had been computed for others, or for itself before.
  void AddReused(int pages) { kv_.pages_reused += pages; }
  // So many tokens of the prompt were in the prefix cache when the request was admitted.
  void SetCachedPrompt(int tokens) { cached_prompt_tokens_ = tokens; }
  void AddRecomputed(int tokens) { kv_.recomputed_tokens += tokens; }
  // Its sequences hold `delta` more pages from `now` on.
  void AddPages(int delta, Time now);

  // The earliest time at which something ends by the clock, if anything does.
  std::optional<Time> NextDeadline() const;

  RequestEnd End(absl::Status status, std::string_view error_reason, Time now);

 private:
  Request request_;
  std::optional<Time> first_planned_;
  std::optional<Time> first_token_;
  Time last_token_;
  Duration max_inter_token_{};
  int completion_tokens_ = 0;
  int cached_prompt_tokens_ = 0;
  KvAccounting kv_;
  int pages_ = 0;
  Time pages_since_;  // the page count has not changed since
};

}  // namespace sluice::engine
