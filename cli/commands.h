#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace sluice::cli {

// A subcommand whose flags are registered with the parser; `run` is called after parsing when the
// subcommand was named, and returns the exit code.
struct Command {
  CLI::App* app = nullptr;
  std::function<int()> run;
};

Command AddServe(CLI::App& program);
Command AddGenerate(CLI::App& program);
Command AddChat(CLI::App& program);
Command AddInspect(CLI::App& program);
Command AddQuantize(CLI::App& program);
Command AddTokenize(CLI::App& program);
Command AddVerify(CLI::App& program);
Command AddBench(CLI::App& program);
Command AddCtl(CLI::App& program);

}  // namespace sluice::cli
