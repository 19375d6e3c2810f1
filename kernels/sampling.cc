// Sample and its slots: shapes are checked and the backend is chosen here.

#include <string>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/core/sampler_slots.h"
#include "kernels/core/status.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/ops.h"
#include "kernels/ref/ref_ops.h"

namespace sluice::kernels {
namespace {

absl::Status Invalid(const std::string& message) {
  return absl::InvalidArgumentError("Sample: " + message);
}

absl::Status CheckRows(ConstMatrixF32 logits, const SampleArgs& args) {
  for (const SampleRow& row : args.rows) {
    if (row.logit_row < 0 || row.logit_row >= logits.rows) {
      return Invalid("expected a logit row below " + std::to_string(logits.rows) + ", got " +
                     std::to_string(row.logit_row));
    }
    if (row.forced_token >= logits.cols) {
      return Invalid("expected a forced token below " + std::to_string(logits.cols) + ", got " +
                     std::to_string(row.forced_token));
    }
    if (row.num_top > kMaxTopLogprobs) {
      return Invalid("expected at most " + std::to_string(kMaxTopLogprobs) +
                     " log probabilities a token, got " + std::to_string(row.num_top));
    }
    if (row.mask_row >= 0 && args.mask == nullptr) {
      return Invalid("a row names mask row " + std::to_string(row.mask_row) +
                     ", but there is no mask");
    }
  }
  return absl::OkStatus();
}

constexpr int kPlantedFaultAt = 20;
// True from the call on that PlantedBug::kDeviceFault wants to fail.
bool FaultIsDue(const Exec& exec, SamplerSlots& slots) {
  return exec.planted(PlantedBug::kDeviceFault) && ++slots.table().num_samples >= kPlantedFaultAt;
}

}  // namespace

SamplerSlots::SamplerSlots(std::unique_ptr<Table> table) : table_(std::move(table)) {}
SamplerSlots::SamplerSlots(SamplerSlots&&) noexcept = default;
SamplerSlots& SamplerSlots::operator=(SamplerSlots&&) noexcept = default;
SamplerSlots::~SamplerSlots() = default;

absl::StatusOr<SamplerSlots> SamplerSlots::Create(Exec& exec, int num_slots, int64_t vocab_size) {
  if (num_slots < 1 || vocab_size < 1) {
    return absl::InvalidArgumentError(
        "sampler slots: expected at least one slot and one token, got " +
        std::to_string(num_slots) + " slots and a vocabulary of " + std::to_string(vocab_size));
  }
  auto table = std::make_unique<Table>();
  table->vocab_size = vocab_size;
  if (exec.backend() == Backend::kCuda) {
    auto device = cuda::MakeSampler(exec, num_slots, vocab_size);
    if (!device.ok()) return device.status();
    table->device = *std::move(device);
  } else {
    table->slots.resize(static_cast<size_t>(num_slots));
  }
  return SamplerSlots(std::move(table));
}

absl::Status SamplerSlots::Reset(int slot, const SamplerParams& params,
                                 std::span<const int32_t> prompt, std::span<const int32_t> output) {
  if (table_->device != nullptr) {
    return cuda::ResetSlot(*table_->device, slot, params, prompt, output);
  }
  SLUICE_KERNEL_CHECK(slot >= 0 && static_cast<size_t>(slot) < table_->slots.size(),
                      "the slot exists");
  table_->slots[static_cast<size_t>(slot)].Reset(params, prompt, output, table_->vocab_size);
  return absl::OkStatus();
}

absl::Status Sample(Exec& exec, ConstMatrixF32 logits, const SampleArgs& args, SamplerSlots& slots,
                    std::span<SampledToken> out, int32_t* previous_tokens) {
  if (exec.workspace() == nullptr) {
    return absl::FailedPreconditionError("Sample: ReserveWorkspace must come first");
  }
  if (out.size() != args.rows.size()) {
    return Invalid("out: expected " + std::to_string(args.rows.size()) + " entries, got " +
                   std::to_string(out.size()));
  }
  if (exec.backend() == Backend::kCuda) {
    RETURN_IF_ERROR(LaunchSample(exec, logits, args, slots));
    return CollectSample(exec, slots, out);
  }
  RETURN_IF_ERROR(CheckRows(logits, args));
  if (FaultIsDue(exec, slots)) return absl::InternalError("a fault was planted");
  if (exec.backend() == Backend::kCpu) {
    cpu::Sample(exec, logits, args, slots.table(), out);
  } else {
    ref::Sample(exec, logits, args, slots.table(), out);
  }
  if (previous_tokens == nullptr) return absl::OkStatus();
  for (size_t i = 0; i < args.rows.size(); ++i) {
    // A row without a token ends; what was launched ahead for it needs an id all the same.
    previous_tokens[args.rows[i].logit_row] = out[i].finite ? out[i].token : 0;
  }
  return absl::OkStatus();
}

absl::Status LaunchSample(Exec& exec, ConstMatrixF32 logits, const SampleArgs& args,
                          SamplerSlots& slots) {
  SLUICE_KERNEL_CHECK(exec.backend() == Backend::kCuda, "host backends sample in Sample");
  RETURN_IF_ERROR(CheckRows(logits, args));
  if (FaultIsDue(exec, slots)) RETURN_IF_ERROR(cuda::PlantFault(exec));
  return cuda::LaunchSample(exec, *slots.table().device, logits, args);
}

absl::Status CollectSample(Exec& exec, SamplerSlots& slots, std::span<SampledToken> out) {
  SLUICE_KERNEL_CHECK(exec.backend() == Backend::kCuda, "host backends sample in Sample");
  return cuda::CollectSample(*slots.table().device, out);
}

absl::Status MarkStep(SamplerSlots& slots) {
  const auto& device = slots.table().device;
  return device == nullptr ? absl::OkStatus() : cuda::MarkStep(*device);
}

std::optional<double> IdleBeforeStep(const SamplerSlots& slots) {
  const auto& device = slots.table().device;
  return device == nullptr ? std::nullopt : cuda::IdleBeforeStep(*device);
}

}  // namespace sluice::kernels
