#pragma once

namespace sluice::engine {

// What to try where logits are not finite and the KV cache is f16.
inline constexpr char kF16KvHint[] = " (K or V may exceed f16: try --kv-dtype f32)";

// Limits of the scheduler of one engine, after the model and the pool are known.
struct SchedulerLimits {
  int depth = 0;  // steps in flight while planning
  int max_batch = 64;
  int max_step_tokens = 512;
  int max_queue = 1024;
  int num_pages = 0;    // page 0 included
  int max_context = 0;  // positions of a sequence, at most; 2 or more
  bool prefix_cache = true;
  bool f16_kv = false;  // the KV cache is f16: named when logits are not finite
};

}  // namespace sluice::engine
