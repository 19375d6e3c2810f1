#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "kernels/core/planted_bug.h"
#include "kernels/ops.h"

namespace sluice::engine {

class ModelFile;

// One table of rotary frequencies.
struct RopeTable {
  kernels::RopeStyle style = kernels::RopeStyle::kHalfSplit;
  int32_t rotary_size = 0;  // values of a head that are rotated
  float base = 0.0f;
  float magnitude = 1.0f;                  // of cos and sin (yarn, longrope)
  std::vector<float> inverse_frequencies;  // [rotary_size / 2], scaling and factors applied
};

// Where layers of one model differ.
struct LayerTraits {
  int32_t rope = 0;    // index in ModelConfig::ropes; -1: Q and K are not rotated
  int32_t window = 0;  // positions that a token sees, itself included; 0: all before it
};

// Every fact about a model that the forward pass uses. Read from a file's metadata and compared
// with its tensor shapes; nothing is assumed: a missing or contradictory fact is an error that
// names the key or the tensor. Value; const after FromFile.
struct ModelConfig {
  std::string architecture;  // "llama", "qwen3"
  std::string name;          // general.name, or the file's name
  int32_t num_layers = 0;    // L
  int32_t width = 0;         // E
  int32_t num_heads = 0;     // H
  int32_t num_kv_heads = 0;  // G, divides H
  int32_t head_size = 0;     // D, even: attention.key_length, else E / H
  int32_t ffn_width = 0;     // F, from feed_forward_length and the FFN's tensors
  // V, rows of token_embd.weight. The file's tokenizer has as many tokens, or fewer: then the last
  // rows are padding.
  int32_t vocab_size = 0;
  int32_t context_length = 0;  // positions the model was trained for
  kernels::NormKind norm_kind = kernels::NormKind::kRms;
  float norm_epsilon = 0.0f;
  std::vector<RopeTable> ropes;     // 1, or 2: the second for layers with a window
  std::vector<LayerTraits> layers;  // [L]
  float embedding_scale = 1.0f;     // of the embedding as it enters the residual stream
  float attention_scale = 0.0f;  // 1 / sqrt(D), unless the architecture or the file says otherwise
  float attention_softcap = 0.0f;  // 0: none
  float residual_scale = 1.0f;     // of what each block adds to the residual stream
  float logit_scale = 1.0f;
  float logit_softcap = 0.0f;  // 0: none
  kernels::GateActivation ffn_activation = kernels::GateActivation::kSilu;
  bool has_ffn_gate = true;
  bool has_qkv_bias = false;
  bool has_linear_biases = false;  // of attention output, FFN up and down; else they may have some
  bool has_head_norm = false;      // per-head RMS norm of Q and K
  bool has_post_norms = false;     // of what attention and FFN add to the residual stream
  bool has_fused_qkv = false;      // attn_qkv [(H + 2 G) D, E]: rows of Q, then K, then V
  bool has_fused_gate_up = false;  // ffn_up [2 F, E]: rows of gate, then up
  bool has_long_factors = false;   // rotary factors of long and short contexts
  bool tied_head = false;          // output.weight is absent
  std::vector<std::string> notes;  // what a user should know before the first request

  // INVALID_ARGUMENT or UNIMPLEMENTED with file, key or tensor, what was expected and what came.
  // `bug` plants kFfnFourTimesWidth, kRopeBaseTenThousand or kVocabularyUnpadded in test builds.
  static absl::StatusOr<ModelConfig> FromFile(const ModelFile& file,
                                              kernels::PlantedBug bug = kernels::PlantedBug::kNone);

  // View of ropes[index], whose frequencies must outlive it; a rotation of no values for -1.
  kernels::Rope rope(int index) const;
};

// What Sluice makes of each tensor of a file.
struct TensorRole {
  std::string name;
  std::string role;  // "attention query, layer 0", "unused"
};
struct TensorRoles {
  std::vector<TensorRole> present;   // in file order
  std::vector<std::string> missing;  // needed by the architecture and not in the file
  std::vector<std::string> unused;   // in the file and not used
};
// INVALID_ARGUMENT or UNIMPLEMENTED when the architecture is missing or unknown.
absl::StatusOr<TensorRoles> DescribeTensors(const ModelFile& file);

}  // namespace sluice::engine
