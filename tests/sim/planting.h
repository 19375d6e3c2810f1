#pragma once

#include <span>

namespace sluice::sim {

// Bugs planted on purpose, which the simulation must find. `sim_planted` is built from copies of
// the engine's sources into which plant.py has put those of planted_bugs.txt, each behind a
// condition; `sim`, like every other program, has none.
std::span<const char* const> PlantedBugs();
// Bug number `bug`, counted from 1, is there from now on; 0: none.
void Plant(int bug);

}  // namespace sluice::sim
