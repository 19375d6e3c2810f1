#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/ids.h"

namespace sluice::engine {

// How tokens are drawn. Resolved and validated by the server (the seed included). Values; names
// follow vLLM.
struct SamplingParams {
  float temperature = 1.0f;         // 0: greedy
  int32_t top_k = 0;                // 0: off
  float typical_p = 1.0f;           // (0, 1]
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1]
  float repetition_penalty = 1.0f;  // prompt and output
  float presence_penalty = 0.0f;    // output
  float frequency_penalty = 0.0f;   // output
  int32_t penalty_last_n = 0;       // 0: all
  uint64_t seed = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;  // ascending ids, unique
  int32_t n = 1;                                      // sequences of this request
};

// When a sequence ends.
struct StoppingParams {
  int32_t max_tokens = 0;      // > 0, resolved
  bool fills_context = false;  // nobody asked for so few: the context has no room for more
  int32_t min_tokens = 0;
  std::vector<std::string> stop;  // non-empty strings
  std::vector<TokenId> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop_str_in_output = false;
};

// What is reported.
struct OutputParams {
  bool return_text = true;
  bool return_token_ids = false;
  int32_t logprobs = -1;         // -1: none; 0: of the chosen token; n: and the n best
  int32_t prompt_logprobs = -1;  // the same of the prompt's tokens but the first
  bool skip_special_tokens = true;
  int32_t stream_interval = 1;  // tokens a delta, at least
  bool report_progress = false;
};

}  // namespace sluice::engine
