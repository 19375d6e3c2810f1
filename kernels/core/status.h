#pragma once

#include "absl/status/status.h"

// Returns from the calling function with the status of `expr` unless that is ok. As the engine's
// (engine/base/status.h), which kernels do not include.
#define RETURN_IF_ERROR(expr)                                         \
  do {                                                                \
    if (absl::Status status_ = (expr); !status_.ok()) return status_; \
  } while (false)
