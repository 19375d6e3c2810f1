#include "engine/inspect.h"

#include <cstdio>
#include <memory>

#include "CLI/CLI.hpp"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/flags.h"

#include "engine/base/status.h"
#include "engine/file_diff.h"

namespace sluice::cli {
namespace {

constexpr char kInspectName[] = "inspect";

struct InspectFlags {
  std::string file;
  std::string other;
  bool diff = false;
  bool json = false;
};

// Exit codes as those of diff(1).
int RunDiff(const InspectFlags& flags) {
  constexpr int kExitDifferent = 1, kExitTrouble = 2;
  const absl::StatusOr<engine::FileDiff> diff =
      engine::DiffFiles(flags.file, flags.other, flags.json);
  if (!diff.ok()) {
    PrintError(kInspectName, engine::Message(diff.status()));
    return kExitTrouble;
  }
  std::fwrite(diff->text.data(), 1, diff->text.size(), stdout);
  return FinishOutput(kInspectName, kExitOk) != kExitOk ? kExitTrouble
         : diff->equal                                  ? kExitOk
                                                        : kExitDifferent;
}

int Run(const InspectFlags& flags) {
  if (flags.diff && flags.other.empty()) return UsageError(kInspectName, "--diff: give two models");
  if (!flags.diff && !flags.other.empty()) {
    return UsageError(kInspectName, "give one model, or --diff and two");
  }
  if (flags.diff) return RunDiff(flags);
  const absl::StatusOr<std::string> text = engine::InspectFile(flags.file, flags.json);
  if (!text.ok()) {
    PrintError(kInspectName, engine::Message(text.status()));
    return kExitFailed;
  }
  std::fwrite(text->data(), 1, text->size(), stdout);
  if (!text->empty() && text->back() != '\n') std::fputc('\n', stdout);
  return FinishOutput(kInspectName, kExitOk);
}

}  // namespace

Command AddInspect(CLI::App& program) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* const app = program.add_subcommand(
      kInspectName, "Show what a model holds: facts, metadata, tensors and their roles");
  app->add_option("file", flags->file, "GGUF file, or directory with one or with safetensors")
      ->type_name("PATH")
      ->required();
  app->add_option("other", flags->other, "With --diff: what the first is compared with")
      ->type_name("PATH");
  app->add_flag("--diff", flags->diff,
                "Say how two models differ: metadata, shapes, types, values");
  app->add_flag("--json", flags->json, "One JSON object instead of text");
  app->footer(
      "Exit code of --diff: 0 the models are equal, 1 they differ, 2 one cannot be read.\n"
      "\n"
      "Examples:\n"
      "  sluice inspect smollm2.gguf\n"
      "  sluice inspect --json smollm2.gguf | python3 -m json.tool\n"
      "  sluice inspect --diff model.f16.gguf model.q8_0.gguf");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace sluice::cli
