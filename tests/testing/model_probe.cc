#include "tests/testing/model_probe.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "engine/canary.h"
#include "engine/model_file/model_file.h"
#include "engine/model_runner.h"

namespace sluice::testing {
namespace {

template <typename T>
T ValueOrAbort(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "%s\n", value.status().ToString().c_str());
    std::abort();
  }
  return *std::move(value);
}

}  // namespace

std::unique_ptr<engine::DeviceRunner> OpenProbe(const std::string& path,
                                                const ProbeOptions& options) {
  const auto file = ValueOrAbort(engine::ModelFile::Open(path));
  engine::ModelConfig facts = ValueOrAbort(engine::ModelConfig::FromFile(*file));
  if (options.change_config) options.change_config(facts);
  auto config = std::make_shared<const engine::ModelConfig>(std::move(facts));
  auto weights = ValueOrAbort(engine::Weights::Load(
      *file, *config,
      {.backend = options.backend, .num_threads = options.num_threads, .progress = {}}));
  const kernels::CpuIsa isa =
      options.force_avx2 ? kernels::CpuIsa::kAvx2 : ValueOrAbort(kernels::DetectCpuIsa());
  return ValueOrAbort(
      engine::DeviceRunner::Create({.exec = {.backend = options.backend,
                                             .num_threads = options.num_threads,
                                             .isa = isa,
                                             .persistent_decode = options.persistent_decode},
                                    .kv_type = options.kv_type,
                                    .num_pages = options.max_positions / kernels::kPageTokens + 2,
                                    .max_tokens = options.max_tokens,
                                    .max_rows = 1,
                                    .max_context = options.max_positions,
                                    .max_logit_rows = options.max_tokens},
                                   std::move(config), std::move(weights)));
}

std::unique_ptr<engine::Dispatcher> OpenEngine(const std::string& path,
                                               const engine::SchedulerLimits& limits,
                                               kernels::Backend backend) {
  const auto file = ValueOrAbort(engine::ModelFile::Open(path));
  const auto config = std::make_shared<const engine::ModelConfig>(
      ValueOrAbort(engine::ModelConfig::FromFile(*file)));
  auto weights =
      ValueOrAbort(engine::Weights::Load(*file, *config, {.backend = backend, .progress = {}}));
  const kernels::DType kv_type = limits.f16_kv ? kernels::DType::kF16 : kernels::DType::kF32;
  auto rank = ValueOrAbort(engine::DeviceRunner::Create(
      {.exec = {.backend = backend, .num_threads = 1, .isa = ValueOrAbort(kernels::DetectCpuIsa())},
       .kv_type = kv_type,
       .num_pages = limits.num_pages,
       .max_tokens = limits.max_step_tokens,
       .max_rows = limits.max_batch,
       .max_context = limits.max_context},
      config, std::move(weights)));
  const engine::Batch::Limits batch = {
      .max_tokens = limits.max_step_tokens,
      .max_rows = limits.max_batch,
      .max_pages = limits.max_batch * limits.max_context / kernels::kPageTokens};
  auto chunks = std::make_unique<engine::ChunkMailbox>(1);
  std::vector<std::unique_ptr<engine::Engine>> engines;
  engines.push_back(std::make_unique<engine::Engine>(
      0, limits, std::make_unique<engine::ModelRunner>(std::move(rank), batch, limits.depth),
      nullptr, chunks.get()));
  return std::make_unique<engine::Dispatcher>(std::move(engines), std::move(chunks));
}

std::vector<float> AllLogits(engine::DeviceRunner& runner, std::span<const engine::TokenId> tokens,
                             int chunk) {
  engine::ForwardProbe probe(runner);
  std::vector<float> all;
  for (size_t begin = 0; begin < tokens.size(); begin += static_cast<size_t>(chunk)) {
    const auto step =
        tokens.subspan(begin, std::min(static_cast<size_t>(chunk), tokens.size() - begin));
    const absl::Status status = probe.Append(step, /*all_logits=*/true);
    if (!status.ok()) {
      std::fprintf(stderr, "%s\n", status.ToString().c_str());
      std::abort();
    }
    const auto rows = runner.logits().Rows(static_cast<int64_t>(step.size())).flat();
    all.insert(all.end(), rows.begin(), rows.end());
  }
  return all;
}

size_t ArgMax(std::span<const float> row) {
  return static_cast<size_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

}  // namespace sluice::testing
