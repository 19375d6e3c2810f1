#include "engine/verify.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <memory>
#include <thread>
#include <utility>

#include "engine/base/status.h"
#include "engine/canary.h"
#include "engine/device_choice.h"
#include "engine/device_runner.h"
#include "engine/model_file/model_file.h"

namespace sluice::engine {
namespace {

// Relative error (2-norms) that an op's outcome may have after everything before it. int16
// activations, f16 operands and an f16 KV cache give 1e-5 to 1e-3, growing slowly with depth; the
// planted bugs give 0.05 to 2.
constexpr double kTolerance = 0.01;
// Margins of the expected logits above which the best token must be the same (docs/numerics.md).
constexpr float kMargin = 0.005f;
constexpr float kCudaMargin = 0.02f;
constexpr int kPromptTokens = 48;
constexpr int kKlWindow = 512;  // positions of one sequence
constexpr int kKlChunk = 64;    // positions of one forward
constexpr std::string_view kDefaultText =
    "The old lighthouse keeper counted the ships again: one, two, three. Each carried 14 crates of "
    "oranges, "
    "and nobody on the quay could say where they had come from or why the harbour clock had "
    "stopped at noon.";

// Keeps the outcome of every op of a forward pass.
class Recorder final : public kernels::OpObserver {
 public:
  struct Outcome {
    std::string op;
    int layer = -1;
    int64_t rows = 0, cols = 0;
    std::vector<float> values;
  };
  void OnOp(std::string_view op, int layer, std::span<const float> values, int64_t rows,
            int64_t cols) override {
    outcomes_.push_back({std::string(op), layer, rows, cols, {values.begin(), values.end()}});
  }
  std::vector<Outcome> Take() { return std::exchange(outcomes_, {}); }

 private:
  std::vector<Outcome> outcomes_;
};

// Sums of one op's errors over all steps.
struct OpError {
  std::string op;
  int layer = -1;
  double difference = 0, norm = 0, worst = 0;
  bool comparable = true;

  void Add(const Recorder::Outcome& actual, const Recorder::Outcome& expected) {
    if (actual.rows != expected.rows || actual.cols != expected.cols) {
      comparable = false;
      return;
    }
    for (size_t i = 0; i < expected.values.size(); ++i) {
      const double delta = double{actual.values[i]} - expected.values[i];
      difference += delta * delta;
      norm += double{expected.values[i]} * expected.values[i];
      if (!(std::abs(delta) <= worst)) worst = std::abs(delta);
    }
  }

