#pragma once

// The arithmetic of the linear ops, once for each instruction set. Plain types only: this header is
// included by files compiled for one set, whose inline functions must not be linked into others.

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"

namespace sluice::kernels::cpu {

// Rows of an Activation as the products read them. `quants` null when cols is no multiple of 32.
struct ActivationRows {
  int64_t cols = 0;                 // K
  const float* values = nullptr;    // [rows, K]
  const int16_t* quants = nullptr;  // [rows, K]
  const float* scales = nullptr;    // [rows, K / 32]
  const float* sums = nullptr;      // [rows, K / 32]
};

struct PanelProduct {
  DType type = DType::kF32;
  const std::byte* panels = nullptr;  // the first of num_panels panels of 16 rows
  int64_t panel_bytes = 0;
  int64_t num_panels = 0;
  ActivationRows input;
  int64_t num_tokens = 0;
  float* out = nullptr;    // [num_tokens, >= 16 num_panels], 16 lanes written for every panel
  int64_t out_stride = 0;  // floats from token to token
};

// The same bits from every instruction set. Bodies: panel_kernels.h (product), row_kernels.h.
struct LinearKernels {
  // The canonical product of the weight's type, the same bits for every num_tokens.
  void (*product)(const PanelProduct& args);
  // out = x / sqrt(mean(x^2) + epsilon) * weight, n values; out may be x.
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t n, float* out);
  // out = (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias, n values; bias may be null, out
  // may be x.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float epsilon,
                     int64_t n, float* out);
  // See activation_kernels.h.
  void (*quantize)(const float* values, int64_t cols, int16_t* quants, float* scales, float* sums);
  // out = act(gate) * up, n values; act is SiLU or, when gelu, the tanh form of GELU.
  void (*gate_up)(const float* gate, const float* up, int64_t n, bool gelu, float* out);
  // out = act(x), n values.
  void (*activate)(const float* x, int64_t n, bool gelu, float* out);
  // Rotates the first 2 * half values of a head in place; cosines and sines [half].
  void (*rotate)(const float* cosines, const float* sines, int64_t half, bool interleaved,
                 float* head);
  // x += y.
  void (*add)(const float* y, int64_t n, float* x);
  // x *= factor.
  void (*scale)(float factor, int64_t n, float* x);
  // x = softcap * tanh(x / softcap); NaN for x that is not finite.
  void (*softcap)(float softcap, int64_t n, float* x);
  // Round to nearest even, beyond 65504 infinite.
  void (*to_f16)(const float* x, int64_t n, uint16_t* out);
};

extern const LinearKernels kLinearAvx2;
extern const LinearKernels kLinearAvx512;

}  // namespace sluice::kernels::cpu
