#include "engine/base/failpoint.h"

#include "engine/base/status.h"

namespace sluice::engine {

// Weak, so that failpoints.cc takes their place in the programs that link it.
[[gnu::weak]] extern const bool kFailpointsBuilt = false;

[[gnu::weak]] bool Fails(Failpoint) { return false; }

[[gnu::weak]] absl::Status SetFailpoint(const std::string&) {
  return Unimplemented("this program was built without failpoints");
}

}  // namespace sluice::engine
