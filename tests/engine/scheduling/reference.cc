#include "tests/engine/scheduling/reference.h"

#include <algorithm>
#include <optional>

#include "engine/tokenizer/detokenizer.h"
#include "tests/testing/fake_runner.h"

namespace sluice::engine {
namespace {

bool Contains(const std::vector<TokenId>& ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

struct StopMatch {
  size_t begin = 0;
  std::string stop;
};

// The stop string that ends first in `text`, of several the longest.
std::optional<StopMatch> FindStop(const std::string& text, const std::vector<std::string>& stops) {
  std::optional<StopMatch> best;
  size_t best_end = 0;
  for (const std::string& stop : stops) {
    const size_t begin = text.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (best && (end > best_end || (end == best_end && stop.size() <= best->stop.size()))) continue;
    best = StopMatch{begin, stop};
    best_end = end;
  }
  return best;
}

SlotReset MakeSlot(const Request& request, int index, const Tokenizer& tokenizer) {
  SlotReset slot;
  slot.sampling = request.sampling;
  slot.sequence_index = index;
  slot.min_tokens = request.stopping.min_tokens;
  slot.banned_until_min = request.stopping.stop_token_ids;
  if (!request.stopping.ignore_eos) {
    const auto& ends = tokenizer.end_of_generation();
    slot.banned_until_min.insert(slot.banned_until_min.end(), ends.begin(), ends.end());
  }
  slot.prompt = request.prompt;
  return slot;
}

}  // namespace

ReferenceSequence MakeReference(const Request& request, int index,
                                const std::shared_ptr<const Tokenizer>& tokenizer, int vocab_size,
                                int max_context) {
  const StoppingParams& stopping = request.stopping;
  const SlotReset slot = MakeSlot(request, index, *tokenizer);
  Detokenizer detokenizer(tokenizer, request.output.skip_special_tokens, true);
  ReferenceSequence reference;
  std::vector<TokenId> context = request.prompt;
  std::string unmatched;  // text from before the minimum
  std::string matchable;
  while (reference.end.reason == FinishReason::kNone) {
    const auto position = static_cast<int>(context.size());
    const TokenId id = FakeSample({context, slot, position}, vocab_size);
    context.push_back(id);
    reference.tokens.push_back(id);
    const auto count = static_cast<int>(reference.tokens.size());
    const bool may_end = count >= stopping.min_tokens;
    if (may_end && !stopping.ignore_eos && tokenizer->IsEndOfGeneration(id)) {
      reference.end = {FinishReason::kEos, {}, id};
    } else if (may_end && Contains(stopping.stop_token_ids, id)) {
      reference.end = {FinishReason::kStop, {}, id};
    }
    const bool ended = reference.end.reason != FinishReason::kNone;
    const bool says =
        !ended || stopping.include_stop_str_in_output ||
        (reference.end.reason == FinishReason::kEos && !request.output.skip_special_tokens);
    if (says) detokenizer.Append(id, may_end ? matchable : unmatched);
    const std::optional<StopMatch> match = FindStop(matchable, stopping.stop);
    if (match) {
      const size_t keep = stopping.include_stop_str_in_output ? match->stop.size() : 0;
      matchable.resize(match->begin + keep);
      if (!ended) reference.end = {FinishReason::kStop, match->stop, std::nullopt};
      break;
    }
    if (!ended && count >= stopping.max_tokens) {
      reference.end.reason = FinishReason::kLength;
    } else if (!ended && static_cast<int>(context.size()) >= max_context) {
      reference.end.reason = FinishReason::kContext;
    }
    if (reference.end.reason != FinishReason::kNone) detokenizer.Finish(matchable);
  }
  if (request.output.return_text) reference.text = unmatched + matchable;
  return reference;
}

}  // namespace sluice::engine