  VerifyRow Row() const {
    VerifyRow row = {.op = op,
                     .layer = layer,
                     .relative_error = 0,
                     .worst_error = worst,
                     .tolerance = kTolerance};
    row.relative_error = !comparable ? std::numeric_limits<double>::infinity()
                         : norm > 0  ? std::sqrt(difference / norm)
                                     : std::sqrt(difference);
    row.within = row.relative_error <= kTolerance;  // false for NaN
    return row;
  }
};

// The path of the device and the one it is compared with, over the same file.
struct Pair {
  std::unique_ptr<DeviceRunner> actual;
  std::unique_ptr<DeviceRunner> expected;
};

absl::StatusOr<kernels::Backend> BackendNamed(const std::string& against) {
  if (against == "ref") return kernels::Backend::kRef;
  if (against == "cpu") return kernels::Backend::kCpu;
  return InvalidArgument("against: expected 'ref' or 'cpu', got '" + against.substr(0, 64) + "'");
}

absl::StatusOr<std::unique_ptr<DeviceRunner>> MakeRunner(const ModelFile& file, ModelConfig config,
                                                         const kernels::Exec::Options& exec,
                                                         kernels::DType kv_type,
                                                         int max_positions) {
  ASSIGN_OR_RETURN(std::shared_ptr<const Weights> weights,
                   Weights::Load(file, config,
                                 {.backend = exec.backend,
                                  .num_threads = exec.num_threads,
                                  .planted_bug = exec.planted_bug,
                                  .compute_digest = false,
                                  .progress = {}}));
  const int64_t pages = (max_positions + kernels::kPageTokens - 1) / kernels::kPageTokens;
  return DeviceRunner::Create({.exec = exec,
                               .kv_type = kv_type,
                               .num_pages = pages + 1,
                               .max_tokens = kKlChunk,
                               .max_rows = 1,
                               .max_context = max_positions,
                               .max_logit_rows = kKlChunk},
                              std::make_shared<const ModelConfig>(std::move(config)),
                              std::move(weights));
}

absl::StatusOr<Pair> MakePair(const ModelFile& file, const VerifyOptions& verify,
                              int max_positions) {
  const EngineOptions& options = verify.engine;
  ASSIGN_OR_RETURN(const kernels::Backend against, BackendNamed(verify.against));
  ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::FromFile(file, options.planted_bug));
  ASSIGN_OR_RETURN(ModelConfig sound_config, ModelConfig::FromFile(file));
  ASSIGN_OR_RETURN(const DeviceChoice device, DeviceChoice::Open(options.device));
  if (device.backend == against) {
    return InvalidArgument("verify: device " + options.device + " against " + verify.against +
                           " compares a path with itself");
  }
  ASSIGN_OR_RETURN(kernels::CpuIsa isa, kernels::DetectCpuIsa());
  if (options.force_avx2) isa = kernels::CpuIsa::kAvx2;
  const int num_threads = options.num_threads > 0
                              ? options.num_threads
                              : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  Pair pair;
  ASSIGN_OR_RETURN(pair.actual, MakeRunner(file, std::move(config),
                                           {.backend = device.backend,
                                            .num_threads = num_threads,
                                            .isa = isa,
                                            .planted_bug = options.planted_bug},
                                           device.KvType(options), max_positions));
  ASSIGN_OR_RETURN(pair.expected,
                   MakeRunner(file, std::move(sound_config),
                              {.backend = against, .num_threads = num_threads, .isa = isa},
                              kernels::DType::kF32, max_positions));
  return pair;
}

std::span<const float> LogitRow(const DeviceRunner& runner, int64_t row) {
  const kernels::MatrixF32 logits = runner.logits();
  return {logits.row(row), static_cast<size_t>(logits.cols)};
}

size_t ArgMax(std::span<const float> row) {
  return static_cast<size_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

// Distance of the two best logits.
float Margin(std::span<const float> row) {
  float best = -std::numeric_limits<float>::infinity(), second = best;
  for (float logit : row) {
    if (logit > best) {
      second = std::exchange(best, logit);
    } else if (logit > second) {
      second = logit;
    }
  }
  return best - second;
}

// Prompt in two chunks, then token by token: the shapes of prefill, chunked prefill and decode.
std::vector<int> StepSizes(int count) {
  std::vector<int> sizes;
  for (int size : {count / 2, count / 4}) {
    if (size > 0) sizes.push_back(size);
  }
  int done = count / 2 + count / 4;
  while (done++ < count) sizes.push_back(1);
  return sizes;
}

void AddOutcomes(std::span<const Recorder::Outcome> actual,
                 std::span<const Recorder::Outcome> expected, std::vector<OpError>& errors) {
  errors.resize(std::max(errors.size(), expected.size()));
  for (size_t i = 0; i < expected.size(); ++i) {
    errors[i].op = expected[i].op;
    errors[i].layer = expected[i].layer;
    if (i < actual.size()) {
      errors[i].Add(actual[i], expected[i]);
    } else {
      errors[i].comparable = false;
    }
  }
}

void CompareLogits(const Pair& pair, int rows, VerifyReport& report) {
  for (int row = 0; row < rows; ++row) {
    const std::span<const float> actual = LogitRow(*pair.actual, row);
    const std::span<const float> expected = LogitRow(*pair.expected, row);
    ++report.positions;
    if (actual.size() != expected.size()) continue;
    if (ArgMax(actual) == ArgMax(expected)) {
      ++report.top1_equal;
    } else if (Margin(expected) > report.margin) {
      ++report.top1_beyond_margin;
    }
    for (size_t i = 0; i < expected.size(); ++i) {
      const double error = std::abs(double{actual[i]} - expected[i]);
      if (!(error <= report.max_logit_error)) report.max_logit_error = error;
    }
  }
}

absl::Status CompareOps(Pair& pair, std::span<const TokenId> tokens, VerifyReport& report) {
  Recorder actual_ops, expected_ops;
  pair.actual->exec().set_observer(&actual_ops);
  pair.expected->exec().set_observer(&expected_ops);
  ForwardProbe actual(*pair.actual), expected(*pair.expected);
  std::vector<OpError> errors;
  size_t begin = 0;
  for (int size : StepSizes(static_cast<int>(tokens.size()))) {
    const std::span<const TokenId> step = tokens.subspan(begin, static_cast<size_t>(size));
    RETURN_IF_ERROR(actual.Append(step, /*all_logits=*/true));
    RETURN_IF_ERROR(expected.Append(step, /*all_logits=*/true));
    AddOutcomes(actual_ops.Take(), expected_ops.Take(), errors);
    CompareLogits(pair, size, report);
    begin += static_cast<size_t>(size);
  }
  pair.actual->exec().set_observer(nullptr);
  pair.expected->exec().set_observer(nullptr);
  for (const OpError& error : errors) {
    report.rows.push_back(error.Row());
    if (report.rows.back().within || !report.first_beyond.empty()) continue;
    report.first_beyond =
        (error.layer >= 0 ? "layer " + std::to_string(error.layer) + " " : "") + error.op;
  }
  return absl::OkStatus();
}

double LogSumExp(std::span<const float> row) {
  const double most = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (float logit : row) sum += std::exp(logit - most);
  return most + std::log(sum);
}

// Sum over the vocabulary of p (log p - log q), p the strict path's probabilities.
double Divergence(std::span<const float> expected, std::span<const float> actual) {
  const double p_norm = LogSumExp(expected), q_norm = LogSumExp(actual);
  double divergence = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double log_p = expected[i] - p_norm;
    divergence += std::exp(log_p) * (log_p - (actual[i] - q_norm));
  }
  return divergence;
}

absl::Status MeasureKl(Pair& pair, std::span<const TokenId> tokens, size_t window,
                       VerifyReport& report) {
  if (pair.actual->logits().cols != pair.expected->logits().cols) {
    return FailedPrecondition("KL divergence: the two paths have different vocabularies");
  }
  ForwardProbe actual(*pair.actual), expected(*pair.expected);
  double sum = 0;
  size_t count = 0;
  for (size_t begin = 0; begin < tokens.size(); begin += count) {
    if (begin % window == 0) {
      actual.Restart();
      expected.Restart();
    }
    count = std::min({size_t{kKlChunk}, tokens.size() - begin, window - begin % window});
    const std::span<const TokenId> chunk = tokens.subspan(begin, count);
    RETURN_IF_ERROR(actual.Append(chunk, /*all_logits=*/true));
    RETURN_IF_ERROR(expected.Append(chunk, /*all_logits=*/true));
    for (size_t row = 0; row < count; ++row) {
      const std::span<const float> q = LogitRow(*pair.actual, static_cast<int64_t>(row));
      const std::span<const float> p = LogitRow(*pair.expected, static_cast<int64_t>(row));
      const double divergence = Divergence(p, q);
      sum += divergence;
      if (!(divergence <= report.kl_max)) report.kl_max = divergence;  // keeps NaN
      report.kl_top1_equal += ArgMax(p) == ArgMax(q);
    }
    report.kl_positions += static_cast<int64_t>(count);
  }
  report.kl_mean = report.kl_positions > 0 ? sum / static_cast<double>(report.kl_positions) : 0;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TokenId>> EncodeText(const ModelFile& file, std::string_view text,
                                                size_t at_most) {
  ASSIGN_OR_RETURN(std::shared_ptr<const Tokenizer> tokenizer, Tokenizer::FromFile(file));
  ASSIGN_OR_RETURN(std::vector<TokenId> tokens, tokenizer->Encode(text, {}));
  if (tokens.size() > at_most) tokens.resize(at_most);
  return tokens;
}

absl::StatusOr<std::vector<TokenId>> PromptTokens(const ModelFile& file,
                                                  const VerifyOptions& options,
                                                  int32_t vocab_size) {
  if (!options.text.empty()) return EncodeText(file, options.text, kPromptTokens);
  absl::StatusOr<std::vector<TokenId>> tokens = EncodeText(file, kDefaultText, kPromptTokens);
  if (absl::IsNotFound(tokens.status())) return CanaryTokens(vocab_size, kPromptTokens);
  return tokens;
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return NotFound(path + ": cannot be opened");
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

}  // namespace

absl::StatusOr<VerifyReport> VerifyModel(const std::string& path, const VerifyOptions& options) {
  ASSIGN_OR_RETURN(std::shared_ptr<const ModelFile> file, ModelFile::Open(path));
  ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::FromFile(*file));
  ASSIGN_OR_RETURN(std::vector<TokenId> tokens, PromptTokens(*file, options, config.vocab_size));
  if (tokens.empty()) return InvalidArgument("the text has no tokens");
  if (tokens.size() > static_cast<size_t>(config.context_length)) {
    tokens.resize(static_cast<size_t>(config.context_length));
  }
  std::vector<TokenId> kl_tokens;
  if (!options.kl_file.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadText(options.kl_file));
    ASSIGN_OR_RETURN(kl_tokens, EncodeText(*file, text, static_cast<size_t>(options.kl_positions)));
    // Of an empty text there may be a token for its beginning: nothing to compare on.
    if (text.empty() || kl_tokens.empty()) {
      return InvalidArgument(options.kl_file + ": expected a text of at least one token, got " +
                             std::to_string(text.size()) + " bytes");
    }
  }
  const int window = std::min(kKlWindow, config.context_length);
  ASSIGN_OR_RETURN(Pair pair, MakePair(*file, options, window));
  VerifyReport report;
  report.margin = pair.actual->exec().backend() == kernels::Backend::kCuda ? kCudaMargin : kMargin;
  RETURN_IF_ERROR(CompareOps(pair, tokens, report));
  if (!kl_tokens.empty())
    RETURN_IF_ERROR(MeasureKl(pair, kl_tokens, static_cast<size_t>(window), report));
  report.passed = report.first_beyond.empty() && report.top1_beyond_margin == 0;
  return report;
}

}  // namespace sluice::engine
