#pragma once

#include "absl/status/status.h"

#include "engine/model/architecture.h"
#include "engine/model/fact_reader.h"
#include "engine/model/model_config.h"

namespace sluice::engine {

// Reads what related models do differently into `config`, after the sizes and the ropes: norms,
// scales, softcaps, and which layers have a window or a rotation. A trait that the architecture is
// not known with is UNIMPLEMENTED, unless its value changes nothing.
absl::Status ReadTraits(const Architecture& architecture, FactReader& facts, ModelConfig& config);

}  // namespace sluice::engine
