#include "engine/model_runner.h"

#include <chrono>
#include <utility>

#include "engine/base/status.h"

namespace sluice::engine {
namespace {

kernels::SamplerParams ToSamplerParams(const SlotReset& reset) {
  const SamplingParams& sampling = reset.sampling;
  kernels::SamplerParams params = {.temperature = sampling.temperature,
                                   .top_k = sampling.top_k,
                                   .typical_p = sampling.typical_p,
                                   .top_p = sampling.top_p,
                                   .min_p = sampling.min_p,
                                   .repetition_penalty = sampling.repetition_penalty,
                                   .presence_penalty = sampling.presence_penalty,
                                   .frequency_penalty = sampling.frequency_penalty,
                                   .penalty_last_n = sampling.penalty_last_n,
                                   .seed = sampling.seed,
                                   .sequence_index = static_cast<uint32_t>(reset.sequence_index),
                                   .bias = {},
                                   .min_tokens = reset.min_tokens,
                                   .banned_until_min = reset.banned_until_min};
  for (const auto& [token, bias] : sampling.logit_bias) params.bias.push_back({token, bias});
  return params;
}

RowResult ToRowResult(const kernels::SampledToken& sampled) {
  RowResult row = {.sampled = true,
                   .finite = sampled.finite,
                   .token = {.token = sampled.token, .logprob = sampled.logprob, .top = {}},
                   .scores = {}};
  row.token.top.reserve(sampled.top.size());
  for (const kernels::TokenLogprob& top : sampled.top)
    row.token.top.push_back({top.token, top.logprob});
  return row;
}

}  // namespace

ModelRunner::ModelRunner(std::unique_ptr<DeviceRunner> rank, const Batch::Limits& limits, int depth)
    : batch_(limits), depth_(depth) {
  ranks_.push_back(std::move(rank));
  sampled_.reserve(static_cast<size_t>(limits.max_rows));
}

void ModelRunner::Launch(const StepPlan& plan) {
  if (!ranks_.front()->asynchronous()) return;
  Flight& flight = flights_.emplace_back();
  flight.launched = std::chrono::steady_clock::now();
  flight.status = Enqueue(plan);
  flight.num_samples = batch_.samples().size();
}

StepResult ModelRunner::Wait(const StepPlan& plan) {
  StepResult result;
  if (!ranks_.front()->asynchronous()) {
    const auto begin = std::chrono::steady_clock::now();
    result.status = Run(plan, result.rows);
    result.device_time = std::chrono::steady_clock::now() - begin;
    return result;
  }
  const Flight flight = std::move(flights_.front());
  flights_.pop_front();
  result.status = flight.status;
  sampled_.resize(flight.num_samples);
  if (result.status.ok() && !sampled_.empty()) {
    result.status = ranks_.front()->CollectSample(sampled_);
    const std::optional<double> idle = ranks_.front()->IdleBeforeStep();
    if (result.status.ok() && idle.has_value()) {
      result.idle_before =
          std::chrono::duration_cast<Duration>(std::chrono::duration<double>(*idle));
    }
  }
  // Without tokens there is nothing to wait for: what follows is ordered behind it.
  result.device_time = std::chrono::steady_clock::now() - flight.launched;
  if (result.status.ok()) FillRows(plan, result.rows);
  return result;
}

void ModelRunner::Idle() {
  for (const std::unique_ptr<DeviceRunner>& rank : ranks_) rank->exec().pool().Park();
}

absl::Status ModelRunner::ResetSlots(const StepPlan& plan) {
  for (const SlotReset& reset : plan.slot_resets) {
    const kernels::SamplerParams params = ToSamplerParams(reset);
    for (const std::unique_ptr<DeviceRunner>& rank : ranks_) {
      RETURN_IF_ERROR(rank->slots().Reset(reset.slot.value, params, reset.prompt, reset.output));
    }
  }
  return absl::OkStatus();
}

absl::Status ModelRunner::CopyPages(const StepPlan& plan) {
  if (plan.page_copies.empty()) return absl::OkStatus();
  std::vector<int32_t> from, to;
  for (const PageCopy& copy : plan.page_copies) {
    from.push_back(copy.from.value);
    to.push_back(copy.to.value);
  }
  for (const std::unique_ptr<DeviceRunner>& rank : ranks_) {
    RETURN_IF_ERROR(rank->CopyPages(from, to));
  }
  return absl::OkStatus();
}

void ModelRunner::Remember(const StepPlan& plan) {
  if (depth_ == 0) return;
  if (!previous_) previous_.emplace();
  previous_->rows = plan.rows;
}

void ModelRunner::FillRows(const StepPlan& plan, std::vector<RowResult>& rows) const {
  rows.reserve(plan.rows.size());
  size_t next = 0;
  for (const StepRow& row : plan.rows) {
    std::vector<TokenLogprobs> scores;
    bool finite = true;
    for (int32_t i = 0; row.scoring && i < row.scoring->num_tokens; ++i) {
      RowResult scored = ToRowResult(sampled_[next++]);
      finite = finite && scored.finite;
      scores.push_back(std::move(scored.token));
    }
    RowResult& result = rows.emplace_back();
    if (row.sampling) result = ToRowResult(sampled_[next++]);
    result.finite = result.finite && finite;
    result.scores = std::move(scores);
  }
}

absl::Status ModelRunner::Enqueue(const StepPlan& plan) {
  RETURN_IF_ERROR(ranks_.front()->MarkStep());
  RETURN_IF_ERROR(batch_.Fill(plan, previous_ ? &*previous_ : nullptr));
  RETURN_IF_ERROR(ResetSlots(plan));
  RETURN_IF_ERROR(CopyPages(plan));
  DeviceRunner& rank = *ranks_.front();
  RETURN_IF_ERROR(rank.Forward(batch_.view()));
  if (!batch_.samples().empty()) RETURN_IF_ERROR(rank.LaunchSample(batch_.samples()));
  Remember(plan);
  return absl::OkStatus();
}

absl::Status ModelRunner::Run(const StepPlan& plan, std::vector<RowResult>& rows) {
  RETURN_IF_ERROR(batch_.Fill(plan, previous_ ? &*previous_ : nullptr));
  RETURN_IF_ERROR(ResetSlots(plan));
  RETURN_IF_ERROR(CopyPages(plan));
  DeviceRunner& rank = *ranks_.front();
  RETURN_IF_ERROR(rank.Forward(batch_.view()));
  sampled_.assign(batch_.samples().size(), {});
  if (!sampled_.empty())
    RETURN_IF_ERROR(rank.Sample(batch_.samples(), sampled_, batch_.previous_tokens()));
  FillRows(plan, rows);
  Remember(plan);
  return absl::OkStatus();
}

}  // namespace sluice::engine
