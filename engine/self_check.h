#pragma once

#include <memory>

#include "absl/status/statusor.h"

#include "engine/device_runner.h"
#include "engine/engine.h"
#include "engine/gguf/gguf_file.h"

namespace sluice::engine {

// The check that runs before a model is called ready: a short canary of token ids goes through the
// first layer and the output head of the loaded model and of the strict path (`ref`, reading the
// file anew), and their logits are compared; then through the whole model, whose logits must be
// finite. Costs one layer and one head of strict arithmetic. FAILED_PRECONDITION with the figures
// when they differ by more than the tolerance.
absl::StatusOr<SelfCheck> RunSelfCheck(const GgufFile& file, const ModelConfig& reference_config,
                                       const DeviceRunner::Options& options,
                                       std::shared_ptr<const ModelConfig> config,
                                       std::shared_ptr<const Weights> weights);

}  // namespace sluice::engine
