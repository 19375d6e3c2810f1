#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

#include "engine/base/clock.h"
#include "engine/base/ids.h"
#include "engine/kv/page_size.h"
#include "engine/sampling/sampling_params.h"

namespace sluice::engine {

// How a request takes part in the prefix cache.
struct CacheParams {
  std::string domain;   // pages are shared only among equal ones: CacheDomain
  bool bypass = false;  // finds no pages and leaves none
};
// Of a tenant's requests with `salt`; different pairs give different domains.
std::string CacheDomain(std::string_view tenant, std::string_view salt);

enum class FinishReason : uint8_t {
  kNone,
  kEos,
  kStop,
  kLength,
  kContext,
  kDeadline,
  kConstraintComplete,
  kError
};
std::string_view Name(FinishReason reason);

// The end of a sequence.
struct SequenceEnd {
  FinishReason reason = FinishReason::kNone;
  std::string matched_stop;                 // kStop by a string
  std::optional<TokenId> matched_token_id;  // kEos, or kStop by a token
};

// Where a sequence goes on whose stream broke: what comes out is what would have come after these
// tokens. All but the tokens is ReplayOutput's (engine/resume.h).
struct ResumePoint {
  std::vector<TokenId> token_ids;  // of the output, in order; empty: from the beginning
  std::string unfinished;          // bytes of a code point that is not whole yet
  std::string held_back;           // text that may be the beginning of a stop string
  std::optional<SequenceEnd> end;  // when the last of the tokens ended it
};

// One Generate call, validated and tokenised. Pure data: moved from the reactor through the mailbox
// into the scheduler.
struct Request {
  RequestHandle handle;
  std::string id;         // the client's, or made by the server; for logs
  std::string tenant;     // shares of the queue are by tenant
  int tenant_weight = 1;  // of its turns in the queue, at least 1
  std::vector<TokenId> prompt;
  SamplingParams sampling;
  StoppingParams stopping;
  OutputParams output;
  CacheParams cache;
  ResumePoint resume;                  // not empty for one sequence only
  int32_t priority = 0;                // higher first: out of the queue, and to keep pages
  std::optional<Time> deadline;        // the call ends DEADLINE_EXCEEDED
  std::optional<Time> queue_deadline;  // passes while still waiting: DEADLINE_EXCEEDED
  std::optional<Time> max_time;  // the sequences end with FinishReason::kDeadline and status OK
  Time arrival;                  // when the server had parsed the call

  // Known from the start, of all sequences.
  int64_t num_tokens() const {
    return sampling.n * static_cast<int64_t>(prompt.size() + resume.token_ids.size());
  }
  // Of KV caches, all that its sequences may fill. They share the full pages of the prompt; of one
  // that is scored the first sequence may have pages of its own.
  int64_t max_positions() const {
    const auto num_prompt = static_cast<int64_t>(prompt.size());
    const bool shares = sampling.n > 1 && num_prompt > 0 && output.prompt_logprobs < 0;
    const int64_t shared = shares ? (num_prompt - 1) / kPageTokens * kPageTokens : 0;
    return shared + sampling.n * (num_prompt - shared + stopping.max_tokens);
  }
};

// Tokens that would end a sequence, which are not to be drawn before its minimum: ascending.
std::vector<TokenId> EndTokens(const StoppingParams& stopping,
                               std::span<const TokenId> end_of_generation);

struct TopLogprob {
  TokenId token = 0;
  float logprob = 0.0f;
};
struct TokenLogprobs {
  TokenId token = 0;
  float logprob = 0.0f;
  std::vector<TopLogprob> top;  // descending
};

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t cached_prompt_tokens = 0;
  int32_t completion_tokens = 0;
  int32_t resumed_tokens = 0;  // of those, came with the request: ResumePoint
};

struct Timing {
  double queue_seconds = 0;    // arrival to first planned
  double prefill_seconds = 0;  // first planned to first token
  double time_to_first_token_seconds = 0;
  double decode_seconds = 0;  // first to last token
  double total_seconds = 0;
  double max_inter_token_seconds = 0;
};

struct KvAccounting {
  int32_t page_tokens = 16;
  int32_t peak_pages = 0;
  int32_t pages_reused = 0;
  double page_seconds = 0;
  int32_t preemptions = 0;
  int32_t recomputed_tokens = 0;
};

// The end of a request: exactly one, after the ends of its sequences, and nothing after it. A
// status other than OK is what the call ends with; `error_reason` is the ErrorInfo reason of the
// API's table ("ENGINE_FAULT").
struct RequestEnd {
  absl::Status status;
  std::string error_reason;
  Usage usage;
  Timing timing;
  KvAccounting kv;
};

// Progress of one sequence of a request, as it travels back: pure data. Chunks of one sequence are
// merged while they wait.
struct TokenChunk {
  RequestHandle request;
  int32_t index = 0;               // of the sequence in the request
  int32_t position = 0;            // output position of the first of token_ids
  bool admitted = false;           // the request left the queue with this chunk
  int32_t queue_position = 0;      // until admitted, when the request asked for progress
  int32_t prompt_tokens_done = 0;  // progress of the prefill, when the request asked for it
  int32_t preemptions = 0;         // so far, when the request asked for progress
  std::vector<TokenId> token_ids;
  std::string text;                            // whole code points
  std::vector<TokenLogprobs> logprobs;         // one a token when asked for
  int32_t prompt_position = 0;                 // of the first of prompt_logprobs
  std::vector<TokenLogprobs> prompt_logprobs;  // when asked for; of sequence 0
  std::optional<SequenceEnd> sequence_end;
  std::optional<RequestEnd> request_end;

  // Appends `later`, a chunk of the same sequence that follows this one.
  void Merge(TokenChunk&& later);
};

}  // namespace sluice::engine
