#include "kernels/core/planted_bug.h"

namespace sluice::kernels {

// Weak, so that planted_bugs.cc takes its place in the programs that link it.
[[gnu::weak]] extern const bool kPlantedBugsBuilt = false;

}  // namespace sluice::kernels
