#include "tests/engine/hostile/load_probe.h"

#include <malloc.h>
#include <sys/resource.h>

#include <fstream>
#include <utility>

#include "tests/testing/collect.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLUICE_UNDER_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SLUICE_UNDER_SANITIZER 1
#endif
#endif

namespace sluice::testing {
namespace {

#ifdef SLUICE_UNDER_SANITIZER
constexpr bool kUnderSanitizer = true;
#else
constexpr bool kUnderSanitizer = false;
#endif

// A line of /proc/self/status, in bytes.
int64_t StatusLine(const std::string& name) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.starts_with(name + ":")) return std::stoll(line.substr(name.size() + 1)) * 1024;
  }
  return 0;
}

// From here on the kernel's peak is the peak since.
void ResetPeak() { std::ofstream("/proc/self/clear_refs") << "5"; }

}  // namespace

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double MostSeconds() { return kUnderSanitizer ? 30 : 1; }
int64_t MostBytes() { return (kUnderSanitizer ? int64_t{512} : int64_t{64}) << 20; }

engine::EngineOptions ProbeOptions() {
  engine::EngineOptions options;
  options.num_threads = 1;
  options.max_batch = 4;
  options.max_step_tokens = 16;
  return options;
}

Answer Ask(engine::Dispatcher& dispatcher, std::vector<engine::TokenId> prompt) {
  engine::Request request;
  request.id = "probe";
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.stopping.max_tokens = 8;
  request.stopping.ignore_eos = true;
  request.output.return_text = false;
  request.output.return_token_ids = true;
  std::vector<engine::Request> requests;
  requests.push_back(std::move(request));
  Collected collected = RunAll(dispatcher, std::move(requests))[0][0];
  return {collected.status, std::move(collected.tokens)};
}

LoadOutcome LoadAndServe(const std::string& path,
                         const std::function<void(const engine::LoadProgress&)>& progress) {
  LoadOutcome outcome;
  malloc_trim(0);
  ResetPeak();
  const int64_t resident = StatusLine("VmRSS");
  const double begin = CpuSeconds();
  auto model = engine::LoadModel(path, ProbeOptions(), 1, progress);
  outcome.cpu_seconds = CpuSeconds() - begin;
  outcome.peak_bytes = StatusLine("VmHWM") - resident;
  outcome.status = model.status();
  if (!model.ok()) return outcome;
  outcome.warnings = model->warnings;
  Answer answer = Ask(*model->dispatcher, {1, 2, 3});
  outcome.status = answer.status;
  outcome.tokens = std::move(answer.tokens);
  return outcome;
}

}  // namespace sluice::testing
