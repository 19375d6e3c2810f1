#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/model/model_config.h"
#include "kernels/ops.h"

namespace sluice::engine {

class ModelFile;

// Weights of one layer: the Linears and Norms view matrices and vectors owned by Weights.
struct LayerWeights {
  kernels::Norm attention_norm;            // [E]
  kernels::Linear q, k, v;                 // [H*D, E], [G*D, E], [G*D, E]
  kernels::Norm q_head_norm, k_head_norm;  // [D] or none
  kernels::Linear attention_output;        // [E, H*D]
  kernels::Norm attention_post_norm;       // [E] or none
  kernels::Norm ffn_norm;                  // [E]
  kernels::Linear gate, up;                // [F, E]; no gate: gate.weight is null
  kernels::Linear down;                    // [E, F]
  kernels::Norm ffn_post_norm;             // [E] or none
};

// All weights of a model in the layout of one backend. Each tensor is read once and repacked at
// once (one that holds several matrices into as many); no second copy is left behind. Immutable
// after Load; CPU engines of one process share it.
class Weights {
 public:
  struct LoadOptions {
    kernels::Backend backend = kernels::Backend::kCpu;
    int num_threads = 1;
    kernels::PlantedBug planted_bug = kernels::PlantedBug::kNone;  // kKeyBiasDropped
    // Hash the file for digest(): off for loads of a few layers (config.num_layers less than the
    // file's).
    bool compute_digest = true;
    // Keep them in memory (kernels::Buffer::Lock).
    bool lock_memory = false;
    // Called from one thread at a time with bytes done and in all; may be empty.
    std::function<void(uint64_t done, uint64_t total)> progress;
  };
  // INVALID_ARGUMENT with "tensor: expected [..] .., got [..] .." when a tensor is missing or
  // misshapen; UNIMPLEMENTED for a type that the backend has no products for; DATA_LOSS when the
  // file changed or cannot be read; FAILED_PRECONDITION when the memory cannot be locked.
  static absl::StatusOr<std::shared_ptr<const Weights>> Load(const ModelFile& file,
                                                             const ModelConfig& config,
                                                             const LoadOptions& options);

  const kernels::PackedWeight& token_embedding() const { return *token_embedding_; }  // [V, E]
  const std::vector<LayerWeights>& layers() const { return layers_; }
  const kernels::Norm& output_norm() const { return output_norm_; }  // [E]
  const kernels::Linear& head() const { return head_; }  // [V, E]; the embedding when tied

  uint64_t resident_bytes() const { return resident_bytes_; }
  uint64_t tensor_bytes() const { return tensor_bytes_; }  // in the file, of the tensors used
  // Hex sha256 over the sha256 of the metadata section and of the stored bytes of every tensor that
  // the model computes with, in file order: equal files, equal digests, computed while loading. Of
  // tensors that are not used, only name, shape and place count: their bytes are never read.
  const std::string& digest() const { return digest_; }

 private:
  Weights() = default;
  friend class WeightsLoader;

  kernels::Buffer matrix_memory_;  // of all matrices, which are parts of it
  kernels::Buffer vector_memory_;
  std::vector<std::unique_ptr<kernels::PackedWeight>> matrices_;
  const kernels::PackedWeight* token_embedding_ = nullptr;
  std::vector<LayerWeights> layers_;
  kernels::Norm output_norm_;
  kernels::Linear head_;
  uint64_t resident_bytes_ = 0;
  uint64_t tensor_bytes_ = 0;
  std::string digest_;
};

}  // namespace sluice::engine
