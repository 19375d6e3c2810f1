#include "cli/chat.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <utility>

#include "CLI/CLI.hpp"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/flags.h"
#include "cli/signals.h"
#include "cli/transcript.h"

#include "engine/base/status.h"

namespace sluice::cli {
namespace {

constexpr char kChatName[] = "chat";
constexpr char kChatPrompt[] = "> ";
constexpr char kChatHelp[] =
    "/reset forgets the conversation, /exit or Ctrl-D ends, Ctrl-C stops a reply.\n";

struct ChatFlags {
  ChatJob job;
  uint64_t seed = 0;
  CLI::Option* seed_option = nullptr;
};

// What is typed and said, turn after turn, until the end of the input. A terminal is shown prompts
// and may go on after errors; other input is answered line by line and ends at the first error.
class ChatLoop {
 public:
  ChatLoop(const ChatJob& job, ChatBackend& backend)
      : backend_(backend), is_terminal_(isatty(STDIN_FILENO) == 1) {
    if (!job.system.empty()) turns_.push_back({"system", job.system});
    num_kept_ = turns_.size();
  }

  // The exit code.
  int Run() {
    if (is_terminal_) std::fputs(kChatHelp, stderr);
    while (true) {
      ShowPrompt();
      std::string line;
      if (!ReadLine(&line)) break;
      num_interrupts_ = 0;
      if (line == "/exit") return kExitOk;
      if (line == "/reset") {
        turns_.resize(num_kept_);
        if (is_terminal_) std::fputs("The conversation is forgotten.\n", stderr);
      } else if (line.starts_with('/') && is_terminal_ && line.find(' ') == std::string::npos) {
        std::fputs(kChatHelp, stderr);
      } else if (line.find_first_not_of(" \t\r") != std::string::npos) {
        const absl::Status status = Say(std::move(line));
        if (FinishOutput(kChatName, kExitOk) != kExitOk) return kExitFailed;
        if (!status.ok() && !is_terminal_) return kExitFailed;
      }
    }
    if (is_terminal_) std::fputs("\n", stderr);
    return kExitOk;
  }

  // On the thread of the signals.
  void OnSignal(int signal_number) {
    if (signal_number != SIGINT) _exit(kExitSignalOffset + signal_number);
    if (replying_) {
      interrupted_ = true;
      return backend_.Cancel();
    }
    // At the prompt: the terminal has dropped the line. Twice means that the user wants to leave.
    if (!is_terminal_ || ++num_interrupts_ > 1) _exit(kExitSignalOffset + signal_number);
    std::fputs("\n(Ctrl-C again or /exit ends)\n", stderr);
    ShowPrompt();
  }

 private:
  void ShowPrompt() const {
    if (is_terminal_) std::fputs(kChatPrompt, stderr);
  }

  // Without its newline; false at the end of the input.
  static bool ReadLine(std::string* line) {
    char* text = nullptr;
    size_t capacity = 0;
    ssize_t size = getline(&text, &capacity, stdin);
    if (size > 0 && text[size - 1] == '\n') --size;
    if (size >= 0) line->assign(text, static_cast<size_t>(size));
    std::free(text);
    return size >= 0;
  }

  absl::Status Say(std::string line) {
    turns_.push_back({"user", std::move(line)});
    std::string reply;
    engine::FinishReason reason = engine::FinishReason::kNone;
    const engine::SteadyClock clock;
    Transcript transcript(stdout, Transcript::Form::kText, 1, clock.Now());
    interrupted_ = false;
    replying_ = true;
    const absl::Status status = backend_.Reply(turns_, [&](const engine::TokenChunk& chunk) {
      reply += chunk.text;
      if (chunk.sequence_end) reason = chunk.sequence_end->reason;
      return transcript.Add(chunk, clock.Now()) && !interrupted_;
    });
    replying_ = false;
    transcript.Finish();
    // What was said stays said; a turn without an answer is taken back.
    if (!reply.empty()) {
      turns_.push_back({"assistant", std::move(reply)});
    } else if (!status.ok()) {
      turns_.pop_back();
    }
    if (interrupted_) {
      std::fputs("[stopped]\n", stderr);
      return absl::OkStatus();
    }
    if (!status.ok()) {
      PrintError(kChatName,
                 absl::StatusCodeToString(status.code()) + ": " + engine::Message(status));
    } else if (reason == engine::FinishReason::kLength ||
               reason == engine::FinishReason::kContext) {
      std::fputs("[cut: no more tokens]\n", stderr);
    }
    return status;
  }

