#pragma once

#include <memory>
#include <optional>
#include <string>

#include "engine/request.h"
#include "engine/sampling/stop_matcher.h"
#include "engine/tokenizer/detokenizer.h"
#include "engine/tokenizer/tokenizer.h"

namespace sluice::engine {

// What one sequence says: takes its tokens, turns them into text, finds where it ends by a token, a
// stop string or its length, and gathers the chunk that goes out next. Owned by the sequence;
// engine thread only.
//
// The token that ends a sequence (end of generation, stop token) counts and is reported, but gives
// no text unless `include_stop_str_in_output` asks for it, or, for end of generation,
// `skip_special_tokens` is off. Before `min_tokens` nothing is matched.
class SequenceOutput {
 public:
  // `request` outlives it. `tokenizer` may be null: then no text is made and nothing is known to
  // end a generation. Goes on from `request->resume`.
  SequenceOutput(const Request* request, int index, std::shared_ptr<const Tokenizer> tokenizer);

  // Takes the next token. Returns the end when the sequence ends with it.
  std::optional<SequenceEnd> Append(TokenLogprobs&& token);
  // Ends the sequence for a reason found elsewhere: gives out the text that was held back.
  void Finish();

  // Tokens wait for as many as a chunk should have.
  bool due() const;
  // The tokens and the text since the last call.
  TokenChunk Take();
  // Writes what it takes to go on from here, but for the tokens.
  void Suspend(ResumePoint& point) const;
  // A chunk of this sequence with nothing in it.
  TokenChunk EmptyChunk() const;

  int num_tokens() const { return num_tokens_; }

 private:
  // Gives the text of `id` out; returns the stop string that it completes.
  std::optional<std::string> AddText(TokenId id);
  std::optional<SequenceEnd> EndByToken(TokenId id) const;

  const Request* request_;
  int index_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::optional<Detokenizer> detokenizer_;  // when text is made
  StopMatcher matcher_;
  int num_tokens_ = 0;
  TokenChunk chunk_;
  std::string scratch_;
};

}  // namespace sluice::engine
