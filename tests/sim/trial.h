#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tests/sim/scenario.h"
#include "tests/sim/simulation.h"

namespace sluice::sim {

// Simulations run in a process of their own: a broken invariant may end it, or never come back.

// When a series of seeds ends; the first that is reached.
struct Budget {
  std::optional<double> processor_seconds{};
  std::optional<uint64_t> events{};  // Simulation::Count::events
  std::optional<uint64_t> seeds{};
};

struct Series {
  uint64_t seeds = 0;  // begun
  double processor_seconds = 0;
  Simulation::Count count;
  // The first seed that fails, and how.
  std::optional<uint64_t> failing_seed;
  std::string failure;
};
// Runs seeds from `first_seed` on, with planted bug `planted` (0: none).
Series RunSeries(uint64_t first_seed, const Budget& budget, int planted);

// How `scenario` fails; nothing when it does not. `quiet`: what the process says is lost.
std::optional<std::string> RunOne(const Scenario& scenario, int planted, bool quiet);

// Fewer events of `scenario`, which fails, with which it still does: parts are left out for as long
// as that works, halves first (Zeller and Hildebrandt 2002). Lets about `seconds` pass at most.
Scenario Shrink(const Scenario& scenario, int planted, double seconds);

// Ids of events as "1,4-7", and back; nothing when `text` is none of that.
std::string FormatIds(const std::vector<Event>& events);
std::optional<std::vector<uint32_t>> ParseIds(const std::string& text);

}  // namespace sluice::sim
