#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <future>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "CLI/CLI.hpp"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/flags.h"
#include "cli/log_scope.h"
#include "cli/progress_bar.h"
#include "cli/signals.h"
#include "cli/version.h"
#include "spdlog/spdlog.h"

#include "engine/base/clock.h"
#include "engine/base/status.h"
#include "server/server.h"

namespace sluice::cli {
namespace {

constexpr char kServeName[] = "serve";
constexpr std::chrono::seconds kMostShutdown{5};    // after the drain
constexpr std::chrono::seconds kMostLogWriting{2};  // within that

struct ServeFlags {
  std::string model;
  std::string log_level = "info";
  server::ServerOptions server;
  engine::EngineOptions engine;
};

std::string HostOf(const std::string& address) { return address.substr(0, address.rfind(':')); }

// The one line on stdout: scripts wait for it and read the port from it.
void PrintReady(const ServeFlags& flags, const server::Server& server,
                const engine::ModelFacts& facts, double seconds) {
  const std::string line = spdlog::fmt_lib::format(
      "ready on {}:{}: {} ({} {}, {:.0f} M parameters), {}, {} KV pages of 16 tokens ({}){}, "
      "{:.2f} s",
      HostOf(flags.server.listen), server.port(),
      flags.server.model_name.empty() ? facts.name : flags.server.model_name, facts.architecture,
      facts.quantization, static_cast<double>(facts.num_parameters) * 1e-6, facts.backend,
      facts.kv_pages, FormatBytes(facts.kv_bytes),
      flags.engine.num_engines > 1
          ? " in each of " + std::to_string(flags.engine.num_engines) + " engines"
          : "",
      seconds);
  std::fputs((flags.server.json_logs ? JsonLine(line) : line + "\n").c_str(), stdout);
  if (std::fflush(stdout) != 0) spdlog::warn("standard output: cannot be written");
}

// Where the memory of a GPU went.
void LogDevice(const engine::ModelFacts& facts) {
  if (facts.device.empty()) return;
  spdlog::info("{}: {} of weights, {} of KV cache, {} of workspace, {} left free", facts.device,
               FormatBytes(facts.weight_bytes), FormatBytes(static_cast<uint64_t>(facts.kv_bytes)),
               FormatBytes(facts.device_workspace_bytes), FormatBytes(facts.device_free_bytes));
}

absl::StatusOr<engine::LoadedModel> Load(const ServeFlags& flags, int num_lanes) {
  ProgressBar bar;
  return engine::LoadModel(flags.model, flags.engine, num_lanes,
                           [&](const engine::LoadProgress& progress) { bar.Update(progress); });
}

// From now on the process ends within kMostShutdown, whatever waits for whatever.
void BoundShutdown() {
  std::thread([] {
    std::this_thread::sleep_for(kMostShutdown);
    _exit(kExitEnginesDown);
  }).detach();
}

// Frees the server and writes what waits in the logs, then ends the process. Both logs join their
// threads, and those may stand in a write to a pipe that nobody reads: then the lines are lost, and
// the exit code is the drain's all the same.
[[noreturn]] void WriteLogsAndExit(std::unique_ptr<server::Server> server, int exit_code) {
  std::promise<void> written;
  const std::future<void> end = written.get_future();
  std::thread([server = std::move(server), written = std::move(written)]() mutable {
    server.reset();
    spdlog::shutdown();
    written.set_value();
  }).detach();
  end.wait_for(kMostLogWriting);
  _exit(exit_code);
}

// Waits until a signal or a fault ends the service and what was accepted is done.
int AwaitEnd(server::Server& server) {
  server.WaitForDrainOrFault();
  int exit_code = kExitOk;
  if (server.engines_down()) {
    exit_code = kExitEnginesDown;
    spdlog::critical("every engine is down after a fault");
  } else if (!server.WaitForDrain()) {
    exit_code = server.engines_down() ? kExitEnginesDown : kExitRequestsCut;
    spdlog::warn("the drain is over: requests were cut");
  } else {
    spdlog::info("the drain is over: every accepted request ended by itself");
  }
  return exit_code;
}

int Run(const ServeFlags& flags) {
  if (flags.model.empty()) return UsageError(kServeName, "give --model PATH");
  if (const absl::Status status = engine::CheckOptions(flags.engine); !status.ok()) {
    return UsageError(kServeName, engine::Message(status));
  }
  const engine::Time start = engine::SteadyClock().Now();
  std::signal(SIGPIPE, SIG_IGN);  // a scraper or log reader that went away is no reason to end
  SignalWatcher signals;
  // Nothing was accepted yet: ending while the model loads loses nothing.
  signals.Arm([] { _exit(kExitOk); });
  LogScope log(flags.log_level, flags.server.json_logs ? LogFormat::kJson : LogFormat::kText);

  absl::StatusOr<std::unique_ptr<server::Server>> server = server::Server::Start(flags.server);
  if (!server.ok()) {
    const std::string message = engine::Message(server.status());
    if (absl::IsInvalidArgument(server.status())) return UsageError(kServeName, message);
    PrintError(kServeName, message);
    return kExitUnavailable;
  }
  spdlog::info("listening on {}:{}, loading {}", HostOf(flags.server.listen), (*server)->port(),
               flags.model);
  if ((*server)->ops_port() != 0) {
    spdlog::info("operators' port on {}:{}", HostOf(flags.server.ops_listen),
                 (*server)->ops_port());
  }
  if ((*server)->metrics_port() != 0) {
    spdlog::info("metrics on {}:{}", HostOf(flags.server.metrics_listen),
                 (*server)->metrics_port());
  }

  absl::StatusOr<engine::LoadedModel> model = Load(flags, (*server)->num_lanes());
  if (!model.ok()) {
    (*server)->Shutdown();
    PrintError(kServeName, engine::Message(model.status()));
    return kExitBadModel;
  }
  for (const std::string& warning : model->warnings) spdlog::warn("{}", warning);
  spdlog::info("{}", model->self_check.message);
  for (const std::string& note : model->notes) spdlog::info("{}", note);
  const engine::ModelFacts facts = model->facts;
  LogDevice(facts);
  // Before the first call can be accepted: from then on a signal has something to lose.
  signals.Arm([&server = **server] {
    spdlog::info(
        "draining: new calls are refused, accepted ones go on; a second signal exits at once");
    server.BeginDrain();
  });
  (*server)->Serve(*std::move(model));
  PrintReady(flags, **server, facts, engine::Seconds(engine::SteadyClock().Now() - start));
  const int exit_code = AwaitEnd(**server);
  BoundShutdown();
  signals.Disarm();
  (*server)->Shutdown();
  WriteLogsAndExit(*std::move(server), exit_code);
}

void AddListenFlags(CLI::App& app, ServeFlags& flags) {
  server::ServerOptions& server = flags.server;
  const char* const group = "Service";
  AddModelFlag(app, &flags.model)->group(group);
  app.add_option("--listen", server.listen, "gRPC service; port 0: a free one; [::]: IPv4 too")
      ->type_name("ADDRESS:PORT")
      ->capture_default_str()
      ->group(group);
  app.add_option("--ops-listen", server.ops_listen,
                 "Operators' port: health for probes, administration; plain text; unset: none")
      ->type_name("ADDRESS:PORT")
      ->group(group);
  app.add_option("--metrics-listen", server.metrics_listen,
                 "Prometheus metrics at /metrics; unset: none")
      ->type_name("ADDRESS:PORT")
      ->group(group);
  app.add_option("--model-name", server.model_name,
                 "How clients name the model; unset: as the file does")
      ->type_name("NAME")
      ->check(PrintableText())
      ->group(group);
  AddChatTemplateFlag(app, &flags.engine, group);
  app.add_flag("--reflection", server.reflection,
               "Answer gRPC reflection (grpcurl), on the operators' port if there is one")
      ->group(group);
  app.add_option("--log-level", flags.log_level, "trace, debug, info, warn, error, off")
      ->type_name("LEVEL")
      ->check(OneOf({"trace", "debug", "info", "warn", "error", "off"}))
      ->capture_default_str()
      ->group(group);
  app.add_option_function<std::string>(
         "--log-format",
         [&server](const std::string& format) { server.json_logs = format == "json"; },
         "text, or json: one JSON object a line")
      ->type_name("FORMAT")
      ->check(OneOf({"text", "json"}))
      ->default_str("text")
      ->group(group);
}

void AddSecurityFlags(CLI::App& app, ServeFlags& flags) {
  server::ServerOptions& server = flags.server;
  const char* const group = "Security";
  const auto file = [&](const char* name, std::string& path, const char* description) {
    app.add_option(name, path, description)->type_name("FILE")->group(group);
  };
  file("--tls-cert", server.tls_cert, "Certificate chain (PEM) for TLS; unset: plain text");
  file("--tls-key", server.tls_key, "Its private key (PEM)");
  file("--tls-client-ca", server.tls_client_ca,
       "Issuers (PEM) of certificates that clients must have; unset: none needed");
  file("--auth-file", server.auth_file,
       "Hashes of tokens with tenants and scopes (JSON); unset: everybody may call");
  file("--tenants", server.tenants_file,
       "Limits of tenants: calls, tokens, KV share, models (JSON); unset: none");
  app.add_flag("--channelz", server.channelz, "Answer channelz on the operators' port")
      ->group(group);
}

void AddConnectionFlags(CLI::App& app, ServeFlags& flags) {
  server::ServerOptions& server = flags.server;
  const char* const group = "Limits and shutdown";
  app.add_option("--max-connections", server.max_connections,
                 "Connections to the service; further ones are closed at once")
      ->type_name("N")
      ->check(IntegerBetween(1, 1'000'000))
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-connections-per-address", server.max_connections_of_address,
                 "Of them from one address of another machine")
      ->type_name("N")
      ->check(IntegerBetween(1, 1'000'000))
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-streams", server.max_open_streams, "Open Generate calls")
      ->type_name("N")
      ->check(IntegerBetween(1, 1'000'000))
      ->capture_default_str()
      ->group(group);
}

void AddLimitFlags(CLI::App& app, ServeFlags& flags) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  server::ServerOptions& server = flags.server;
  const char* const group = "Limits and shutdown";
  app.add_option("--max-queue", flags.engine.max_queue, "Waiting sequences of each engine")
      ->type_name("N")
      ->check(IntegerBetween(1, 1'000'000))
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-queue-tokens", server.max_queue_tokens,
                 "Prompt tokens of calls that have no token yet; 0: no bound")
      ->type_name("TOKENS")
      ->check(IntegerBetween(0, 1'000'000'000'000))
      ->capture_default_str()
      ->group(group);
  AddByteSizeFlag(app, "--max-queue-bytes", &server.max_queue_bytes,
                  "Bytes of their messages; 0: no bound")
      ->default_str("256M")
      ->group(group);
  AddByteSizeFlag(app, "--memory-watermark", &server.memory_watermark,
                  "Resident memory above which no call is let in; 0: none")
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-tokens-cap", server.max_tokens_cap,
                 "Largest max_tokens of a call; 0: what the context leaves")
      ->type_name("TOKENS")
      ->check(IntegerBetween(0, kMost))
      ->capture_default_str()
      ->group(group);
  app.add_option("--delivery-threads", server.delivery_threads,
                 "Threads that write to clients; 0: cores / 4, 1 to 4")
      ->type_name("N")
      ->check(IntegerBetween(0, 256))
      ->capture_default_str()
      ->group(group);
  AddDurationFlag(app, "--stall-timeout", &server.stall_timeout,
                  "A call whose reader takes nothing for so long is aborted")
      ->default_str("30s")
      ->group(group);
  AddDurationFlag(app, "--hang-timeout", &server.hang_timeout,
                  "An engine without a step for so long is given up (docs/reliability.md)")
      ->default_str("10s")
      ->group(group);
  AddDurationFlag(app, "--lame-duck", &server.lame_duck,
                  "After SIGTERM new calls are taken for so long still")
      ->default_str("0s")
      ->group(group);
  AddDurationFlag(app, "--drain-timeout", &server.drain_timeout,
                  "After that, what was accepted may go on for so long")
      ->default_str("30s")
      ->group(group);
}

}  // namespace

