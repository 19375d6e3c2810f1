#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "engine/batch.h"
#include "engine/device_runner.h"
#include "engine/step_runner.h"

namespace sluice::engine {

// Runs step plans on a model: one DeviceRunner a rank (one rank today), the step's flat batch, and
// the sampler slots. Engine thread only. On the CPU a launched step is computed inside Wait, on the
// calling thread and the Exec's workers; on CUDA Launch enqueues it and Wait collects its tokens.
class ModelRunner final : public StepRunner {
 public:
  // `depth` as StepRunner::depth: 0 for serving on the CPU; tests also run 1.
  ModelRunner(std::unique_ptr<DeviceRunner> rank, const Batch::Limits& limits, int depth);

  int depth() const override { return depth_; }
  void Launch(const StepPlan& plan) override;
  StepResult Wait(const StepPlan& plan) override;
  void Idle() override;

 private:
  absl::Status Run(const StepPlan& plan, std::vector<RowResult>& rows);
  absl::Status Enqueue(const StepPlan& plan);
  absl::Status ResetSlots(const StepPlan& plan);
  absl::Status CopyPages(const StepPlan& plan);
  void Remember(const StepPlan& plan);
  void FillRows(const StepPlan& plan, std::vector<RowResult>& rows) const;

  std::vector<std::unique_ptr<DeviceRunner>> ranks_;
  Batch batch_;
  const int depth_;
  std::vector<kernels::SampledToken> sampled_;
  // Launched steps, oldest first: how the launch went, and how many tokens it samples.
  struct Flight {
    absl::Status status;
    size_t num_samples = 0;
    std::chrono::steady_clock::time_point launched;
  };
  std::deque<Flight> flights_;
  std::optional<StepPlan>
      previous_;  // rows of the last step that ran: what FromPrevious inputs name
};

}  // namespace sluice::engine
