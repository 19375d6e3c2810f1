#pragma once

#include <cstdio>
#include <cstdlib>

namespace sluice::engine {

[[noreturn]] inline void CheckFailed(const char* file, int line, const char* condition,
                                     const char* message) {
  std::fprintf(stderr, "%s:%d: check failed: %s: %s\n", file, line, condition, message);
  std::abort();
}

}  // namespace sluice::engine

// Ends the process with file, line and message: for invariants of our own code only, never for
// anything that a user, a file or a device can cause.
#define SLUICE_CHECK(condition, message) \
  ((condition) ? void(0) : ::sluice::engine::CheckFailed(__FILE__, __LINE__, #condition, message))
