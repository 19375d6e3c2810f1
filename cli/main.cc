#include <exception>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/flags.h"
#include "cli/version.h"

namespace sluice::cli {
namespace {

// "serve, generate, chat": what may follow the name of `app`.
std::string NamesIn(CLI::App& app) {
  std::string names;
  for (const CLI::App* command : app.get_subcommands({})) {
    names += (names.empty() ? "" : ", ") + command->get_name();
  }
  return names;
}

// CLI11 reports what a user mistyped by throwing; this is the one place where it is caught.
int Explain(const CLI::ParseError& error, CLI::App& program, int argc, char** argv) {
  if (error.get_exit_code() == 0)
    return FinishOutput("", program.exit(error));  // --help, --version
  const std::vector<CLI::App*> named = program.get_subcommands();
  if (!named.empty()) {
    const bool lacks_action =
        named.front()->get_subcommands().empty() && !NamesIn(*named.front()).empty();
    std::string message =
        lacks_action ? "give an action: " + NamesIn(*named.front()) : error.what();
    // The name is missing before messages about hidden flags; ours begin with it.
    if (message.rfind(": ", 0) == 0) message.erase(0, 2);
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::ExtrasError)) {
      message = "unknown flag or argument" + message.substr(message.rfind(": "));
    }
    return UsageError(named.front()->get_name(), message);
  }
  const std::string names = NamesIn(program);
  if (argc < 2) return UsageError("", "give a command: " + names);
  if (argv[1][0] != '-') {
    return UsageError("",
                      "unknown command '" + std::string(argv[1]) + "': expected one of " + names);
  }
  return UsageError("", std::string("unknown flag ") + argv[1] + " before a command");
}

int Main(int argc, char** argv) {
  CLI::App program("Sluice turns a GGUF language model into a gRPC service.", "sluice");
  program.formatter(HelpFormatter());
  program.set_version_flag("--version", std::string("sluice ") + kBuild,
                           "Print version and commit");
  program.require_subcommand(1);
  program.footer("sluice COMMAND --help shows the flags of a command, with examples.");
  const std::vector<Command> commands = {
      AddServe(program),   AddGenerate(program), AddChat(program),
      AddInspect(program), AddQuantize(program), AddTokenize(program),
      AddVerify(program),  AddBench(program),    AddCtl(program)};
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return Explain(error, program, argc, argv);
  }
  for (const Command& command : commands) {
    if (command.app->parsed()) return command.run();
  }
  return kExitUsage;
}

}  // namespace
}  // namespace sluice::cli

int main(int argc, char** argv) { return sluice::cli::Main(argc, argv); }
