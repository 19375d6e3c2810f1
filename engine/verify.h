#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/engine.h"

namespace sluice::engine {

// Compares the path of a device with another one on the same tokens, layer by layer and operation
// by operation.
struct VerifyOptions {
  EngineOptions engine;
  // What it is compared with: "ref", the strict path, or "cpu", whose arithmetic is 1,000 times
  // closer to the strict one than a GPU's and far faster to compute.
  std::string against = "ref";
  std::string
      text;  // prompt; empty: a built-in text (or fixed token ids for models without a vocabulary)
  std::string kl_file;  // a text file: mean and maximum KL divergence over its positions, and top-1
                        // agreement
  int kl_positions = 4096;  // at most
};

struct VerifyRow {
  std::string op;
  int layer = -1;             // -1 outside the layers
  double relative_error = 0;  // |x - y| / |y|, 2-norms over the op's outcome
  double worst_error = 0;     // largest absolute difference
  double tolerance = 0;       // for relative_error
  bool within = true;
};

struct VerifyReport {
  std::vector<VerifyRow> rows;  // in order of execution
  int64_t positions = 0;
  int64_t top1_equal = 0;
  // Positions where the best tokens differ although the expected one leads by more than `margin`.
  int64_t top1_beyond_margin = 0;
  float margin = 0;  // 0.005 for the CPU, 0.02 for CUDA
  double max_logit_error = 0;
  std::string first_beyond;  // "layer 3 attention"; empty when all are within
  bool passed = false;       // nothing beyond tolerance, no top-1 beyond the margin
  // With kl_file.
  int64_t kl_positions = 0;
  double kl_mean = 0, kl_max = 0;
  int64_t kl_top1_equal = 0;
};

absl::StatusOr<VerifyReport> VerifyModel(const std::string& path, const VerifyOptions& options);

}  // namespace sluice::engine
