#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"

namespace sluice::engine {

// What a client has seen of one sequence.
struct SequenceOutcome {
  std::vector<TokenId> tokens;
  int first_position = 0;  // of the first token
  std::string text;
  std::vector<TokenLogprobs> logprobs;
  std::vector<TokenLogprobs> prompt_logprobs;
  std::optional<SequenceEnd> end;
  int num_deltas = 0;        // chunks with tokens
  int min_delta_tokens = 0;  // of all chunks with tokens but the last
  int last_delta_tokens = 0;
  int preemptions = 0;
  int prompt_tokens_done = 0;
};

// What a client has seen of one request.
struct RequestOutcome {
  std::map<int, SequenceOutcome> sequences;
  bool admitted = false;
  std::vector<int> queue_positions;  // those it was told while it waited
  std::optional<RequestEnd> end;

  const SequenceOutcome& only() const { return sequences.at(0); }
};

// Puts chunks together again, and writes down whatever breaks their order. Not thread-safe.
class ChunkCollector {
 public:
  void Add(std::vector<TokenChunk>&& chunks);

  const RequestOutcome& Outcome(uint64_t handle) { return requests_[handle]; }
  const std::map<uint64_t, RequestOutcome>& requests() const { return requests_; }
  int num_ended() const { return num_ended_; }
  const std::vector<std::string>& violations() const { return violations_; }

 private:
  void Add(TokenChunk&& chunk);
  void EndRequest(const std::string& name, RequestOutcome& request, RequestEnd&& end);

  std::map<uint64_t, RequestOutcome> requests_;
  int num_ended_ = 0;
  std::vector<std::string> violations_;
};

}  // namespace sluice::engine
