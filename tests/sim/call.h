#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "engine/request.h"
#include "engine/tokenizer/detokenizer.h"
#include "server/admission.h"
#include "tests/sim/random.h"

namespace sluice::sim {

// What the simulated device computes. Of a position it keeps a hash of all tokens up to it, begun
// with who may share them: so what is drawn depends on every token before, and a page of another
// text, or of a tenant who shares none, is noticed.
constexpr uint64_t Chain(uint64_t prefix, engine::TokenId token) {
  return Mix(prefix, static_cast<uint64_t>(token) + 1);
}

struct Draw {
  uint64_t seed = 0;  // of the request: its handle
  int index = 0;
  int position = 0;    // that the token takes
  int num_output = 0;  // tokens before it
  int min_tokens = 0;
  std::span<const engine::TokenId> banned;  // before the minimum
};
inline constexpr int kVocabulary = 64;
engine::TokenId DrawToken(uint64_t prefix, const Draw& draw);
// In seeds with this trouble: the logits of a position are not finite.
bool IsNonfinite(uint64_t handle, int index, int position);
// What scoring `token` after `prefix` gives.
float Score(uint64_t prefix, engine::TokenId token);

// One Generate call: what it asked for, what must come of it, and what its client has seen.
struct Call {
  engine::RequestHandle handle;
  int tenant = 0;
  int n = 1;
  int num_prompt = 0;
  int64_t cost = 0;  // in turns of the queue, of one sequence
  engine::StoppingParams stopping;
  std::vector<engine::TokenId> banned;
  engine::OutputParams output;
  int priority = 0;
  std::optional<engine::Time> deadline, queue_deadline, max_time;
  uint64_t base = 0;                           // of the chain
  uint64_t prompt_prefix = 0;                  // of the whole prompt
  std::vector<engine::TokenId> scored_prompt;  // when it is scored
  std::vector<engine::TokenId> resumed;        // came with it, of one sequence
  bool impossible = false;

  struct Sequence {
    uint64_t prefix = 0;
    int num_tokens = 0;
    bool ended = false;
    engine::FinishReason due = engine::FinishReason::kNone;  // with the token before
    int num_scored = 0;
    uint64_t scored_prefix = 0;
    std::string text, expected_text;
    std::optional<engine::Detokenizer> detokenizer;
  };
  std::vector<Sequence> sequences;
  int num_live = 0;

  bool submitted = false;    // to the engine
  bool after_drain = false;  // was
  bool admitted = false;
  bool first_planned = false;  // as the device sees it
  int preemptions = 0;         // that are known here
  int passed = 0;     // times that a later one of its tenant got a place, or took its, at most
  int overtaken = 0;  // of those, certainly out of the queue with it the first that came
  bool ended = false;
  bool cancelled = false, aborted = false;  // such a command was given
  bool nonfinite = false;                   // the device said so
  bool paused = false;                      // such a command was given last
  uint64_t num_pauses = 0;
  bool reads = true;
  int64_t unread = 0;  // tokens
  engine::Time paused_at{};
  std::unique_ptr<server::Admission::Ticket> ticket;
  int64_t waits_with_tokens = 0, waits_with_bytes = 0;  // until its first token
  int64_t bytes = 0;
  int64_t positions = 0;
  int64_t charged = 0;  // tokens of its prompt, which come back when no engine takes it

  bool open() const { return submitted && !ended; }
};

}  // namespace sluice::sim
