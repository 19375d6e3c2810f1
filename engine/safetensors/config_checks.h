#pragma once

#include <cstdint>

#include "absl/status/status.h"

#include "engine/safetensors/config_reader.h"
#include "engine/safetensors/model_family.h"

namespace sluice::engine {

// The keys of config.json that no fact follows from: those that may have one value only, those
// that change nothing, and last of all those that nobody asked for.
//
// UNIMPLEMENTED naming the key for a trait that Sluice has no code for and for a key that it does
// not know, INVALID_ARGUMENT for a value that makes no sense.
absl::Status CheckOtherTraits(const ModelFamily& family, int64_t num_layers, ConfigReader& config);

}  // namespace sluice::engine
