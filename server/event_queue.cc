#include "server/event_queue.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <utility>

#include "server/messages.h"

namespace sluice::server {
namespace {

// Prompt logprobs of one message.
constexpr size_t kSlabTokens = 256;

constexpr size_t kMuchBytes = 64 * 1024;
constexpr int64_t kMuchTokens = 64;
constexpr double kLittle = 0.25;

size_t BytesOf(const std::vector<engine::TokenLogprobs>& tokens) {
  size_t bytes = 0;
  for (const engine::TokenLogprobs& token : tokens) {
    bytes += sizeof(token) + token.top.size() * sizeof(engine::TopLogprob);
  }
  return bytes;
}

size_t BytesOf(const engine::TokenChunk& chunk) {
  return chunk.text.size() + chunk.token_ids.size() * sizeof(engine::TokenId) +
         BytesOf(chunk.logprobs) + BytesOf(chunk.prompt_logprobs);
}

}  // namespace

EventQueue::EventQueue(v1::Accepted accepted, engine::OutputParams output, int num_sequences)
    : accepted_(std::move(accepted)),
      output_(output),
      sequences_(static_cast<size_t>(num_sequences)) {}

void EventQueue::Add(engine::TokenChunk&& chunk) {
  // Of an engine that was given up and came back, or given up when the request had ended already.
  if (end_ && (chunk.request_end || !end_->status.ok())) return;
  if (chunk.request_end) {
    end_ = std::move(chunk.request_end);
    chunk.request_end.reset();
  }
  if (chunk.sequence_end && chunk.index == 0) finish_reason_ = chunk.sequence_end->reason;
  if (abandoned_ || chunk.index < 0 || static_cast<size_t>(chunk.index) >= sequences_.size()) {
    return;
  }
  Sequence& sequence = sequences_[static_cast<size_t>(chunk.index)];
  if (output_.report_progress) {
    const bool news = chunk.admitted || chunk.queue_position != sequence.queue_position ||
                      chunk.prompt_tokens_done > sequence.prompt_tokens_done ||
                      chunk.preemptions > sequence.preemptions;
    sequence.progress_due = sequence.progress_due || news;
    sequence.queue_position = chunk.queue_position;
    sequence.prompt_tokens_done = std::max(sequence.prompt_tokens_done, chunk.prompt_tokens_done);
    sequence.preemptions = std::max(sequence.preemptions, chunk.preemptions);
  }
  if (sequence.waiting_tokens == 0) sequence.first_position = chunk.position;
  sequence.waiting_tokens += static_cast<int64_t>(chunk.token_ids.size());
  // What will never be written must not be held: it would count as waiting for ever.
  if (!output_.return_token_ids) chunk.token_ids.clear();
  if (!output_.return_text) chunk.text.clear();
  waiting_bytes_ += BytesOf(chunk);
  if (sequence.waiting) {
    sequence.waiting->Merge(std::move(chunk));
  } else {
    sequence.waiting = std::move(chunk);
  }
  sequence.waiting->position = sequence.first_position;
}

// Tokens of which nothing is to be seen yet (their text is held back) wait for the next ones.
bool EventQueue::HasDelta(const engine::TokenChunk& chunk) const {
  return !chunk.text.empty() || !chunk.token_ids.empty() || !chunk.logprobs.empty();
}

bool EventQueue::HasEvent(const Sequence& sequence) const {
  if (sequence.progress_due) return true;
  if (!sequence.waiting) return false;
  if (HasDelta(*sequence.waiting) || !sequence.waiting->prompt_logprobs.empty()) return true;
  if (!sequence.waiting->sequence_end) return false;
  // A failure before the first token is told by the status alone, so that it commits nothing.
  return accepted_sent_ || sequence.waiting->sequence_end->reason != engine::FinishReason::kError;
}

bool EventQueue::HasEvent() const {
  return std::any_of(sequences_.begin(), sequences_.end(),
                     [this](const Sequence& sequence) { return HasEvent(sequence); });
}

bool EventQueue::ready() const {
  if (finished_ || abandoned_) return false;
  if (!accepted_sent_ && output_.report_progress) return true;
  return HasEvent() || (end_ && end_->status.ok());
}

std::optional<v1::GenerateResponse> EventQueue::Next() {
  if (!ready()) return std::nullopt;
  v1::GenerateResponse out;
  out.set_event_seq(next_event_seq_++);
  if (!accepted_sent_) {
    accepted_sent_ = true;
    *out.mutable_accepted() = std::move(accepted_);
    return out;
  }
  for (Sequence& sequence : sequences_) {
    if (!HasEvent(sequence)) continue;
    NextOf(sequence, &out);
    return out;
  }
  *out.mutable_request_finished() = ToProto(*end_);
  finished_ = true;
  return out;
}

void EventQueue::NextOf(Sequence& sequence, v1::GenerateResponse* out) {
  if (sequence.progress_due) {
    sequence.progress_due = false;
    out->mutable_progress()->set_queue_position(sequence.queue_position);
    out->mutable_progress()->set_prompt_tokens_done(sequence.prompt_tokens_done);
    out->mutable_progress()->set_preemptions(sequence.preemptions);
    return;
  }
  engine::TokenChunk& chunk = *sequence.waiting;
  if (!chunk.prompt_logprobs.empty()) {
    const auto slab =
        chunk.prompt_logprobs.begin() +
        static_cast<std::ptrdiff_t>(std::min(kSlabTokens, chunk.prompt_logprobs.size()));
    const std::vector<engine::TokenLogprobs> first(
        std::make_move_iterator(chunk.prompt_logprobs.begin()), std::make_move_iterator(slab));
    waiting_bytes_ -= BytesOf(first);
    *out->mutable_prompt_logprobs() = ToPromptLogprobs(chunk.prompt_position, first);
    chunk.prompt_logprobs.erase(chunk.prompt_logprobs.begin(), slab);
    chunk.prompt_position += static_cast<int32_t>(first.size());
    return;
  }
  if (HasDelta(chunk)) {
    waiting_bytes_ -= BytesOf(chunk);
    tokens_sent_ += sequence.waiting_tokens;
    sequence.waiting_tokens = 0;
    *out->mutable_delta() = ToDelta(chunk, output_);
    if (!chunk.sequence_end) {
      sequence.waiting.reset();
      return;
    }
    chunk.text.clear();
    chunk.token_ids.clear();
    chunk.logprobs.clear();
    return;
  }
  waiting_bytes_ -= BytesOf(chunk);
  *out->mutable_sequence_finished() = ToProto(chunk.index, *chunk.sequence_end);
  sequence.waiting.reset();
}

bool EventQueue::MoreWaitsThan(double share) const {
  int64_t tokens = 0;
  for (const Sequence& sequence : sequences_) {
    // Those whose text is held back wait for the model, not for the reader.
    if (HasEvent(sequence)) tokens += sequence.waiting_tokens;
  }
  // A delta of many tokens is none that waited.
  const int64_t of_sequence = std::max<int64_t>(kMuchTokens, 2 * output_.stream_interval);
  const auto num_sequences = static_cast<int64_t>(sequences_.size());
  return static_cast<double>(waiting_bytes_) > share * kMuchBytes ||
         static_cast<double>(tokens) > share * static_cast<double>(of_sequence * num_sequences);
}

bool EventQueue::much_waits() const { return MoreWaitsThan(1); }
bool EventQueue::little_waits() const { return !MoreWaitsThan(kLittle); }

void EventQueue::Abandon() {
  abandoned_ = true;
  for (Sequence& sequence : sequences_) sequence = Sequence{};
  waiting_bytes_ = 0;
}

}  // namespace sluice::server
