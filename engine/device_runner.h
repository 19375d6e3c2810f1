#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/batch.h"
#include "engine/kv/kv_cache.h"
#include "engine/model/activations.h"
#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "kernels/ops.h"

namespace sluice::engine {

// One rank of a model on one device: its Exec, its weights, its KV cache, its activations and
// sampler slots, all allocated at creation. Owned by a ModelRunner; engine thread only (one rank
// runs inline on it).
class DeviceRunner {
 public:
  struct Options {
    kernels::Exec::Options exec;
    kernels::DType kv_type = kernels::DType::kF32;
    int64_t num_pages = 0;       // page 0 included
    int64_t max_tokens = 0;      // T of a step
    int64_t max_rows = 0;        // S and R of a step, and sampler slots
    int64_t max_context = 0;     // positions of a sequence
    int64_t max_logit_rows = 0;  // 0: max_rows
    bool lock_memory = false;    // of the KV cache
  };
  static absl::StatusOr<std::unique_ptr<DeviceRunner>> Create(
      const Options& options, std::shared_ptr<const ModelConfig> config,
      std::shared_ptr<const Weights> weights);

  // Logits of the batch's logit rows into logits().
  absl::Status Forward(const kernels::BatchView& batch);
  // Waits for what was launched. The device's error when there is one.
  absl::Status Wait();
  // Copies pages of the KV cache in all layers, before a Forward that reads them.
  absl::Status CopyPages(std::span<const int32_t> from, std::span<const int32_t> to) {
    return kernels::CopyPages(exec_, kv_.layers(), from, to);
  }
  // Samples from logits(); previous_tokens [R] receives the tokens.
  absl::Status Sample(std::span<const kernels::SampleRow> rows,
                      std::span<kernels::SampledToken> out, int32_t* previous_tokens);

  // The two halves of Sample on an asynchronous device; the tokens stay there for the next step.
  absl::Status LaunchSample(std::span<const kernels::SampleRow> rows);
  absl::Status CollectSample(std::span<kernels::SampledToken> out);
  // Marks that a step begins; how long the device waited for the one last collected.
  absl::Status MarkStep() { return kernels::MarkStep(*slots_); }
  std::optional<double> IdleBeforeStep() const { return kernels::IdleBeforeStep(*slots_); }
  // Ops return before they are done.
  bool asynchronous() const { return exec_.backend() == kernels::Backend::kCuda; }

  kernels::SamplerSlots& slots() { return *slots_; }
  kernels::Exec& exec() { return exec_; }
  const kernels::Exec& exec() const { return exec_; }
  // The logits on the host; on CUDA as they were at the last FetchLogits.
  kernels::MatrixF32 logits() const;
  // Waits for the last Forward and, on CUDA, copies its logit rows to the host: for tests and
  // checks. The device's error when there is one.
  absl::Status FetchLogits();
  const KvCache& kv() const { return kv_; }
  const ModelConfig& config() const { return *config_; }

 private:
  DeviceRunner(const Options& options, std::shared_ptr<const ModelConfig> config,
               std::shared_ptr<const Weights> weights, KvCache kv, Activations activations);
  absl::Status Prepare(const Options& options);

  const std::shared_ptr<const ModelConfig> config_;
  const std::shared_ptr<const Weights> weights_;
  kernels::Exec exec_;
  KvCache kv_;
  Activations activations_;
  std::optional<kernels::SamplerSlots> slots_;  // set by Prepare
  int64_t num_logit_rows_ = 0;                  // of the last Forward
  std::vector<float> host_logits_;              // [max_logit_rows, V] of CUDA, from FetchLogits on
};

}  // namespace sluice::engine
