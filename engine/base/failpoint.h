#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace sluice::engine {

// Seams at which tests make things go wrong, in programs that link sluice_failpoints only
// (docs/reliability.md). Libraries are the same for both: elsewhere a seam is a call of a function
// that returns false, and nothing can be set.
enum class Failpoint : uint8_t {
  kRunner,   // engine thread, when a step has been waited for; fails: as the device does, for good
  kLogits,   // there too; fails: no row's logits are finite
  kMailbox,  // whoever posts to an engine's commands; fails: a submission finds the queue full
  kAccept,   // a listener's thread; fails: there are no descriptors (EMFILE)
  kWrite,    // whoever sends a call's next message or status; fails: the call is torn down
  kRead,     // a model file's next part is to be read; fails: EIO
};

// Whether this pass through `point` is to fail. Sleeps, throws or aborts first if that is set.
// Thread-safe.
bool Fails(Failpoint point);

// False: SetFailpoint always refuses.
extern const bool kFailpointsBuilt;

// Sets what happens at a failpoint from now on: "NAME=ACTION[@FIRST][*TIMES]". NAME: runner,
// logits, mailbox, accept, write, read. ACTION: error, sleep:MILLISECONDS (then goes on), hang
// (until it is set anew), throw (std::bad_alloc), abort, off. FIRST: the pass at which it begins,
// counted from now, from 1; TIMES: passes for which it lasts, all by default. INVALID_ARGUMENT for
// anything else; UNIMPLEMENTED without kFailpointsBuilt. Thread-safe.
absl::Status SetFailpoint(const std::string& setting);

}  // namespace sluice::engine
