#include "engine/resume.h"

#include <utility>

#include "engine/sequence_output.h"

namespace sluice::engine {

std::optional<size_t> ReplayOutput(const std::shared_ptr<const Tokenizer>& tokenizer,
                                   Request& request) {
  ResumePoint point = std::exchange(request.resume, {});
  SequenceOutput output(&request, 0, tokenizer);  // of a sequence that has said nothing
  std::optional<size_t> beyond;
  for (size_t i = 0; i < point.token_ids.size() && !beyond; ++i) {
    point.end = output.Append({.token = point.token_ids[i], .logprob = 0.0f, .top = {}});
    if (point.end && i + 1 < point.token_ids.size()) beyond = i + 1;
  }
  output.Suspend(point);
  request.resume = std::move(point);
  return beyond;
}

}  // namespace sluice::engine
