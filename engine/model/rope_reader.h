#pragma once

#include "absl/status/status.h"

#include "engine/model/architecture.h"
#include "engine/model/fact_reader.h"
#include "engine/model/model_config.h"
#include "engine/model_file/model_file.h"

namespace sluice::engine {

// Reads the facts rope.* and the tensors of frequency factors into config.ropes, after the sizes
// and the tensors' traits. Scaling: none, linear (arXiv 2306.15595), yarn (arXiv 2309.00071, with
// the magnitude of cos and sin as Hugging Face computes it), and factors for each frequency
// (Llama 3.1, or longrope, arXiv 2402.13753, of Phi 3). Longrope has two sets of factors, and the
// reference changes from one to the other when a sequence outgrows the original context, the keys
// that it has cached by then notwithstanding; here the context ends there instead. INVALID_ARGUMENT
// for facts that are missing, out of range or contradict each other, UNIMPLEMENTED for other
// scalings. `bug` plants kRopeBaseTenThousand.
absl::Status ReadRopes(const ModelFile& file, const Architecture& architecture, FactReader& facts,
                       ModelConfig& config, kernels::PlantedBug bug);

}  // namespace sluice::engine
