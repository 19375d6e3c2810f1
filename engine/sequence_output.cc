#include "engine/sequence_output.h"

#include <algorithm>
#include <utility>

namespace sluice::engine {

SequenceOutput::SequenceOutput(const Request* request, int index,
                               std::shared_ptr<const Tokenizer> tokenizer)
    : request_(request),
      index_(index),
      tokenizer_(std::move(tokenizer)),
      matcher_(request->stopping.stop, request->stopping.include_stop_str_in_output) {
  if (tokenizer_ && (request->output.return_text || !request->stopping.stop.empty()))
    detokenizer_.emplace(tokenizer_, request->output.skip_special_tokens, /*continues_text=*/true);
  const ResumePoint& resume = request->resume;
  num_tokens_ = static_cast<int>(resume.token_ids.size());
  if (detokenizer_) detokenizer_->Restore(resume.unfinished);
  // It is the beginning of a stop string and of no length to be one: nothing comes out.
  std::string nothing;
  matcher_.Append(resume.held_back, nothing);
  chunk_ = EmptyChunk();
}

void SequenceOutput::Suspend(ResumePoint& point) const {
  if (detokenizer_) point.unfinished = detokenizer_->unfinished();
  point.held_back = matcher_.held_back();
}

TokenChunk SequenceOutput::EmptyChunk() const {
  TokenChunk chunk;
  chunk.request = request_->handle;
  chunk.index = index_;
  chunk.position = num_tokens_;
  return chunk;
}

TokenChunk SequenceOutput::Take() { return std::exchange(chunk_, EmptyChunk()); }

bool SequenceOutput::due() const {
  return static_cast<int>(chunk_.token_ids.size()) >= std::max(1, request_->output.stream_interval);
}

std::optional<SequenceEnd> SequenceOutput::EndByToken(TokenId id) const {
  const StoppingParams& stopping = request_->stopping;
  if (num_tokens_ < stopping.min_tokens) return std::nullopt;
  if (!stopping.ignore_eos && tokenizer_ && tokenizer_->IsEndOfGeneration(id))
    return SequenceEnd{FinishReason::kEos, {}, id};
  const auto& ids = stopping.stop_token_ids;
  if (std::find(ids.begin(), ids.end(), id) != ids.end())
    return SequenceEnd{FinishReason::kStop, {}, id};
  return std::nullopt;
}

std::optional<SequenceEnd> SequenceOutput::Append(TokenLogprobs&& token) {
  const TokenId id = token.token;
  ++num_tokens_;
  chunk_.token_ids.push_back(id);
  if (request_->output.logprobs >= 0) chunk_.logprobs.push_back(std::move(token));

  std::optional<SequenceEnd> end = EndByToken(id);
  const StoppingParams& stopping = request_->stopping;
  const bool has_text =
      !end || stopping.include_stop_str_in_output ||
      (end->reason == FinishReason::kEos && !request_->output.skip_special_tokens);
  if (has_text) {
    std::optional<std::string> stop = AddText(id);
    if (stop && !end) return SequenceEnd{FinishReason::kStop, std::move(*stop), std::nullopt};
  }
  if (!end && num_tokens_ >= stopping.max_tokens) {
    end = SequenceEnd{
        stopping.fills_context ? FinishReason::kContext : FinishReason::kLength, {}, std::nullopt};
  }
  if (end) Finish();
  return end;
}

std::optional<std::string> SequenceOutput::AddText(TokenId id) {
  // The output matrix may have rows beyond the vocabulary (padding); such a token has no text.
  if (!detokenizer_ || id < 0 || id >= tokenizer_->vocab_size()) return std::nullopt;
  scratch_.clear();
  detokenizer_->Append(id, scratch_);
  std::string ignored;
  std::string& text = request_->output.return_text ? chunk_.text : ignored;
  if (num_tokens_ >= request_->stopping.min_tokens) return matcher_.Append(scratch_, text);
  text += scratch_;
  return std::nullopt;
}

void SequenceOutput::Finish() {
  if (!detokenizer_) return;
  scratch_.clear();
  detokenizer_->Finish(scratch_);
  std::string ignored;
  std::string& text = request_->output.return_text ? chunk_.text : ignored;
  // A stop string that ends in the replacement of an unfinished code point still cuts the text.
  if (!matcher_.Append(scratch_, text)) matcher_.Finish(text);
}

}  // namespace sluice::engine
