#pragma once

namespace sluice::engine {

// Positions that a page of the KV pool holds.
inline constexpr int kPageTokens = 16;

constexpr int PagesFor(int positions) { return (positions + kPageTokens - 1) / kPageTokens; }

}  // namespace sluice::engine
