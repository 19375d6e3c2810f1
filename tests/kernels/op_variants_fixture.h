#pragma once

// Machines, weights and steps for tests of single ops whose outcome has a formula in double.

#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace sluice::kernels {

inline constexpr double kUlp = 0x1p-23;  // of 1

// The CPU with 1, 2 and 3 threads and every instruction set of this machine; ref last.
std::vector<Exec::Options> Machines();

// Normally distributed around `offset`.
std::vector<float> Random(int64_t count, uint32_t seed, float spread = 1.0f, float offset = 0.0f);

// An F32 weight.
PackedWeight Pack(Backend backend, int64_t rows, int64_t cols, const std::vector<float>& values);
std::vector<float> Diagonal(int64_t n, float value);

// A step of one row of T tokens at positions 11 and on, on a machine of its own, for a model with
// as many tokens in its vocabulary as it is wide. H = G = `heads`, D = E / H.
struct Step {
  Step(const Exec::Options& options, int64_t tokens, int64_t width, int64_t heads = 1,
       int64_t ffn_width = 1);

  Exec exec;
  BatchView batch;
  std::vector<int32_t> ids, positions, logit_tokens, pages, row_begins, page_begins;
};

// What values should be, in double, and by how much each may differ.
struct Expected {
  std::vector<double> values, bounds;
};

// The norm of a row [n].
Expected NormOf(const Norm& norm, const float* row, int64_t n);

}  // namespace sluice::kernels
