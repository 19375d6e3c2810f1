// Pages, page tables and the prefix cache against a naive reference: docs/reliability.md.
//
//   page_model                     500,000 operations from a fresh seed on
//   page_model --operations 1e8    so many
//   page_model --from 1000000      these seeds
//   page_model --seed 123          one seed, its operations printed

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <new>
#include <optional>
#include <random>
#include <string>

#include "tests/engine/scheduling/page_trial.h"

namespace sluice::engine {
namespace {

constexpr int64_t kOperationsOfSeed = 4000;
constexpr time_t kHangSeconds = 60;  // of processor time, of one seed

struct Options {
  double operations = 5e5;
  std::optional<uint64_t> from, seed;
};

// What the process that tries leaves behind, whatever becomes of it.
struct Shared {
  uint64_t seed;
  uint64_t seeds;
  PageTrial::Count count;
  bool failed;
  char failure[512];
};

unsigned long long Number(uint64_t value) { return value; }
long long Number(int64_t value) { return value; }

std::optional<Options> Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    char* end = argv[i];
    if (i + 1 < argc && name == "--operations") options.operations = std::strtod(argv[i + 1], &end);
    if (i + 1 < argc && name == "--from") options.from = std::strtoull(argv[i + 1], &end, 10);
    if (i + 1 < argc && name == "--seed") options.seed = std::strtoull(argv[i + 1], &end, 10);
    if (end == argv[i] || *end != '\0' || end == argv[i + 1]) return std::nullopt;
  }
  return options;
}

void Fail(Shared& shared, const std::string& failure) {
  shared.failed = true;
  std::snprintf(shared.failure, sizeof shared.failure, "%s", failure.c_str());
}

void RunSeeds(const Options& options, Shared& shared) {
  for (shared.seed = *options.from;
       static_cast<double>(shared.count.operations) < options.operations; ++shared.seed) {
    ++shared.seeds;
    const itimerval timer = {.it_interval = {}, .it_value = {.tv_sec = kHangSeconds, .tv_usec = 0}};
    setitimer(ITIMER_PROF, &timer, nullptr);
    PageTrial trial(shared.seed, /*trace=*/false);
    const auto failure = trial.Run(kOperationsOfSeed);
    shared.count.Add(trial.count());
    if (failure) return Fail(shared, *failure);
  }
}

// A broken invariant may end the process, or never come back: it is one of its own.
double RunInChild(const Options& options, Shared& shared) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child < 0) {
    std::perror("fork");
    std::exit(2);
  }
  if (child == 0) {
    RunSeeds(options, shared);
    _exit(0);
  }
  int status = 0;
  rusage usage{};
  wait4(child, &status, 0, &usage);
  if (!shared.failed && WIFSIGNALED(status)) {
    const int signal = WTERMSIG(status);
    Fail(shared, signal == SIGPROF ? "it does not end"
                                   : "the process ended: " + std::string(strsignal(signal)));
  } else if (!shared.failed && WEXITSTATUS(status) != 0) {
    Fail(shared, "the process ended with " + std::to_string(WEXITSTATUS(status)));
  }
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

int RunSeries(const Options& options) {
  void* memory =
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("mmap");
    return 2;
  }
  Shared& shared = *new (memory) Shared{};
  std::printf("page_model: seeds from %llu\n", Number(*options.from));
  const double seconds = RunInChild(options, shared);
  const PageTrial::Count& count = shared.count;
  std::printf(
      "page_model: %llu seeds, %lld operations in %.1f s of processor time\n"
      "  %lld texts looked up, %lld pages found, %lld lookups missed what another domain has\n"
      "  %lld pages allocated, %lld allocations refused, %lld pages published, %lld replaced\n"
      "  %lld sequences forked, %lld pages copied, %lld sequences bypassed the cache\n"
      "  %lld pages evicted, %lld flushes\n",
      Number(shared.seeds), Number(count.operations), seconds, Number(count.lookups),
      Number(count.found), Number(count.other_salts), Number(count.allocated),
      Number(count.refused), Number(count.published), Number(count.replaced), Number(count.forks),
      Number(count.copies), Number(count.bypassed), Number(count.evicted), Number(count.flushes));
  if (shared.failed) {
    std::printf("seed %llu fails: %s\n  page_model --seed %llu\n", Number(shared.seed),
                shared.failure, Number(shared.seed));
    return 1;
  }
  if (const char* missing = count.Missing()) {
    std::printf("nothing is wrong, but %s\n", missing);
    return 1;
  }
  return 0;
}

int Replay(uint64_t seed) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  PageTrial trial(seed, /*trace=*/true);
  const auto failure = trial.Run(kOperationsOfSeed);
  std::printf("seed %llu: %s\n", Number(seed), failure ? failure->c_str() : "nothing wrong");
  return failure ? 1 : 0;
}

int Main(int argc, char** argv) {
  auto options = Parse(argc, argv);
  if (!options) {
    std::fprintf(stderr, "page_model [--operations N] [--from SEED] | --seed SEED\n");
    return 2;
  }
  if (options->seed) return Replay(*options->seed);
  if (!options->from) {
    std::random_device random;
    options->from = static_cast<uint64_t>(random()) * 1'000'000;
  }
  return RunSeries(*options);
}

}  // namespace
}  // namespace sluice::engine

int main(int argc, char** argv) { return sluice::engine::Main(argc, argv); }
