#pragma once

namespace sluice::cli {

// "0.1.0+1a2b3c4d5e6f": version and commit, the `build` of every reply's provenance.
extern const char* const kBuild;

}  // namespace sluice::cli
