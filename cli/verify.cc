#include "engine/verify.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <memory>

#include "CLI/CLI.hpp"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/flags.h"

#include "engine/base/status.h"

namespace sluice::cli {
namespace {

constexpr char kVerifyName[] = "verify";

struct VerifyFlags {
  std::string model;
  engine::VerifyOptions options;
};

void PrintRows(const engine::VerifyReport& report) {
  int width = 9;
  for (const engine::VerifyRow& row : report.rows) {
    width = std::max(width, static_cast<int>(row.op.size()));
  }
  std::printf("%-5s  %-*s  %14s  %14s  %9s\n", "layer", width, "operation", "relative error",
              "largest error", "tolerance");
  for (const engine::VerifyRow& row : report.rows) {
    const std::string layer = row.layer < 0 ? "-" : std::to_string(row.layer);
    std::printf("%5s  %-*s  %14.3e  %14.3e  %9.1e%s\n", layer.c_str(), width, row.op.c_str(),
                row.relative_error, row.worst_error, row.tolerance, row.within ? "" : "  BEYOND");
  }
}

double Percent(int64_t part, int64_t whole) {
  return whole > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

void PrintReport(const engine::VerifyReport& report) {
  PrintRows(report);
  std::printf("\nlogits: largest error %.3e; same best token at %lld of %lld positions (%.2f %%)\n",
              report.max_logit_error, static_cast<long long>(report.top1_equal),
              static_cast<long long>(report.positions),
              Percent(report.top1_equal, report.positions));
  std::printf("best tokens that differ although the margin is above %g: %lld\n", report.margin,
              static_cast<long long>(report.top1_beyond_margin));
  if (report.kl_positions > 0) {
    std::printf(
        "KL divergence over %lld positions: mean %.3e, maximum %.3e; same best token %.2f %%\n",
        static_cast<long long>(report.kl_positions), report.kl_mean, report.kl_max,
        Percent(report.kl_top1_equal, report.kl_positions));
  }
  if (report.passed) {
    std::printf("passed: every operation is within its tolerance, no sure best token differs\n");
  } else if (!report.first_beyond.empty()) {
    std::printf("FAILED: the first operation beyond its tolerance is %s\n",
                report.first_beyond.c_str());
  } else {
    std::printf(
        "FAILED: every operation is within its tolerance, but %lld best tokens differ although the "
        "margin is above %g\n",
        static_cast<long long>(report.top1_beyond_margin), report.margin);
  }
}

int Run(const VerifyFlags& flags) {
  if (flags.model.empty()) return UsageError(kVerifyName, "give --model PATH");
  const absl::StatusOr<engine::VerifyReport> report =
      engine::VerifyModel(flags.model, flags.options);
  if (!report.ok()) {
    PrintError(kVerifyName, engine::Message(report.status()));
    return kExitFailed;
  }
  PrintReport(*report);
  return FinishOutput(kVerifyName, report->passed ? kExitOk : kExitFailed);
}

}  // namespace

Command AddVerify(CLI::App& program) {
  auto flags = std::make_shared<VerifyFlags>();
  CLI::App* const app = program.add_subcommand(
      kVerifyName, "Compare a device's path with the strict one, operation by operation");
  AddModelFlag(*app, &flags->model);
  app->add_option("--text", flags->options.text, "Prompt to compare on; unset: a built-in one")
      ->type_name("TEXT");
  app->add_option("--kl", flags->options.kl_file,
                  "Text file: KL divergence and best tokens over it (takes minutes)")
      ->type_name("FILE");
  app->add_option("--kl-positions", flags->options.kl_positions, "Positions of --kl, at most")
      ->type_name("N")
      ->check(IntegerBetween(1, std::numeric_limits<int32_t>::max()))
      ->capture_default_str();
  AddComputeFlags(*app, &flags->options.engine, "Engine");
  app->add_option("--against", flags->options.against,
                  "What the device is compared with: ref (strict, slow), cpu")
      ->type_name("NAME")
      ->check(OneOf({"ref", "cpu"}))
      ->capture_default_str()
      ->group("Engine");
  AddPlantBugFlag(*app, &flags->options.engine);
  app->footer(
      "Exit code 0: all within tolerance. 1: not, and the first operation beyond it is named.\n"
      "\n"
      "Example:\n"
      "  sluice verify --model smollm2.gguf --kl README.md\n"
      "  sluice verify --model smollm2.gguf --device cuda:0 --against cpu");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace sluice::cli
