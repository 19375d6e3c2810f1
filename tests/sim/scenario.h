#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "engine/scheduler_limits.h"
#include "server/admission.h"

namespace sluice::sim {

// One thing that happens from outside. What exactly follows from `random` alone, so that taking
// other events away does not change it.
struct Event {
  enum class Kind : uint8_t {
    kSubmit,     // a Generate call
    kCancel,     // of call `target`
    kStopRead,   // the reader of call `target` reads no more
    kRead,       // and again
    kReadAll,    // all readers read
    kJump,       // the clock goes on by up to hours at once
    kHang,       // the next step takes that long
    kFlush,      // the prefix cache forgets
    kMemory,     // memory is short, or is not any more
    kSetPolicy,  // the other policy of tenants holds from now on
    kDrain,
    kShutdown,
  };
  Kind kind = Kind::kSubmit;
  uint32_t id = 0;         // its place in the whole list of its seed
  uint32_t target = 0;     // the id of a kSubmit
  engine::Duration gap{};  // before it
  uint64_t random = 0;
};
const char* Name(Event::Kind kind);

// Kinds of trouble. A seed has each of them or not (swarm testing: Groce et al. 2012).
struct Features {
  bool cancels = false;
  bool stop_reads = false;
  bool deadlines = false;
  bool queue_timeouts = false;
  bool max_times = false;
  bool nonfinite = false;
  bool step_failure = false;
  bool jumps = false;
  bool hangs = false;
  bool drain = false;
  bool shutdown = false;
  bool flushes = false;
  bool tenants = false;
  bool limits = false;  // of tenants, and on what waits
  bool priorities = false;
  bool siblings = false;  // n > 1
  bool shared_prompts = false;
  bool salts = false;
  bool bypasses = false;
  bool scores = false;  // of prompts
  bool progress = false;
  bool text = false;
  bool intervals = false;   // several tokens a chunk
  bool impossible = false;  // calls that must be refused
  bool resumes = false;     // calls that go on where another stream broke
  bool late_reader = false;
};

// kGrowing: short prompts and long replies in a pool that they outgrow.
enum class Lengths : uint8_t { kZipf, kMaximal, kPool, kTiny, kGrowing };

// What one seed stands for: the engine, its tenants, and what happens.
struct Scenario {
  uint64_t seed = 0;
  Features features;
  engine::SchedulerLimits limits;
  Lengths lengths = Lengths::kZipf;
  engine::Duration step_time{};
  std::optional<uint64_t> fail_at;  // the step that fails, counted from 1
  int num_tenants = 1;
  server::Admission::Bounds bounds;
  std::string policies[2];  // JSON
  int reader_tokens = 0;    // that wait for a reader before it is paused
  engine::Duration stall_timeout{};
  int mailbox_lanes = 1;
  // The accounts of pages are looked through after every turn unless the pool is large, not after
  // some turns only.
  bool thorough = false;
  std::vector<Event> events;

  // The first `num_events` events of `seed`, at most.
  static Scenario Make(uint64_t seed, size_t num_events);
};

}  // namespace sluice::sim