Command AddServe(CLI::App& program) {
  auto flags = std::make_shared<ServeFlags>();
  flags->server.build = kBuild;
  CLI::App* const app = program.add_subcommand(kServeName, "Serve a model over gRPC");
  AddListenFlags(*app, *flags);
  AddSecurityFlags(*app, *flags);
  app->add_option("--engines", flags->engine.num_engines,
                  "CPU engines that share the weights, each with its own KV cache")
      ->type_name("N")
      ->check(IntegerBetween(1, 64))
      ->capture_default_str()
      ->group("Engine");
  AddEngineFlags(*app, &flags->engine, "Engine");
  AddConnectionFlags(*app, *flags);
  AddLimitFlags(*app, *flags);
  AddPlantBugFlag(*app, &flags->engine);
  AddFailpointFlag(*app);
  app->footer(
      "Sizes take K, M, G, T (powers of 1024); times take ms, s, m, h.\n"
      "SIGTERM or Ctrl-C drains; a second one exits at once.\n"
      "Exit codes: 0 drained, 2 bad flags, 69 address in use, 70 engine fault, 75 requests were "
      "cut,\n"
      "78 the model cannot be loaded.\n"
      "\n"
      "Example:\n"
      "  sluice serve --model smollm2.gguf --listen 0.0.0.0:50051 --metrics-listen 0.0.0.0:9100 "
      "\\\n"
      "               --kv-memory 2G");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace sluice::cli
