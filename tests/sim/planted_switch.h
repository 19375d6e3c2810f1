#pragma once

// Included by the copies that plant.py makes, by nothing else.

namespace sluice::sim {

inline int planted_bug = 0;
inline bool IsPlanted(int bug) { return planted_bug == bug; }

}  // namespace sluice::sim
