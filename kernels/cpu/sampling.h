#pragma once

// Scratch memory of the CPU's sampler.

#include <cstdint>

#include "absl/status/status.h"

#include "kernels/core/buffer.h"
#include "kernels/core/exec.h"

namespace sluice::kernels::cpu {

// A token that is still in the running, with its weight.
struct SampleCandidate {
  uint64_t weight = 0;
  int32_t token = 0;
  float logit = 0.0f;
};

// What one worker needs to sample one row at a time.
struct SamplingWorker {
  float* adjusted = nullptr;              // [V] logits after mask, bans, bias and penalties
  float* block_max = nullptr;             // [ceil(V / 64)]
  uint64_t* block_sum = nullptr;          // [ceil(V / 64)]
  SampleCandidate* candidates = nullptr;  // [V]
  SampleCandidate* selection = nullptr;   // [V], reordered while looking for a threshold
};

// Reserved once; part of the CpuWorkspace. Each worker writes its own part.
struct SamplingScratch {
  absl::Status Allocate(const WorkspaceShape& shape, int num_workers);

  SamplingWorker worker(int index) const;

  int64_t vocab_size = 0;

 private:
  int64_t worker_bytes_ = 0;
  Buffer storage_;
};

}  // namespace sluice::kernels::cpu
