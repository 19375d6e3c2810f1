#pragma once

#include "absl/status/statusor.h"

#include "engine/chat/limits.h"
#include "engine/chat/value.h"

namespace sluice::engine::chat {

// `format % values` of Python: %s %r %d %i %x %f %e %g and %%, with flags, width and precision.
// `values`: a tuple, a dict for %(name)s, or the one value.
absl::StatusOr<MarkedText> FormatPercent(const MarkedText& format, const Value& values,
                                         Budget& budget);

}  // namespace sluice::engine::chat
