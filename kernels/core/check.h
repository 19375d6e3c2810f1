#pragma once

#include <cstdio>
#include <cstdlib>

namespace sluice::kernels {

// Ends the process with file, line and message: for invariants of our own code only, never for
// anything that a user, a file or a device can cause.
[[noreturn]] inline void CheckFailed(const char* file, int line, const char* condition,
                                     const char* message) {
  std::fprintf(stderr, "%s:%d: check failed: %s: %s\n", file, line, condition, message);
  std::abort();
}

}  // namespace sluice::kernels

#define SLUICE_KERNEL_CHECK(condition, message) \
  ((condition) ? void(0) : ::sluice::kernels::CheckFailed(__FILE__, __LINE__, #condition, message))
