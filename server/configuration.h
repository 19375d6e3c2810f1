#pragma once

#include "absl/status/status.h"

#include "server/frontend.h"

namespace sluice::server {

// Reads the files that the options name into the parts of the frontend that they set, and leaves
// the frontend's reloader to do so again when they change. INVALID_ARGUMENT naming the flag and
// what is wrong. Before the reloader is started.
absl::Status LoadConfiguration(Frontend* frontend);

}  // namespace sluice::server
