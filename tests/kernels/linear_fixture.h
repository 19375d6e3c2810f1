#pragma once

// Runs every linear op once, each on random inputs of its own, and keeps the outcomes; plus the
// bounds within which two honest implementations may differ.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace sluice::kernels {

inline constexpr DType kAllTypes[] = {DType::kF32,  DType::kF16,   DType::kBF16, DType::kQ8_0,
                                      DType::kQ4_0, DType::kQ4_1,  DType::kQ5_0, DType::kQ5_1,
                                      DType::kQ2_K, DType::kQ3_K,  DType::kQ4_K, DType::kQ5_K,
                                      DType::kQ6_K, DType::kIQ4_NL};

struct LinearSpec {
  DType type = DType::kF32;
  // Types of k, v and up where they differ from `type`, as in files of mixed types.
  std::optional<DType> k_type, v_type, up_type;
  int64_t width = 32;        // E
  int64_t num_heads = 2;     // H
  int64_t num_kv_heads = 1;  // G
  int64_t head_size = 32;    // D
  int64_t ffn_width = 64;    // F
  int64_t vocab_size = 40;   // V
  RopeStyle style = RopeStyle::kInterleaved;
  int64_t rotary_size = 32;
  bool bias = false;
  bool head_norm = false;
  DType kv_type = DType::kF32;
  GateActivation activation = GateActivation::kSilu;
  // Tokens of each row; the sum is T.
  std::vector<int32_t> rows = {1};
  uint32_t seed = 1;

  int64_t num_tokens() const;
  std::string Describe() const;
  // Widens E and H until every matrix has whole blocks of the type in its rows.
  void FitBlocks();
};

// Where a type's f16 scales stand in a block: what quants (and sub-scales) are multiplied with, and
// what the minimum is, if there is one.
struct ScalePlace {
  int scale = 0;
  int minimum = -1;
};
ScalePlace ScalePlaceOf(DType type);

// A weight as a file stores it, its values, and the sum of magnitudes that its product adds up.
struct StoredMatrix {
  DType type = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<std::byte> stored;
  std::vector<float> values;      // [rows, cols]
  std::vector<float> magnitudes;  // [rows, cols], |d q| + |m| where the type has a minimum m
  std::vector<float> bias;        // [rows] or empty

  static StoredMatrix Random(DType type, int64_t rows, int64_t cols, bool bias, uint32_t seed);
  // Sets `values` and `magnitudes` by `stored`.
  void Dequantize();
  PackedWeight Pack(Backend backend) const;
};

// All inputs, the same for every backend.
struct LinearInputs {
  explicit LinearInputs(const LinearSpec& spec);

  LinearSpec spec;
  StoredMatrix table, q, k, v, output, gate, up, head;
  std::vector<float> norm_weight, q_norm, k_norm;  // [E], [D], [D]
  std::vector<float> residual;                     // [T, E]
  std::vector<float> attention;                    // [T, H * D]
  std::vector<float> inverse_frequencies;
  std::vector<int32_t> tokens, positions, row_begins, page_begins, pages, logit_tokens;
  int64_t num_pages = 0;
};

struct LinearOutcome {
  std::vector<float> embedding;             // [T, E]
  std::vector<float> q;                     // [T, H * D]
  std::vector<float> k, v;                  // [T, G * D], read back from the pages
  std::vector<float> residual;              // [T, E] after MatMulAddResidual
  std::vector<float> ffn;                   // [T, F]
  std::vector<int16_t> ffn_quants;          // [T, F], cpu with F a multiple of 32
  std::vector<float> ffn_scales, ffn_sums;  // [T, F / 32]
  std::vector<float> logits;                // [T, V]
};

LinearOutcome RunLinearOps(const LinearInputs& inputs, const Exec::Options& options);

// x / sqrt(mean(x^2) + epsilon) * weight in double, rounded to float. x [T, E].
std::vector<float> NormedRows(const LinearInputs& inputs);

// input [T, K] times matrix: outcome (bias included) in double, and the largest difference that
// rounding can make between two implementations: activations in int16 blocks (when the type is
// quantised), then a chain of K roundings.
struct BoundedProduct {
  std::vector<double> values;  // [T, N]
  std::vector<double> bounds;  // [T, N]
};
BoundedProduct ProductWithBounds(const StoredMatrix& matrix, const std::vector<float>& input);

inline constexpr float kTestEpsilon = 1e-5f;  // of the norms

}  // namespace sluice::kernels
