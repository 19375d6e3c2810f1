#include "engine/quantize.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>

#include "CLI/CLI.hpp"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/flags.h"
#include "cli/progress_bar.h"
#include "cli/signals.h"

#include "engine/base/status.h"

namespace sluice::cli {
namespace {

constexpr char kQuantizeName[] = "quantize";

struct QuantizeFlags {
  std::string in;
  std::string out;
  std::string type;
  engine::QuantizeOptions options;
};

int Run(const QuantizeFlags& flags) {
  engine::QuantizeOptions options = flags.options;
  options.type = *engine::QuantizedTypeNamed(flags.type);  // the flag's check has refused others
  SignalWatcher signals;
  std::atomic<bool> interrupted = false;
  signals.Arm([&interrupted] { interrupted = true; });
  const auto begin = std::chrono::steady_clock::now();
  absl::StatusOr<engine::QuantizeReport> report;
  {
    ProgressBar bar("quantizing");
    options.progress = [&](uint64_t done, uint64_t total) {
      bar.Update({.phase = flags.type, .done = done, .total = total});
      return !interrupted;
    };
    report = engine::QuantizeModel(flags.in, flags.out, options);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  signals.Disarm();
  if (!report.ok()) {
    PrintError(kQuantizeName, engine::Message(report.status()));
    const bool cut = report.status().code() == absl::StatusCode::kCancelled;
    return cut ? kExitSignalOffset + signals.first_signal() : kExitFailed;
  }
  for (const std::string& note : report->notes) std::fprintf(stderr, "note: %s\n", note.c_str());
  std::printf("%s: %s from %s, %d of %d tensors %s, %.2f bits per weight, %.1f s\n",
              flags.out.c_str(), FormatBytes(report->bytes_out).c_str(),
              FormatBytes(report->bytes_in).c_str(), report->num_quantized, report->num_tensors,
              flags.type.c_str(), report->BitsPerWeight(), seconds.count());
  return FinishOutput(kQuantizeName, kExitOk);
}

}  // namespace

Command AddQuantize(CLI::App& program) {
  auto flags = std::make_shared<QuantizeFlags>();
  CLI::App* const app = program.add_subcommand(
      kQuantizeName, "Write a model as a GGUF file with its matrices rounded to fewer bits");
  app->add_option("in", flags->in, "GGUF file, or directory with one or with safetensors")
      ->type_name("PATH")
      ->required();
  app->add_option("out", flags->out, "GGUF file to write")->type_name("FILE")->required();
  app->add_option("--type", flags->type, "Of the matrices: q8_0, q4_0, q4_1, q5_0 or q5_1")
      ->type_name("TYPE")
      ->check(OneOf(engine::QuantizedTypeNames()))
      ->required();
  app->add_flag("--keep-output", flags->options.keep_output,
                "Leave the output matrix as it is (token_embd.weight when there is none)");
  app->add_flag("--only-floats", flags->options.only_floats,
                "Refuse a model that holds quantised tensors; else they are copied");
  app->add_flag("--force", flags->options.replace, "Replace a file that is there already");
  app->add_option("--threads", flags->options.num_threads, "Threads; 0: one for each core")
      ->type_name("N")
      ->check(IntegerBetween(0, 1024))
      ->capture_default_str();
  app->footer(
      "The file appears when it is complete and reads back, or not at all.\n"
      "\n"
      "Example:\n"
      "  sluice quantize llama-3.2-1b/ llama-3.2-1b.q8_0.gguf --type q8_0");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace sluice::cli
