#pragma once

// All ops of a layer, each on inputs of its own, on any backend: arrays go to the device and come
// back. What a token's row holds depends on its sequence and position alone, so that outcomes can
// be compared whatever else is in the step.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "tests/kernels/linear_fixture.h"

namespace sluice::kernels {

struct LayerSpec {
  DType type = DType::kF32;
  int64_t width = 64;        // E
  int64_t num_heads = 4;     // H
  int64_t num_kv_heads = 2;  // G
  int64_t head_size = 16;    // D
  int64_t ffn_width = 96;    // F
  int64_t vocab_size = 77;   // V
  DType kv_type = DType::kF32;
  RopeStyle style = RopeStyle::kHalfSplit;
  NormKind norm = NormKind::kRms;
  bool bias = false;
  bool head_norm = false;
  bool post_norm = false;
  bool gate = true;
  GateActivation activation = GateActivation::kSilu;
  float softcap = 0.0f;  // of scores and of logits
  int32_t window = 0;
  float scale = 1.0f;  // of embeddings and of what is added

  std::string Describe() const;
};

// Weights of all ops as a file stores them, norms and biases; a function of the spec.
struct LayerWeightsOnHost {
  explicit LayerWeightsOnHost(const LayerSpec& spec);

  LayerSpec spec;
  StoredMatrix table, q, k, v, output, gate, up, down, head;
  std::vector<float> norm_weight, norm_bias, post_norm, q_norm, k_norm;
};

// `count` tokens of `sequence` behind `before` others, which were stored by steps before.
struct LayerRow {
  int sequence = 0;
  int before = 0;
  int count = 1;
};

// By op: [T, n] of the step's tokens on the host. "k", "v", "attention" and "ffn" are there only
// when an observer watches.
using LayerOutcomes = std::map<std::string, std::vector<float>>;

LayerOutcomes RunLayer(const LayerWeightsOnHost& weights, const Exec::Options& options,
                       const std::vector<LayerRow>& rows, bool observe);

}  // namespace sluice::kernels
