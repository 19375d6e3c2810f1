#include "tests/engine/scheduling/chunk_collector.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace sluice::engine {

void ChunkCollector::Add(std::vector<TokenChunk>&& chunks) {
  for (TokenChunk& chunk : chunks) Add(std::move(chunk));
}

void ChunkCollector::Add(TokenChunk&& chunk) {
  const std::string name = "request " + std::to_string(chunk.request.value) + " sequence " +
                           std::to_string(chunk.index) + ": ";
  RequestOutcome& request = requests_[chunk.request.value];
  if (request.end) violations_.push_back(name + "a chunk after the request's end");
  if (chunk.admitted && request.admitted) violations_.push_back(name + "admitted twice");
  request.admitted = request.admitted || chunk.admitted;
  if (request.admitted && chunk.queue_position != 0)
    violations_.push_back(name + "waits and was admitted");
  const bool is_refusal = chunk.request_end && !chunk.sequence_end && request.sequences.empty();
  if (!is_refusal) {
    SequenceOutcome& sequence = request.sequences[chunk.index];
    if (!request.admitted && !chunk.sequence_end)
      request.queue_positions.push_back(chunk.queue_position);
    if (sequence.end) violations_.push_back(name + "a chunk after the sequence's end");
    const bool has_tokens = !chunk.token_ids.empty();
    if (has_tokens && sequence.tokens.empty()) sequence.first_position = chunk.position;
    const int next_position = sequence.first_position + static_cast<int>(sequence.tokens.size());
    if (has_tokens && chunk.position != next_position)
      violations_.push_back(name + "a chunk at the wrong position");
    if (has_tokens && !request.admitted) violations_.push_back(name + "tokens before admission");
    if (!has_tokens && !chunk.text.empty() && !chunk.sequence_end)
      violations_.push_back(name + "text without tokens");
    if (!chunk.logprobs.empty() && chunk.logprobs.size() != chunk.token_ids.size())
      violations_.push_back(name + "not one logprob a token");
    if (has_tokens) {
      const int size = static_cast<int>(chunk.token_ids.size());
      if (sequence.num_deltas == 1) sequence.min_delta_tokens = sequence.last_delta_tokens;
      if (sequence.num_deltas > 1)
        sequence.min_delta_tokens = std::min(sequence.min_delta_tokens, sequence.last_delta_tokens);
      sequence.last_delta_tokens = size;
      ++sequence.num_deltas;
    }
    sequence.tokens.insert(sequence.tokens.end(), chunk.token_ids.begin(), chunk.token_ids.end());
    sequence.text += chunk.text;
    std::move(chunk.logprobs.begin(), chunk.logprobs.end(), std::back_inserter(sequence.logprobs));
    if (!chunk.prompt_logprobs.empty() &&
        (chunk.index != 0 || !sequence.tokens.empty() ||
         chunk.prompt_position != static_cast<int>(sequence.prompt_logprobs.size()) + 1))
      violations_.push_back(name + "prompt logprobs at the wrong place");
    std::move(chunk.prompt_logprobs.begin(), chunk.prompt_logprobs.end(),
              std::back_inserter(sequence.prompt_logprobs));
    sequence.preemptions = std::max(sequence.preemptions, chunk.preemptions);
    sequence.prompt_tokens_done = std::max(sequence.prompt_tokens_done, chunk.prompt_tokens_done);
    if (chunk.sequence_end) sequence.end = std::move(chunk.sequence_end);
  }
  if (chunk.request_end) EndRequest(name, request, std::move(*chunk.request_end));
}

void ChunkCollector::EndRequest(const std::string& name, RequestOutcome& request,
                                RequestEnd&& end) {
  for (const auto& [index, sequence] : request.sequences) {
    if (!sequence.end) violations_.push_back(name + "the request ended before its sequences");
  }
  request.end = std::move(end);
  ++num_ended_;
}

}  // namespace sluice::engine
