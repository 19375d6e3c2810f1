#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>

#include "kernels/core/buffer.h"
#include "kernels/core/exec.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/decode_recorder.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_row.h"
#include "kernels/cuda/linear_tuner.h"
#include "kernels/ops.h"

namespace sluice::kernels::cuda {

// The arrays of a step at fixed addresses: one page-locked block of host memory and one of device
// memory with the same layout, so that one copy brings a step. [max] of the workspace's shape.
struct BatchArrays {
  int32_t* tokens = nullptr;         // [T]
  int32_t* positions = nullptr;      // [T]
  int32_t* token_rows = nullptr;     // [T] row of each token
  int32_t* row_begins = nullptr;     // [S + 1]
  int32_t* page_begins = nullptr;    // [S + 1]
  int32_t* logit_tokens = nullptr;   // [R]
  int32_t* adapters = nullptr;       // [S]
  int32_t* slots = nullptr;          // [T]
  int32_t* num_items = nullptr;      // [1]
  AttentionBlock* blocks = nullptr;  // [MaxBlocks]
  AttentionItem* items = nullptr;    // [MaxItems]
  int32_t* pages = nullptr;          // last, so that a copy ends with what is used
};

// A step's launches, recorded once for each number of rows.
struct StepGraph {
  int runs = 0;  // without a graph
  cudaGraphExec_t exec = nullptr;
};

// The persistent kernel for steps of one token: tried once, when such a step comes a second time.
struct LoneDecode {
  bool possible = false;  // compute capability 9.0 and the only engine on its device
  bool tried = false;
  std::unique_ptr<DecodeProgram> program;
  DecodeStep step;
  bool takes_step = false;  // the step last uploaded is the program's and was not copied
};

// Device scratch of the ops, reserved once. Owned by the Exec; engine thread only.
struct CudaWorkspace : Exec::Workspace {
  ~CudaWorkspace() override;

  cudaStream_t stream = nullptr;
  LinearDevice linear_device;  // what LaunchLinear may use
  LinearTuner tuner;
  OperandRows normed;                  // outcome of a norm in front of a product, [max(T, R), E]
  float* qkv = nullptr;                // [T, (H + 2 G) D]
  float* gate = nullptr;               // [T, F]
  float* up = nullptr;                 // [T, F]
  float* product = nullptr;            // [T, E], where a norm follows
  float* partials = nullptr;           // of attention, see AttentionArgs
  int32_t* previous_tokens = nullptr;  // [R]

  // Set when the next MatMulAddResidual is to make its operand row itself, and from what.
  std::optional<RowSource> deferred;
  GateRowsArgs deferred_gate;
  AttentionArgs deferred_attention;

  // Of the step's positions, by EmbedTokens.
  struct RopeTable {
    const float* source = nullptr;  // host frequencies that `frequencies` is a copy of
    float* frequencies = nullptr;   // [D / 2]
    float2* rotations = nullptr;    // [T, D / 2]
  };
  std::array<RopeTable, kMaxRopes> ropes;

  // The step's arrays.
  BatchArrays host;  // of the latest step
  std::array<BatchArrays, 2> hosts;
  BatchArrays device;
  int64_t batch_bytes = 0;
  AttentionShape attention_shape;
  AttentionPlan plan;      // of the latest step
  int32_t max_parts = 0;   // see AttentionArgs
  int32_t graph_rows = 0;  // rows, padding included, of a step that a graph may replay; else 0
  std::map<int32_t, StepGraph> graphs;  // by rows

  // Steps of one token that the device's persistent kernel takes.
  LoneDecode lone;
  DecodeRecorder* recorder = nullptr;  // while set, ops go there instead of to the device

  // Two page-locked copies take turns: one may still be on its way when the next step comes.
  cudaEvent_t uploaded[2] = {};
  uint64_t num_uploads = 0;
  int device_index = 0;

  Buffer memory;
  std::array<Buffer, 2> pinned;
};

inline CudaWorkspace& WorkspaceOf(Exec& exec) {
  return *static_cast<CudaWorkspace*>(exec.workspace());
}

}  // namespace sluice::kernels::cuda
