#pragma once

#include "absl/base/thread_annotations.h"

namespace sluice::engine {

// A capability that stands for "runs on the engine's thread": the loop acquires it once, and
// members marked ABSL_GUARDED_BY(role) are then reachable there only. Costs nothing at run time;
// checked by clang's -Wthread-safety.
class ABSL_LOCKABLE ThreadRole {
 public:
  void Acquire() ABSL_EXCLUSIVE_LOCK_FUNCTION() {}
  void Release() ABSL_UNLOCK_FUNCTION() {}
};

class ABSL_SCOPED_LOCKABLE ThreadRoleScope {
 public:
  explicit ThreadRoleScope(ThreadRole& role) ABSL_EXCLUSIVE_LOCK_FUNCTION(role) : role_(role) {
    role_.Acquire();
  }
  ~ThreadRoleScope() ABSL_UNLOCK_FUNCTION() { role_.Release(); }

 private:
  ThreadRole& role_;
};

}  // namespace sluice::engine
