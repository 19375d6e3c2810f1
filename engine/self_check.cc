#include "engine/self_check.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/canary.h"
#include "engine/scheduler_limits.h"

namespace sluice::engine {
namespace {

constexpr int kCanaryTokens = 6;
constexpr int kCanaryLayers = 1;
// int16 activations and an f16 KV cache move the logits of one layer by less than 1e-3 of their
// norm; a wrong stride, head or scale moves them by their size.
constexpr double kCanaryTolerance = 0.002;
// f16 operands on CUDA move them by up to 1e-3.
constexpr double kCudaCanaryTolerance = 0.005;

// A runner just large enough for the canary.
absl::StatusOr<std::unique_ptr<DeviceRunner>> MakeProbe(DeviceRunner::Options options,
                                                        ModelConfig config,
                                                        std::shared_ptr<const Weights> weights) {
  options.num_pages = 2;
  options.max_tokens = kCanaryTokens;
  options.max_rows = 1;
  options.max_context = kernels::kPageTokens;
  options.max_logit_rows = kCanaryTokens;
  return DeviceRunner::Create(options, std::make_shared<const ModelConfig>(std::move(config)),
                              std::move(weights));
}

ModelConfig FirstLayers(ModelConfig config) {
  config.num_layers = std::min(config.num_layers, kCanaryLayers);
  return config;
}

absl::StatusOr<std::vector<float>> LastLogits(DeviceRunner& runner,
                                              std::span<const TokenId> tokens) {
  RETURN_IF_ERROR(ForwardProbe(runner).Append(tokens, /*all_logits=*/false));
  const std::span<const float> row = runner.logits().Rows(1).flat();
  return std::vector<float>(row.begin(), row.end());
}

bool AllFinite(std::span<const float> row) {
  return std::all_of(row.begin(), row.end(), [](float logit) { return std::isfinite(logit); });
}

void Compare(std::span<const float> actual, std::span<const float> expected, SelfCheck& check) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double delta = double{actual[i]} - expected[i];
    difference += delta * delta;
    norm += double{expected[i]} * expected[i];
  }
  check.max_relative_error = norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
  const auto best = [](std::span<const float> row) {
    return std::max_element(row.begin(), row.end()) - row.begin();
  };
  check.top1_equal = best(actual) == best(expected);
}

}  // namespace

absl::StatusOr<std::vector<float>> StrictCanary(const ModelFile& file,
                                                const ModelConfig& reference_config,
                                                int32_t vocab_size, int num_threads) {
  const std::vector<TokenId> tokens =
      CanaryTokens(std::min(vocab_size, reference_config.vocab_size), kCanaryTokens);
  const ModelConfig config = FirstLayers(reference_config);
  ASSIGN_OR_RETURN(std::shared_ptr<const Weights> weights,
                   Weights::Load(file, config,
                                 {.backend = kernels::Backend::kRef,
                                  .num_threads = num_threads,
                                  .compute_digest = false,
                                  .progress = {}}));
  DeviceRunner::Options options;
  options.exec = {.backend = kernels::Backend::kRef, .num_threads = num_threads};
  options.kv_type = kernels::DType::kF32;
  ASSIGN_OR_RETURN(std::unique_ptr<DeviceRunner> first,
                   MakeProbe(options, config, std::move(weights)));
  return LastLogits(*first, tokens);
}

absl::StatusOr<SelfCheck> RunSelfCheck(
    const ModelConfig& reference_config, const DeviceRunner::Options& options,
    std::shared_ptr<const ModelConfig> config, std::shared_ptr<const Weights> weights,
    const std::function<absl::StatusOr<std::vector<float>>()>& strict) {
  const auto begin = std::chrono::steady_clock::now();
  const std::vector<TokenId> tokens =
      CanaryTokens(std::min(config->vocab_size, reference_config.vocab_size), kCanaryTokens);
  const double tolerance =
      options.exec.backend == kernels::Backend::kCuda ? kCudaCanaryTolerance : kCanaryTolerance;
  SelfCheck check;
  check.tolerance = tolerance;
  std::vector<float> whole_model, actual;
  {
    ASSIGN_OR_RETURN(std::unique_ptr<DeviceRunner> whole, MakeProbe(options, *config, weights));
    const auto forward = std::chrono::steady_clock::now();
    ASSIGN_OR_RETURN(whole_model, LastLogits(*whole, tokens));
    check.seconds_per_token =
        Seconds(std::chrono::steady_clock::now() - forward) / static_cast<double>(tokens.size());
  }
  {
    ASSIGN_OR_RETURN(std::unique_ptr<DeviceRunner> first,
                     MakeProbe(options, FirstLayers(*config), weights));
    ASSIGN_OR_RETURN(actual, LastLogits(*first, tokens));
  }
  ASSIGN_OR_RETURN(const std::vector<float> expected, strict());
  const size_t common = std::min(actual.size(), expected.size());
  Compare(std::span(actual).first(common), std::span(expected).first(common), check);
  check.seconds = Seconds(std::chrono::steady_clock::now() - begin);
  // The strict path's cache is f32, so that it does not overflow where an f16 one does.
  const std::string hint = options.kv_type == kernels::DType::kF16 ? kF16KvHint : "";
  if (!AllFinite(expected) || (AllFinite(actual) && !AllFinite(whole_model))) {
    // The file's own fault: it loads, and what it cannot answer ends with an error of its own.
    check.message = "self-check: the model's own weights give logits that are not finite";
    if (AllFinite(expected)) check.message += hint;
    return check;
  }
  if (!AllFinite(actual)) {
    return FailedPrecondition("self-check: logits are not finite where the strict path's are" +
                              hint);
  }
  check.passed = actual.size() == expected.size() && check.max_relative_error <= tolerance;
  char line[160];
  std::snprintf(line, sizeof line,
                "self-check: relative error %.2e against the strict path (at most %.0e), top-1 %s",
                check.max_relative_error, tolerance, check.top1_equal ? "equal" : "not equal");
  check.message = line;
  if (!check.passed) return FailedPrecondition(check.message);
  return check;
}

}  // namespace sluice::engine
