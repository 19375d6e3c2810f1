// Sample of kernels/ops.h on a device.

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/workspace.h"

namespace sluice::kernels::cuda {

absl::StatusOr<std::shared_ptr<DeviceSampler>> MakeSampler(Exec& exec, int num_slots,
                                                           int64_t vocab_size) {
  const WorkspaceShape& shape = exec.workspace_shape();
  auto sampler = DeviceSampler::Create({.num_slots = num_slots,
                                        .vocab_size = vocab_size,
                                        .max_rows = static_cast<int>(shape.max_logit_rows),
                                        .max_context = shape.max_pages * kPageTokens},
                                       WorkspaceOf(exec).stream);
  if (!sampler.ok()) return sampler.status();
  return std::shared_ptr<DeviceSampler>(*std::move(sampler));
}

absl::Status ResetSlot(DeviceSampler& sampler, int slot, const SamplerParams& params,
                       std::span<const int32_t> prompt, std::span<const int32_t> output) {
  return sampler.Reset(slot, params, prompt, output);
}

absl::Status LaunchSample(Exec& exec, DeviceSampler& sampler, ConstMatrixF32 logits,
                          const SampleArgs& args) {
  return sampler.Launch({.values = logits.values, .num_rows = logits.rows, .stride = logits.cols},
                        args, WorkspaceOf(exec).previous_tokens);
}

absl::Status CollectSample(DeviceSampler& sampler, std::span<SampledToken> out) {
  return sampler.Collect(out);
}

absl::Status MarkStep(DeviceSampler& sampler) { return sampler.MarkStep(); }
std::optional<double> IdleBeforeStep(const DeviceSampler& sampler) {
  return sampler.idle_seconds();
}

}  // namespace sluice::kernels::cuda
