// Deterministic simulation of the engine: docs/reliability.md.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iomanip>
#include <random>
#include <string>

#include "tests/sim/planting.h"
#include "tests/sim/trial.h"

namespace sluice::sim {
namespace {

constexpr double kShrinkSeconds = 20;

unsigned long long Number(uint64_t value) { return value; }

void PrintCount(const Series& series) {
  const Simulation::Count& count = series.count;
  std::printf(
      "%llu seeds, %llu events in %.1f s of processor time: %.2f million a second\n"
      "  %llu inputs, %llu commands, %llu turns, %llu rows, %llu chunks\n"
      "  %llu requests ended well, %llu otherwise, %llu were refused; %llu cancels of open ones\n"
      "  %llu preemptions, %llu tokens reused; pages checked %llu times\n",
      Number(series.seeds), Number(count.events()), series.processor_seconds,
      static_cast<double>(count.events()) / series.processor_seconds / 1e6, Number(count.inputs),
      Number(count.commands), Number(count.turns), Number(count.rows), Number(count.chunks),
      Number(count.ends_ok), Number(count.ends_other), Number(count.refusals),
      Number(count.cancels), Number(count.preemptions), Number(count.reused_tokens),
      Number(count.page_checks));
}

std::string ReplayLine(const Scenario& scenario, int planted) {
  std::string line = planted == 0 ? "sim" : "sim_planted --bug " + std::to_string(planted);
  return line + " --seed " + std::to_string(scenario.seed) + " --keep " +
         FormatIds(scenario.events);
}

int ReportFailure(const Scenario& scenario, const std::string& failure, int planted) {
  std::printf("seed %llu fails: %s\n", Number(scenario.seed), failure.c_str());
  const Scenario fewer = Shrink(scenario, planted, kShrinkSeconds);
  const auto again = RunOne(fewer, planted, /*quiet=*/true);
  std::printf("%zu of %zu events are enough (%s):\n  %s\n", fewer.events.size(),
              scenario.events.size(), again ? again->c_str() : "not always",
              ReplayLine(fewer, planted).c_str());
  return 1;
}

// Appends one line to `file`; empty: none is wanted.
void WriteJson(const std::string& file, const char* bug, uint64_t first_seed,
               const Series& series) {
  if (file.empty()) return;
  std::ofstream line(file, std::ios::app);
  line << "{";
  if (bug) line << "\"bug\": " << std::quoted(bug) << ", ";
  line << "\"seeds_from\": " << first_seed << ", \"seeds\": " << series.seeds
       << ", \"events\": " << series.count.events() << ", \"processor_s\": " << std::fixed
       << std::setprecision(2) << series.processor_seconds
       << ", \"cancels\": " << series.count.cancels << ", \"failing_seed\": ";
  if (series.failing_seed) {
    line << *series.failing_seed;
  } else {
    line << "null";
  }
  // Quotes and backslashes are all that a failure has to escape.
  line << ", \"failure\": " << std::quoted(series.failure) << "}\n";
}

int RunFresh(uint64_t first_seed, const Budget& budget, int planted, const std::string& json) {
  std::printf("seeds from %llu\n", Number(first_seed));
  std::fflush(stdout);
  const Series series = RunSeries(first_seed, budget, planted);
  PrintCount(series);
  WriteJson(json, planted == 0 ? nullptr : PlantedBugs()[static_cast<size_t>(planted) - 1],
            first_seed, series);
  if (!series.failing_seed) return 0;
  return ReportFailure(Scenario::Make(*series.failing_seed, SIZE_MAX), series.failure, planted);
}

int Replay(const Scenario& scenario, int planted) {
  for (const Event& event : scenario.events) {
    std::printf("  %4u %-10s after %lld us", event.id, Name(event.kind),
                static_cast<long long>(event.gap.count() / 1000));
    std::printf(event.target != 0 ? ", of %u\n" : "\n", event.target);
  }
  std::fflush(stdout);
  const auto failure = RunOne(scenario, planted, /*quiet=*/false);
  std::printf("seed %llu, %zu events: %s\n", Number(scenario.seed), scenario.events.size(),
              failure ? failure->c_str() : "nothing wrong");
  return failure ? 1 : 0;
}

// Each planted bug must be found; none may be without it.
int RunTable(uint64_t first_seed, double seconds, const std::string& json) {
  const auto bugs = PlantedBugs();
  if (bugs.empty()) {
    std::fprintf(stderr, "this program holds no planted bugs, sim_planted does\n");
    return 2;
  }
  std::printf("seeds from %llu, %.0f s of processor time a bug at most\n", Number(first_seed),
              seconds);
  std::printf("%-72s %8s %8s  %s\n", "planted bug", "seeds", "seconds", "found by");
  size_t found = 0;
  for (size_t i = 0; i < bugs.size(); ++i) {
    const Series series =
        RunSeries(first_seed, {.processor_seconds = seconds}, static_cast<int>(i) + 1);
    found += series.failing_seed.has_value();
    WriteJson(json, bugs[i], first_seed, series);
    std::printf("%-72s %8llu %8.2f  %s\n", bugs[i], Number(series.seeds), series.processor_seconds,
                series.failing_seed ? series.failure.c_str() : "NOT FOUND");
    std::fflush(stdout);
  }
  std::printf("%zu of %zu planted bugs found\n", found, bugs.size());
  return found == bugs.size() ? 0 : 1;
}

int Main(int argc, char** argv) {
  CLI::App app("Simulates the engine: scheduler, pages, prefix cache, queue, mailboxes, admission");
  double seconds = 0, events = 0;
  uint64_t seed = 0, seeds_from = 0;
  int bug = 0;
  std::string keep, json;
  bool table = false;
  app.add_option("--seconds", seconds,
                 "Fresh seeds for so much processor time (20 s when nothing else is asked)");
  app.add_option("--events", events, "Fresh seeds until so many events; with --seed: its first N");
  auto* one = app.add_option("--seed", seed, "This seed alone, its events printed");
  app.add_option("--keep", keep, "Of its events only these: 1,4-7")->needs(one);
  auto* from = app.add_option("--from", seeds_from, "The first of the fresh seeds");
  app.add_option("--bug", bug, "With this planted bug")
      ->check(CLI::Range(0, static_cast<int>(PlantedBugs().size())));
  app.add_flag("--table", table, "Every planted bug in turn, --seconds each (60)");
  app.add_option("--json", json, "Append what came of it to this file, a line each");
  CLI11_PARSE(app, argc, argv);

  if (*one) {
    Scenario scenario = Scenario::Make(seed, events > 0 ? static_cast<size_t>(events) : SIZE_MAX);
    if (!keep.empty()) {
      const auto ids = ParseIds(keep);
      if (!ids) {
        std::fprintf(stderr, "--keep: expected numbers and ranges as 1,4-7, got %s\n",
                     keep.c_str());
        return 2;
      }
      std::erase_if(scenario.events, [&](const Event& event) {
        return std::find(ids->begin(), ids->end(), event.id) == ids->end();
      });
    }
    return Replay(scenario, bug);
  }
  if (!*from) {
    std::random_device random;
    seeds_from = static_cast<uint64_t>(random()) * 1'000'000;
  }
  if (table) return RunTable(seeds_from, seconds > 0 ? seconds : 60, json);
  Budget budget;
  if (events > 0) budget.events = static_cast<uint64_t>(events);
  if (seconds > 0 || events <= 0) budget.processor_seconds = seconds > 0 ? seconds : 20;
  return RunFresh(seeds_from, budget, bug, json);
}

}  // namespace
}  // namespace sluice::sim

int main(int argc, char** argv) { return sluice::sim::Main(argc, argv); }