  ChatBackend& backend_;
  const bool is_terminal_;
  std::vector<ChatTurn> turns_;
  size_t num_kept_ = 0;  // turns that /reset leaves: the system prompt
  std::atomic<bool> replying_{false};
  std::atomic<bool> interrupted_{false};
  std::atomic<int> num_interrupts_{0};  // at the prompt, since the last line
};

int Run(ChatFlags& flags) {
  ChatJob& job = flags.job;
  if (job.model.empty() == job.remote.server.empty()) {
    return UsageError(kChatName, "give either --model FILE or --server ADDRESS:PORT");
  }
  if (!job.remote.server.empty() && !job.engine.chat_template_path.empty()) {
    return UsageError(kChatName, "--chat-template is the server's to set: see sluice serve");
  }
  if (const absl::Status status = engine::CheckOptions(job.engine); !status.ok()) {
    return UsageError(kChatName, engine::Message(status));
  }
  if (flags.seed_option->count() > 0) job.seed = flags.seed;
  SignalWatcher signals;
  const auto backend = job.remote.server.empty() ? OpenLocalChat(job) : OpenRemoteChat(job);
  if (!backend.ok()) {
    PrintError(kChatName, absl::StatusCodeToString(backend.status().code()) + ": " +
                              engine::Message(backend.status()));
    return kExitFailed;
  }
  ChatLoop loop(job, **backend);
  signals.ArmEach([&loop](int signal_number) { loop.OnSignal(signal_number); });
  const int exit_code = loop.Run();
  signals.Disarm();
  return FinishOutput(kChatName, exit_code);
}

void AddChatFlags(CLI::App& app, ChatFlags& flags) {
  const char* const group = "Model and conversation";
  AddModelFlag(app, &flags.job.model)->group(group);
  AddRemoteFlags(app, &flags.job.remote, "A running server instead of a file", group);
  app.add_option("--model-name", flags.job.model_name, "With --server: which of its models")
      ->type_name("NAME")
      ->group(group);
  app.add_option("--system", flags.job.system, "What the model is told first")
      ->type_name("TEXT")
      ->group(group);
  AddChatTemplateFlag(app, &flags.job.engine, group);
  app.add_option("--max-tokens", flags.job.max_tokens,
                 "Tokens of a reply, at most; unset: until it ends")
      ->type_name("N")
      ->check(IntegerBetween(1, std::numeric_limits<int32_t>::max()))
      ->group(group);
}

}  // namespace

Command AddChat(CLI::App& program) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* const app =
      program.add_subcommand(kChatName, "Talk to a model, with a local file or through a server");
  AddChatFlags(*app, *flags);
  flags->seed_option = AddSamplingFlags(*app, &flags->job.sampling, &flags->seed, "Sampling");
  AddEngineFlags(*app, &flags->job.engine, "Engine (with --model)");
  AddPlantBugFlag(*app, &flags->job.engine);
  app->footer(
      "Each line is a message; the replies go to stdout, all else to stderr.\n"
      "/reset forgets the conversation, /exit or the end of the input ends it. Ctrl-C stops a "
      "reply;\n"
      "at the prompt a second one ends (exit code 130).\n"
      "\n"
      "Examples:\n"
      "  sluice chat --model smollm2.gguf --system \"Answer in one sentence.\"\n"
      "  sluice chat --server 127.0.0.1:50051 --temperature 0.2\n"
      "  echo \"What is 2 + 2?\" | sluice chat --model smollm2.gguf --temperature 0");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace sluice::cli
