#include "engine/device_runner.h"

#include <utility>

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/model/transformer.h"

namespace sluice::engine {

DeviceRunner::DeviceRunner(const Options& options, std::shared_ptr<const ModelConfig> config,
                           std::shared_ptr<const Weights> weights, KvCache kv,
                           Activations activations)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      exec_(options.exec),
      kv_(std::move(kv)),
      activations_(std::move(activations)) {}

absl::StatusOr<std::unique_ptr<DeviceRunner>> DeviceRunner::Create(
    const Options& options, std::shared_ptr<const ModelConfig> config,
    std::shared_ptr<const Weights> weights) {
  const int64_t max_logit_rows =
      options.max_logit_rows > 0 ? options.max_logit_rows : options.max_rows;
  ASSIGN_OR_RETURN(KvCache kv, KvCache::Allocate(*config, options.exec.backend, options.kv_type,
                                                 options.num_pages));
  if (options.lock_memory) RETURN_IF_ERROR(kv.Lock());
  ASSIGN_OR_RETURN(
      Activations activations,
      Activations::Allocate(*config, options.exec.backend, options.max_tokens, max_logit_rows));
  std::unique_ptr<DeviceRunner> runner(new DeviceRunner(
      options, std::move(config), std::move(weights), std::move(kv), std::move(activations)));
  RETURN_IF_ERROR(runner->Prepare(options));
  return runner;
}

absl::Status DeviceRunner::Prepare(const Options& options) {
  RETURN_IF_ERROR(kernels::ReserveWorkspace(
      exec_, {.max_tokens = options.max_tokens,
              .max_logit_rows = activations_.logits.rows,
              .max_rows = options.max_rows,
              .max_pages = (options.max_context + kernels::kPageTokens - 1) / kernels::kPageTokens,
              .width = config_->width,
              .num_heads = config_->num_heads,
              .num_kv_heads = config_->num_kv_heads,
              .head_size = config_->head_size,
              .ffn_width = config_->ffn_width,
              .vocab_size = config_->vocab_size}));
  ASSIGN_OR_RETURN(slots_, kernels::SamplerSlots::Create(exec_, static_cast<int>(options.max_rows),
                                                         config_->vocab_size));
  return absl::OkStatus();
}

absl::Status DeviceRunner::Forward(const kernels::BatchView& batch) {
  num_logit_rows_ = batch.num_logit_rows;
  ASSIGN_OR_RETURN(const kernels::BatchView view, kernels::UploadBatch(exec_, batch));
  return kernels::RunStep(exec_, view, [&] {
    return engine::Forward(exec_, *config_, *weights_, view, kv_.layers(), activations_);
  });
}

kernels::MatrixF32 DeviceRunner::logits() const {
  kernels::MatrixF32 logits = activations_.logits;
  if (exec_.backend() != kernels::Backend::kCuda) return logits;
  SLUICE_CHECK(!host_logits_.empty(), "logits are fetched before they are looked at");
  logits.values = const_cast<float*>(host_logits_.data());
  return logits;
}

absl::Status DeviceRunner::Wait() {
  float logit = 0.0f;
  return kernels::CopyFromBackend(exec_.backend(), &logit, activations_.logits.values,
                                  sizeof(logit));
}

absl::Status DeviceRunner::FetchLogits() {
  if (exec_.backend() != kernels::Backend::kCuda) return absl::OkStatus();
  const kernels::MatrixF32 logits = activations_.logits;
  host_logits_.resize(static_cast<size_t>(logits.rows * logits.cols));
  return kernels::CopyFromBackend(
      exec_.backend(), host_logits_.data(), logits.values,
      static_cast<size_t>(num_logit_rows_ * logits.cols) * sizeof(float));
}

absl::Status DeviceRunner::Sample(std::span<const kernels::SampleRow> rows,
                                  std::span<kernels::SampledToken> out, int32_t* previous_tokens) {
  const kernels::MatrixF32 logits = activations_.logits.Rows(num_logit_rows_);
  return kernels::Sample(exec_, {logits.values, logits.rows, logits.cols}, {.rows = rows}, *slots_,
                         out, previous_tokens);
}

absl::Status DeviceRunner::LaunchSample(std::span<const kernels::SampleRow> rows) {
  const kernels::MatrixF32 logits = activations_.logits.Rows(num_logit_rows_);
  return kernels::LaunchSample(exec_, {logits.values, logits.rows, logits.cols}, {.rows = rows},
                               *slots_);
}

absl::Status DeviceRunner::CollectSample(std::span<kernels::SampledToken> out) {
  return kernels::CollectSample(exec_, *slots_, out);
}

}  // namespace sluice::engine
