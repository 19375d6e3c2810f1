#include "engine/inspect.h"

#include <cstdio>
#include <memory>

#include "CLI/CLI.hpp"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/flags.h"

#include "engine/base/status.h"

namespace sluice::cli {
namespace {

constexpr char kName[] = "inspect";

struct InspectFlags {
  std::string file;
  bool json = false;
};

int Run(const InspectFlags& flags) {
  const absl::StatusOr<std::string> text = engine::InspectFile(flags.file, flags.json);
  if (!text.ok()) {
    PrintError(kName, engine::Message(text.status()));
    return kExitFailed;
  }
  std::fwrite(text->data(), 1, text->size(), stdout);
  if (!text->empty() && text->back() != '\n') std::fputc('\n', stdout);
  return FinishOutput(kName, kExitOk);
}

}  // namespace

Command AddInspect(CLI::App& program) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* const app = program.add_subcommand(
      kName, "Show what a model holds: facts, metadata, tensors and their roles");
  app->add_option("file", flags->file, "GGUF file, or directory of safetensors (Hugging Face)")
      ->type_name("PATH")
      ->required();
  app->add_flag("--json", flags->json, "One JSON object instead of text");
  app->footer(
      "Examples:\n"
      "  sluice inspect smollm2.gguf\n"
      "  sluice inspect --json smollm2.gguf | python3 -m json.tool");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace sluice::cli
