#include "tests/sim/late_reader.h"

namespace sluice::sim {

using engine::TokenChunk;

std::string LateReader::Look(bool everywhere) {
  for (int lane = 0; lane < mailbox_.num_lanes(); ++lane) {
    if (!everywhere && !random_.OneIn(12)) continue;
    for (const TokenChunk& chunk : mailbox_.TakeNow(lane)) {
      if (const char* wrong = Take(chunk))
        return "call " + std::to_string(chunk.request.value) + ", read late: " + wrong;
    }
  }
  return "";
}

const char* LateReader::Take(const TokenChunk& chunk) {
  const Call* call = find_(chunk.request.value);
  if (!call) return "it does not exist";
  Stream& stream = streams_[chunk.request.value];
  if (stream.num_tokens.empty())
    stream.num_tokens.assign(static_cast<size_t>(call->n), static_cast<int>(call->resumed.size()));
  if (stream.ended) return "a chunk after its end";
  if (chunk.admitted && stream.admitted) return "admitted twice";
  stream.admitted = stream.admitted || chunk.admitted;
  const bool refused = chunk.request_end && !chunk.sequence_end && stream.num_ended == 0;
  if (!refused) {
    int& num_tokens = stream.num_tokens.at(static_cast<size_t>(chunk.index));
    if (num_tokens < 0) return "a chunk after its sequence's end";
    if (!chunk.token_ids.empty()) {
      if (!stream.admitted) return "tokens before it was admitted";
      if (chunk.position != num_tokens) return "tokens at the wrong position";
      num_tokens += static_cast<int>(chunk.token_ids.size());
    }
    if (chunk.sequence_end) {
      num_tokens = -1;
      ++stream.num_ended;
    }
  }
  if (!chunk.request_end) return nullptr;
  if (!refused && stream.num_ended != call->n) return "ends before its sequences";
  stream.ended = true;
  return nullptr;
}

}  // namespace sluice::sim
