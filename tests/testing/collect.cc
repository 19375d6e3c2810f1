#include "tests/testing/collect.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace sluice::testing {
namespace {

bool SameBits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

bool SameLogprobs(const engine::TokenLogprobs& a, const engine::TokenLogprobs& b) {
  if (a.token != b.token || !SameBits(a.logprob, b.logprob) || a.top.size() != b.top.size())
    return false;
  for (size_t i = 0; i < a.top.size(); ++i) {
    if (a.top[i].token != b.top[i].token || !SameBits(a.top[i].logprob, b.top[i].logprob))
      return false;
  }
  return true;
}

void Append(engine::TokenChunk&& chunk, Collected& to) {
  to.tokens.insert(to.tokens.end(), chunk.token_ids.begin(), chunk.token_ids.end());
  to.text += chunk.text;
  for (engine::TokenLogprobs& logprobs : chunk.logprobs) to.logprobs.push_back(std::move(logprobs));
  for (engine::TokenLogprobs& logprobs : chunk.prompt_logprobs)
    to.prompt_logprobs.push_back(std::move(logprobs));
  if (chunk.sequence_end) to.reason = chunk.sequence_end->reason;
  if (chunk.request_end) {
    to.status = chunk.request_end->status;
    to.error_reason = chunk.request_end->error_reason;
    to.preemptions = chunk.request_end->kv.preemptions;
  }
}

}  // namespace

bool Collected::SameOutput(const Collected& other) const {
  if (tokens != other.tokens || text != other.text || reason != other.reason) return false;
  const auto same = [](const auto& a, const auto& b) {
    return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), SameLogprobs);
  };
  return same(logprobs, other.logprobs) && same(prompt_logprobs, other.prompt_logprobs);
}

std::vector<std::vector<Collected>> RunAll(engine::Dispatcher& dispatcher,
                                           std::vector<engine::Request> requests,
                                           int timeout_seconds) {
  std::vector<std::vector<Collected>> results;
  static uint64_t next_handle = 1;
  const uint64_t first_handle = next_handle;
  next_handle += requests.size();
  size_t open = 0;
  for (engine::Request& request : requests) {
    request.handle = {first_handle + results.size()};
    request.arrival = std::chrono::steady_clock::now();
    results.emplace_back(static_cast<size_t>(request.sampling.n));
    const absl::Status status = dispatcher.Dispatch(std::move(request));
    if (status.ok()) {
      ++open;
    } else {
      results.back()[0].status = status;
    }
  }
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(timeout_seconds);
  while (open > 0) {
    for (engine::TokenChunk& chunk : dispatcher.chunks().Take(0, until)) {
      const uint64_t handle = chunk.request.value;
      if (handle < first_handle) continue;
      const bool last = chunk.request_end.has_value();
      Append(std::move(chunk), results[handle - first_handle][static_cast<size_t>(chunk.index)]);
      if (last) {
        dispatcher.Forget({handle});
        --open;
      }
    }
    if (std::chrono::steady_clock::now() >= until) {
      std::fprintf(stderr, "%zu requests without an end after %d s\n", open, timeout_seconds);
      std::abort();
    }
  }
  return results;
}

}  // namespace sluice::testing
