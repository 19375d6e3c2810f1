#include "tests/sim/trial.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>

#include "tests/sim/planting.h"

namespace sluice::sim {
namespace {

// Of one seed: of processor time, and of time that passes in case it sleeps.
constexpr time_t kHangSeconds = 20;
constexpr unsigned kSleepSeconds = 300;

using Clock = std::chrono::steady_clock;
double Since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Of this process: what others do on the machine does not count.
double ProcessorSeconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// From now on the process may take so long.
void SetAlarms() {
  const itimerval timer = {.it_interval = {}, .it_value = {.tv_sec = kHangSeconds, .tv_usec = 0}};
  setitimer(ITIMER_PROF, &timer, nullptr);
  alarm(kSleepSeconds);
}

// What the process that simulates leaves behind, whatever becomes of it.
struct Shared {
  uint64_t seeds;
  uint64_t seed;
  double processor_seconds;
  Simulation::Count count;
  bool failed;
  char failure[512];
};

void Fail(Shared& shared, const std::string& failure) {
  shared.failed = true;
  std::snprintf(shared.failure, sizeof shared.failure, "%s", failure.c_str());
}

// Runs `body` in a child and waits for it. What went wrong with the child itself becomes the
// failure.
Shared RunInChild(bool quiet, const std::function<void(Shared&)>& body) {
  void* memory =
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("mmap");
    std::exit(2);
  }
  auto* shared = new (memory) Shared{};
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child < 0) {
    std::perror("fork");
    std::exit(2);
  }
  if (child == 0) {
    if (quiet) {
      const int nowhere = open("/dev/null", O_WRONLY);
      dup2(nowhere, STDERR_FILENO);
    }
    body(*shared);
    _exit(0);
  }
  int status = 0;
  rusage usage{};
  wait4(child, &status, 0, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  shared->processor_seconds = seconds(usage.ru_utime) + seconds(usage.ru_stime);
  if (!shared->failed && WIFSIGNALED(status)) {
    const int signal = WTERMSIG(status);
    Fail(*shared, signal == SIGPROF || signal == SIGALRM
                      ? "it does not end"
                      : "the process ended: " + std::string(strsignal(signal)));
  } else if (!shared->failed && WEXITSTATUS(status) != 0) {
    Fail(*shared, "the process ended with " + std::to_string(WEXITSTATUS(status)));
  }
  Shared result = *shared;
  munmap(memory, sizeof(Shared));
  return result;
}

}  // namespace

Series RunSeries(uint64_t first_seed, const Budget& budget, int planted) {
  const Shared shared = RunInChild(planted != 0, [&](Shared& out) {
    Plant(planted);
    for (out.seed = first_seed;; ++out.seed) {
      if (budget.processor_seconds && ProcessorSeconds() >= *budget.processor_seconds) return;
      if (budget.events && out.count.events() >= *budget.events) return;
      if (budget.seeds && out.seeds >= *budget.seeds) return;
      ++out.seeds;
      SetAlarms();
      const Scenario scenario = Scenario::Make(out.seed, SIZE_MAX);
      Simulation simulation(scenario);
      const auto failure = simulation.Run();
      out.count.Add(simulation.count());
      if (failure) return Fail(out, *failure);
    }
  });
  Series series;
  series.seeds = shared.seeds;
  series.processor_seconds = shared.processor_seconds;
  series.count = shared.count;
  if (shared.failed) {
    series.failing_seed = shared.seed;
    series.failure = shared.failure;
  }
  return series;
}

std::optional<std::string> RunOne(const Scenario& scenario, int planted, bool quiet) {
  const Shared shared = RunInChild(quiet, [&](Shared& out) {
    Plant(planted);
    SetAlarms();
    Simulation simulation(scenario);
    if (const auto failure = simulation.Run()) Fail(out, *failure);
  });
  if (!shared.failed) return std::nullopt;
  return shared.failure;
}

Scenario Shrink(const Scenario& scenario, int planted, double seconds) {
  const auto begin = Clock::now();
  Scenario best = scenario;
  for (size_t part = best.events.size() / 2; part > 0;) {
    bool shrunk = false;
    // From the end: what comes after the failure goes at once.
    for (size_t end = best.events.size(); end > 0 && Since(begin) < seconds;) {
      const size_t from = end > part ? end - part : 0;
      Scenario fewer = best;
      fewer.events.erase(fewer.events.begin() + static_cast<std::ptrdiff_t>(from),
                         fewer.events.begin() + static_cast<std::ptrdiff_t>(end));
      if (RunOne(fewer, planted, /*quiet=*/true)) {
        best = std::move(fewer);
        shrunk = true;
      }
      end = from;
    }
    if (Since(begin) >= seconds) break;
    if (!shrunk || part > 1) part /= 2;
  }
  return best;
}

std::string FormatIds(const std::vector<Event>& events) {
  std::string text;
  for (size_t i = 0; i < events.size();) {
    size_t last = i;
    while (last + 1 < events.size() && events[last + 1].id == events[last].id + 1) ++last;
    if (!text.empty()) text += ",";
    text += std::to_string(events[i].id);
    if (last > i) text += "-" + std::to_string(events[last].id);
    i = last + 1;
  }
  return text;
}

std::optional<std::vector<uint32_t>> ParseIds(const std::string& text) {
  std::vector<uint32_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    uint32_t first = 0;
    auto parsed = std::from_chars(at, end, first);
    if (parsed.ec != std::errc()) return std::nullopt;
    uint32_t last = first;
    if (parsed.ptr != end && *parsed.ptr == '-') {
      parsed = std::from_chars(parsed.ptr + 1, end, last);
      if (parsed.ec != std::errc() || last < first || last - first > 1'000'000) return std::nullopt;
    }
    for (uint32_t id = first; id <= last; ++id) ids.push_back(id);
    if (parsed.ptr == end) return ids;
    if (*parsed.ptr != ',') return std::nullopt;
    at = parsed.ptr + 1;
  }
}

}  // namespace sluice::sim
