#pragma once

// Planning and scratch memory of the CPU's paged attention; the arithmetic is in
// attention_kernels.h.

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

#include "kernels/core/buffer.h"
#include "kernels/core/exec.h"

namespace sluice::kernels::cpu {

// Query vectors, (token, head) pairs that share one KV head, that one work item handles at most.
inline constexpr int kMaxItemQueries = 32;

// Tokens of one row whose queries share loads of K and V.
struct AttentionGroup {
  int32_t row = 0;
  int32_t first_token = 0;
  int32_t num_tokens = 0;
  int64_t first_unit = 0;   // of this group's units, when splits are units of work
  int64_t first_split = 0;  // that the group's first token sees
  int64_t num_splits = 0;   // from first_split to the one of the group's last token
};

// What PagedAttention needs inside, reserved once. Part of the CpuWorkspace; engine thread, except
// that each worker writes its own `worker` memory and its own units' partials.
struct AttentionScratch {
  absl::Status Allocate(const WorkspaceShape& shape, int num_workers);

  float* worker(int index) const { return workers + index * worker_floats; }

  int64_t padded_head_size = 0;  // D rounded up to 16
  float* workers = nullptr;      // [num_workers, worker_floats]
  int64_t worker_floats = 0;
  float* partials = nullptr;  // (m, l, o) of every (query, split), see attention_item.h
  int64_t partial_floats = 0;
  std::vector<AttentionGroup> groups;  // of the current step; capacity max_tokens

 private:
  Buffer storage_;
};

}  // namespace sluice::kernels::cpu
