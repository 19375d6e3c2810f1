#pragma once

#include "engine/step_plan.h"

namespace sluice::engine {

// Runs planned steps on a device. The one virtual interface between scheduling and computing; tests
// use FakeRunner. Engine thread only.
class StepRunner {
 public:
  virtual ~StepRunner() = default;

  // How many steps may be in flight when the next is planned: 0 on the CPU (a step runs inside
  // Wait), 1 on CUDA.
  virtual int depth() const = 0;
  // Begins `plan`; asynchronous on CUDA, deferred to Wait on the CPU. At most depth() + 1 are in
  // flight.
  virtual void Launch(const StepPlan& plan) = 0;
  // The outcome of the oldest step in flight, which is `plan`.
  virtual StepResult Wait(const StepPlan& plan) = 0;
  // No step is in flight and none is known to follow: threads may sleep.
  virtual void Idle() {}
};

}  // namespace sluice::engine
