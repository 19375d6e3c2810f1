#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "engine/request.h"
#include "sluice/v1/inference.pb.h"

namespace sluice::server {

// What is still to be written to one Generate stream, in the order of the API: accepted, (progress
// | prompt_logprobs | delta)*, sequence_finished once a sequence, request_finished. Chunks that
// wait are merged, so a slow reader gets fewer and longer deltas. Not thread-safe.
class EventQueue {
 public:
  // Of an accepted request with `num_sequences` sequences.
  EventQueue(v1::Accepted accepted, engine::OutputParams output, int num_sequences);

  void Add(engine::TokenChunk&& chunk);
  // The next message; nothing while there is none to be sent. The acceptance waits for the first
  // message after it unless progress is reported, because it commits the call: a client retries
  // one that failed before by itself.
  std::optional<v1::GenerateResponse> Next();
  // Next() would give a message.
  bool ready() const;
  // Forgets what waits. Nothing but the end is taken after it.
  void Abandon();

  // Bytes of text, ids and logprobs that wait; only of what the client asked for.
  size_t waiting_bytes() const { return waiting_bytes_; }
  // So much waits that no more should be computed: 64 KiB, or 64 tokens of each sequence. The
  // library holds a message besides, and the connection a window: a reader that is so far behind
  // has stopped.
  bool much_waits() const;
  // At most a quarter of that.
  bool little_waits() const;
  // Tokens in the messages that Next() gave.
  int64_t tokens_sent() const { return tokens_sent_; }
  // How the request ended, once that is known. An end with a status other than OK has no message.
  const std::optional<engine::RequestEnd>& end() const { return end_; }
  // Next() has given request_finished.
  bool finished() const { return finished_; }
  // Of sequence 0.
  engine::FinishReason finish_reason() const { return finish_reason_; }

 private:
  struct Sequence {
    std::optional<engine::TokenChunk> waiting;  // without what the client did not ask for
    int64_t waiting_tokens = 0;
    int32_t first_position = 0;  // of the waiting tokens
    bool progress_due = false;
    int32_t queue_position = 0;
    int32_t prompt_tokens_done = 0;
    int32_t preemptions = 0;
  };

  bool HasDelta(const engine::TokenChunk& chunk) const;
  bool HasEvent(const Sequence& sequence) const;
  bool HasEvent() const;
  void NextOf(Sequence& sequence, v1::GenerateResponse* out);
  bool MoreWaitsThan(double share) const;

  v1::Accepted accepted_;
  const engine::OutputParams output_;
  bool accepted_sent_ = false;
  std::vector<Sequence> sequences_;
  std::optional<engine::RequestEnd> end_;
  engine::FinishReason finish_reason_ = engine::FinishReason::kNone;
  bool abandoned_ = false;
  bool finished_ = false;
  uint64_t next_event_seq_ = 0;
  size_t waiting_bytes_ = 0;
  int64_t tokens_sent_ = 0;
};

}  // namespace sluice::server
