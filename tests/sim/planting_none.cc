#include "tests/sim/planting.h"

namespace sluice::sim {

std::span<const char* const> PlantedBugs() { return {}; }
void Plant(int) {}

}  // namespace sluice::sim
