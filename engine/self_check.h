#pragma once

#include <memory>

#include "absl/status/statusor.h"

#include "engine/device_runner.h"
#include "engine/engine.h"
#include "engine/model_file/model_file.h"

namespace sluice::engine {

// The check that runs before a model is called ready: a short canary of token ids goes through the
// first layer and the output head of the loaded model and of the strict path (`ref`, reading the
// file anew), and their logits are compared; and through the whole model. Costs one layer and one
// head of strict arithmetic. FAILED_PRECONDITION with the figures when the two differ by more than
// the tolerance. A file whose weights give logits that are not finite on the strict path, or beyond
// the first layer, is no fault of ours: the check is then OK, with passed = false and a message.
absl::StatusOr<SelfCheck> RunSelfCheck(const ModelFile& file, const ModelConfig& reference_config,
                                       const DeviceRunner::Options& options,
                                       std::shared_ptr<const ModelConfig> config,
                                       std::shared_ptr<const Weights> weights);

}  // namespace sluice::engine
