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
  absl::StatusOr<std::unique_ptr<DecodeProgram>> Finish(PersistentDecode wanted);

 private:
  void Require(bool holds, const char* what) {
    if (!holds && obstacle_.empty()) obstacle_ = what;
  }
  DecodeStage& AddProducts(DecodeStageKind kind, const Norm* norm,
                           std::initializer_list<const Linear*> linears);
  DecodeForm ChooseForm(PersistentDecode wanted) const;
  // Gives each stage its groups, from the teams on that have had least.
  void ShareOut();
  // How large the program's tables are, of equal shapes one; what they hold, once all is decided.
  void LayOutTables();
  std::vector<std::byte> TableBytes() const;
  // As many slots as a block of so many bytes of shared memory has room for, 0 or 1: too few.
  void SizeRings(int32_t most_shared);
  // A list of the copies that each warp asks for, in device memory; known to args_ then.
  absl::StatusOr<Buffer> ListAllChunks();
  int32_t TakeHandoff(int64_t floats);

  const WorkspaceShape shape_;
  std::string obstacle_;
  DecodeArgs args_;
  std::vector<DecodeStage> stages_;
  std::vector<DecodeTask> tasks_;
  std::vector<DecodeShape> shapes_;  // of each task; from LayOutTables on different ones
  std::vector<DecodeCache> caches_;
  // Values of quantised weights up to which preparing them is better: one sequence of 0.5B Q4_K_M
  // decodes at 1,697 tokens a second so and at 1,422 otherwise, of 1.5B Q4_K_M at 763 and 950
  // (H200, context 512); where the two meet is an estimate.
  static constexpr int64_t kMostPrepared = 700'000'000;
  int64_t quantized_ = 0;
  int32_t blocks_ = 0;
  int32_t residual_ = 0;  // where the residual stands after the last stage
  int32_t qkv_ = 0;
};

}  // namespace sluice::kernels::cuda
