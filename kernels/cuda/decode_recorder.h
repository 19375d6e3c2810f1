#pragma once

// Makes a DecodeProgram of the ops of one step of one token, which it is handed instead of their
// being launched.

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/decode_program.h"

namespace sluice::kernels::cuda {

// Engine thread only; lives for one step's ops.
class DecodeRecorder {
 public:
  explicit DecodeRecorder(const WorkspaceShape& shape) : shape_(shape) {}

  // The ops, with their arguments. OK also for what a program cannot do: Finish then says so.
  absl::Status Embed(const EmbedArgs& args);
  absl::Status Qkv(const NormQkvRopeStoreArgs& args, const KvLayer& kv);
  absl::Status Attention(const PagedAttentionArgs& args);
  absl::Status AddResidual(const MatMulAddResidualArgs& args);
  absl::Status GateUp(const NormGateUpArgs& args);
  absl::Status Head(const NormLmHeadArgs& args, MatrixF32 logits);

  // The program, on the current device. UNIMPLEMENTED, naming the reason, when an op is beyond it.
  absl::StatusOr<std::unique_ptr<DecodeProgram>> Finish();

 private:
  void Require(bool holds, const char* what) {
    if (!holds && obstacle_.empty()) obstacle_ = what;
  }
  // Adds a stage with the groups of `linears`, which begin at the blocks that have had least.
  DecodeStage& AddProducts(DecodeStageKind kind, const Norm* norm,
                           std::initializer_list<const Linear*> linears);
  void TakeBlocks(DecodeStage& stage, int32_t groups);
  int32_t TakeHandoff(int64_t floats);

  const WorkspaceShape shape_;
  std::string obstacle_;
  DecodeArgs args_;
  std::vector<DecodeStage> stages_;
  std::vector<DecodeTask> tasks_;
  // Values of quantised weights, of which so many pay: a step of 7B Q4_K_M takes this kernel
  // 5.0 ms, the kernels of several tokens 4.5 (H200); where the two meet was estimated.
  static constexpr int64_t kMostQuantized = 2'500'000'000;
  int64_t quantized_ = 0;
  int32_t blocks_ = 0;
  int32_t next_block_ = 0;
  int32_t residual_ = -1;  // where the residual stands after the last stage
  int32_t qkv_ = 0;
};

}  // namespace sluice::kernels::cuda
