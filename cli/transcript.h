#pragma once

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "engine/request.h"

namespace sluice::cli {

// Prints a generation as it comes and measures it as its user sees it. One sequence is streamed;
// of several each is printed whole when it has ended. Not thread-safe.
class Transcript {
 public:
  enum class Form { kText, kTokenIds };

  // `start`: when the request was handed over.
  Transcript(std::FILE* out, Form form, int num_sequences, engine::Time start);

  // From now on; before the first chunk.
  void set_form(Form form) { form_ = form; }
  // Takes the next chunk, which came at `now`. False when `out` can take no more.
  bool Add(const engine::TokenChunk& chunk, engine::Time now);
  // Ends an open line of the output.
  void Finish();

  // "48 tokens (length), 131.2 tokens/s, first token after 23.4 ms, prompt of 5 tokens".
  std::string Summary(const engine::Usage& usage) const;
  int64_t num_tokens() const { return num_tokens_; }

 private:
  struct Output {
    std::string held;  // not printed yet: several sequences
    std::vector<engine::TokenLogprobs> logprobs;
    engine::SequenceEnd end;
  };
  void Print(int32_t index, const std::string& text);
  void PrintEnd(int32_t index);
  void Write(const std::string& text);

  std::FILE* const out_;
  Form form_;
  const engine::Time start_;
  std::vector<Output> outputs_;
  bool write_failed_ = false;
  bool line_open_ = false;
  int64_t num_tokens_ = 0;
  int64_t num_first_tokens_ = 0;  // that came with the first chunk
  std::optional<engine::Time> first_token_;
  engine::Time last_token_;
};

}  // namespace sluice::cli
