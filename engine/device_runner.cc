#include "engine/device_runner.h"

#include <utility>

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
  ASSIGN_OR_RETURN(KvCache kv, KvCache::Allocate(*config, options.kv_type, options.num_pages));
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
  return engine::Forward(exec_, *config_, *weights_, batch, kv_.layers(), activations_);
}

absl::Status DeviceRunner::Sample(std::span<const kernels::SampleRow> rows,
                                  std::span<kernels::SampledToken> out, int32_t* previous_tokens) {
  const kernels::MatrixF32 logits = activations_.logits.Rows(num_logit_rows_);
  return kernels::Sample(exec_, {logits.values, logits.rows, logits.cols}, {.rows = rows}, *slots_,
                         out, previous_tokens);
}

}  // namespace sluice::engine
