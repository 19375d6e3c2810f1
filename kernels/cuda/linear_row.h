#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"

#include "kernels/cuda/attention.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/rows.h"

namespace sluice::kernels::cuda {

// Where the one operand row of LaunchLinearRow comes from.
enum class RowSource : uint8_t { kNorm, kGate, kAttention };
struct LinearRowArgs {
  LinearTask tasks[kMaxTasks];
  int32_t num_tasks = 0;
  float scale = 1.0f;       // of what is added
  bool add_to_out = false;  // out += scale * product, else out = product
  RowSource source = RowSource::kNorm;
  NormRowsArgs norm;
  GateRowsArgs gate;
  AttentionArgs attention;
  int32_t units = 0;  // of 64 columns
  // Of the launch; set by LaunchLinearRow.
  int32_t first_block[kMaxTasks + 1] = {};
};

// LaunchLinear for one token with the making of its operand row inside: one kernel instead of two,
// which is what a lone sequence waits for. The same bits.
absl::Status LaunchLinearRow(LinearRowArgs args, cudaStream_t stream);

// Rows longer than this do not fit shared memory beside their operands.
inline constexpr int32_t kMaxLoneRowUnits = 448;

}  // namespace sluice::kernels::cuda
