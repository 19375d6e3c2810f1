#include "kernels/core/planted_bug.h"

namespace sluice::kernels {

const bool kPlantedBugsBuilt = true;

}  // namespace sluice::kernels
