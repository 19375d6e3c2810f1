#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/device_runner.h"
#include "engine/engine.h"
#include "engine/model_file/model_file.h"

namespace sluice::engine {

// The canary's logits on the strict path: the first layer and the output head on `ref`, reading the
// file anew. The one costly part of the self-check: on its own, so that it can go on while the
// weights are loaded onto a device. `vocab_size`: of the config that is checked.
absl::StatusOr<std::vector<float>> StrictCanary(const ModelFile& file,
                                                const ModelConfig& reference_config,
                                                int32_t vocab_size, int num_threads);

// The check that runs before a model is called ready: a short canary of token ids goes through the
// first layer and the output head of the loaded model and of the strict path, and their logits are
// compared; and through the whole model. FAILED_PRECONDITION with the figures when the two differ
// by more than the tolerance. A file whose weights give logits that are not finite on the strict
// path, or beyond the first layer, is no fault of ours: the check is then OK, with passed = false
// and a message. `strict`: gives StrictCanary's outcome; called last.
absl::StatusOr<SelfCheck> RunSelfCheck(
    const ModelConfig& reference_config, const DeviceRunner::Options& options,
    std::shared_ptr<const ModelConfig> config, std::shared_ptr<const Weights> weights,
    const std::function<absl::StatusOr<std::vector<float>>()>& strict);

}  // namespace sluice::engine
