#include "cli/generate.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>

#include "CLI/CLI.hpp"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/flags.h"

#include "engine/base/status.h"

namespace sluice::cli {
namespace {

constexpr char kGenerateName[] = "generate";
constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

struct GenerateFlags {
  GenerateJob job;
  std::string prompt, prompt_file, token_ids;
  bool no_special = false, no_bos = false;
  CLI::Option* prompt_option = nullptr;
  CLI::Option* seed_option = nullptr;
  uint64_t seed = 0;
};

void AddInputFlags(CLI::App& app, GenerateFlags& flags) {
  const char* const group = "Model and prompt";
  AddModelFlag(app, &flags.job.model)->group(group);
  AddRemoteFlags(app, &flags.job.remote, "A running server instead of a file", group);
  app.add_flag("--resume", flags.job.resume,
               "With --server: go on when the stream breaks, at the next of A:P,B:P,...")
      ->group(group);
  app.add_option("--model-name", flags.job.model_name, "With --server: which of its models")
      ->type_name("NAME")
      ->group(group);
  flags.prompt_option = app.add_option("--prompt", flags.prompt, "Text to go on from")
                            ->type_name("TEXT")
                            ->group(group);
  app.add_option("--prompt-file", flags.prompt_file, "File with the text; - is standard input")
      ->type_name("FILE")
      ->group(group);
  app.add_option("--token-ids", flags.token_ids, "Token ids to go on from: 1,2,3")
      ->type_name("IDS")
      ->group(group);
  app.add_flag("--no-special", flags.no_special,
               "Take control tokens in the text as ordinary characters")
      ->group(group);
  app.add_flag("--no-bos", flags.no_bos, "Do not put the model's BOS before the text")
      ->group(group);
}

void AddStoppingFlags(CLI::App& app, GenerateFlags& flags) {
  const char* const group = "Stopping and output";
  engine::StoppingParams& stopping = flags.job.stopping;
  app.add_option("--max-tokens", stopping.max_tokens,
                 "Tokens of a sequence, at most; unset: until it ends")
      ->type_name("N")
      ->check(IntegerBetween(1, kMost))
      ->group(group);
  app.add_option("--min-tokens", stopping.min_tokens, "No end before so many")
      ->type_name("N")
      ->check(IntegerBetween(0, kMost))
      ->capture_default_str()
      ->group(group);
  app.add_option("--stop", stopping.stop, "End at this text (may be given up to 16 times)")
      ->type_name("TEXT")
      ->allow_extra_args(false)
      ->check(CLI::Validator(
          [](std::string& text) -> std::string {
            return !text.empty() && text.size() <= 256 ? "" : "expected 1 to 256 bytes of text";
          },
          ""))
      ->group(group);
  app.add_flag("--ignore-eos", stopping.ignore_eos, "Go on after the model's end token")
      ->group(group);
  app.add_option("--logprobs", flags.job.output.logprobs,
                 "Print each token's log probability and the N best")
      ->type_name("N")
      ->check(IntegerBetween(0, 20))
      ->group(group);
  app.add_flag("--print-token-ids", flags.job.print_token_ids, "Print token ids, not text")
      ->group(group);
}

absl::StatusOr<std::string> ReadPromptFile(const std::string& path) {
  std::string text;
  std::FILE* const file = path == "-" ? stdin : std::fopen(path.c_str(), "rb");
  if (file == nullptr) return engine::NotFound(path + ": " + std::strerror(errno));
  char buffer[1 << 16];
  size_t count = 0;
  while ((count = std::fread(buffer, 1, sizeof(buffer), file)) > 0) text.append(buffer, count);
  const bool failed = std::ferror(file) != 0;
  if (file != stdin) std::fclose(file);
  if (failed) return engine::DataLoss(path + ": cannot be read");
  return text;
}

// The checks that concern several flags. An empty string when all is well.
std::string CheckFlags(const GenerateFlags& flags) {
  if (flags.job.model.empty() == flags.job.remote.server.empty()) {
    return "give either --model FILE or --server ADDRESS:PORT";
  }
  if (flags.job.resume && flags.job.remote.server.empty()) return "--resume goes with --server";
  if (flags.job.resume && flags.job.sampling.n != 1) return "--resume is for one sequence";
  const std::string& servers = flags.job.remote.server;
  if (!flags.job.resume && servers.find(',') != std::string::npos) {
    return "--server: more than one goes with --resume";
  }
  if (("," + servers + ",").find(",,") != std::string::npos && !servers.empty()) {
    return "--server: expected ADDRESS:PORT,ADDRESS:PORT,...";
  }
  const int prompts = (flags.prompt_option->count() > 0 ? 1 : 0) +
                      (flags.prompt_file.empty() ? 0 : 1) + (flags.token_ids.empty() ? 0 : 1);
  if (prompts != 1) return "give one of --prompt, --prompt-file and --token-ids";
  const engine::StoppingParams& stopping = flags.job.stopping;
  if (stopping.max_tokens > 0 && stopping.min_tokens > stopping.max_tokens) {
    return "--min-tokens " + std::to_string(stopping.min_tokens) + " is above --max-tokens " +
           std::to_string(stopping.max_tokens);
  }
  if (stopping.stop.size() > 16) return "--stop may be given 16 times at most";
  return engine::Message(engine::CheckOptions(flags.job.engine));
}

int Run(GenerateFlags& flags) {
  GenerateJob& job = flags.job;
  if (const std::string problem = CheckFlags(flags); !problem.empty()) {
    return UsageError(kGenerateName, problem);
  }
  if (!flags.token_ids.empty()) {
    absl::StatusOr<std::vector<int32_t>> ids = ParseTokenIds(flags.token_ids);
    if (!ids.ok())
      return UsageError(kGenerateName, "--token-ids: " + engine::Message(ids.status()));
    job.token_ids = *std::move(ids);
  } else if (!flags.prompt_file.empty()) {
    absl::StatusOr<std::string> text = ReadPromptFile(flags.prompt_file);
    if (!text.ok()) {
      PrintError(kGenerateName, "--prompt-file: " + engine::Message(text.status()));
      return kExitFailed;
    }
    job.text = *std::move(text);
  } else {
    job.text = flags.prompt;
  }
  job.add_special = !flags.no_bos;
  job.parse_special = !flags.no_special;
  job.output.return_token_ids = true;  // the transcript counts them
  if (flags.seed_option->count() > 0) job.seed = flags.seed;

  SignalWatcher signals;
  const absl::StatusOr<GenerateOutcome> outcome =
      job.remote.server.empty() ? GenerateLocally(job, signals) : GenerateRemotely(job, signals);
  // Text that cannot be written cancels the call: say that, not that it was cancelled.
  if (FinishOutput(kGenerateName, kExitOk) != kExitOk) return kExitFailed;
  const absl::Status status = outcome.ok() ? outcome->status : outcome.status();
  if (outcome.ok() && !outcome->summary.empty()) {
    std::fprintf(stderr, "%s\n", outcome->summary.c_str());
  }
  if (status.ok()) return kExitOk;
  if (signals.first_signal() != 0) return kExitSignalOffset + signals.first_signal();
  PrintError(kGenerateName,
             absl::StatusCodeToString(status.code()) + ": " + engine::Message(status));
  return kExitFailed;
}

}  // namespace

Command AddGenerate(CLI::App& program) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* const app = program.add_subcommand(
      kGenerateName, "Continue a prompt, with a local file or through a server");
  AddInputFlags(*app, *flags);
  const char* const sampling_group = "Sampling";
  engine::SamplingParams& sampling = flags->job.sampling;
  flags->seed_option = AddSamplingFlags(*app, &sampling, &flags->seed, sampling_group);
  app->add_option("--n", sampling.n, "Sequences to make from the prompt")
      ->type_name("N")
      ->check(IntegerBetween(1, 16))
      ->capture_default_str()
      ->group(sampling_group);
  AddStoppingFlags(*app, *flags);
  AddEngineFlags(*app, &flags->job.engine, "Engine (with --model)");
  AddPlantBugFlag(*app, &flags->job.engine);
  app->footer(
      "The text goes to stdout as it is made; one line with speed and latency follows on stderr.\n"
      "\n"
      "Examples:\n"
      "  sluice generate --model smollm2.gguf --prompt \"1 2 3 4 5\" --max-tokens 20 "
      "--temperature 0\n"
      "  sluice generate --server 127.0.0.1:50051 --prompt-file question.txt --seed 7\n"
      "  sluice generate --server 10.0.0.1:50051,10.0.0.2:50051 --resume --prompt \"1 2 3\"\n"
      "  sluice generate --model smollm2.gguf --token-ids 504,3575,282 --print-token-ids");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace sluice::cli
