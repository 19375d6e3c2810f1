#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <utility>

#include "CLI/CLI.hpp"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/flags.h"
#include "cli/remote.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/grpcpp.h"

#include "engine/base/status.h"
#include "sluice/v1/admin.grpc.pb.h"

namespace sluice::cli {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

constexpr char kCtlName[] = "ctl";

struct CtlFlags {
  RemoteFlags remote;
  std::chrono::milliseconds timeout{5'000};
  std::string service;                 // of probe
  std::chrono::milliseconds pause{0};  // of sleep
};

// A connection to an operators' port, for the calls of one run of the command.
class Operator {
 public:
  static absl::StatusOr<Operator> Connect(const CtlFlags& flags) {
    ASSIGN_OR_RETURN(Remote remote, Remote::Open(flags.remote));
    return Operator(std::move(remote), flags.timeout);
  }

  // The name of the status of a service, "SERVING"; an error when there is no answer.
  absl::StatusOr<std::string> HealthOf(const std::string& service) {
    HealthCheckRequest request;
    request.set_service(service);
    HealthCheckResponse response;
    RETURN_IF_ERROR(Call(*health_, &Health::Stub::Check, request, &response));
    return HealthCheckResponse::ServingStatus_Name(response.status());
  }

  template <typename Request, typename Response>
  absl::Status Administer(grpc::Status (v1::Admin::Stub::*method)(grpc::ClientContext*,
                                                                  const Request&, Response*),
                          Response* response) {
    return Call(*admin_, method, Request(), response);
  }

 private:
  Operator(Remote remote, std::chrono::milliseconds timeout)
      : remote_(std::move(remote)), deadline_(std::chrono::system_clock::now() + timeout) {
    const auto channel = remote_.Connect(grpc::ChannelArguments());
    health_ = Health::NewStub(channel);
    admin_ = v1::Admin::NewStub(channel);
  }

  template <typename Stub, typename Request, typename Response>
  absl::Status Call(Stub& stub,
                    grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    context.set_deadline(deadline_);
    remote_.Sign(context);
    const grpc::Status status = (stub.*method)(&context, request, response);
    return engine::MakeStatus(static_cast<absl::StatusCode>(status.error_code()),
                              status.error_message());
  }

  Remote remote_;
  std::chrono::system_clock::time_point deadline_;  // of all calls together
  std::unique_ptr<Health::Stub> health_;
  std::unique_ptr<v1::Admin::Stub> admin_;
};

int Fail(const absl::Status& status) {
  PrintError(kCtlName, absl::StatusCodeToString(status.code()) + ": " + engine::Message(status));
  return kExitFailed;
}

void PrintLoad(const v1::Status& status) {
  std::printf("server: %s, %s, up for %.0f s, %s resident%s\n", status.build().c_str(),
              status.model().empty() ? "no model yet" : status.model().c_str(), status.uptime(),
              FormatBytes(status.resident_bytes()).c_str(),
              status.short_of_memory() ? ", short of memory" : "");
  std::printf("calls: %lld open, %lld connections%s\n",
              static_cast<long long>(status.load().open_streams()),
              static_cast<long long>(status.connections()),
              status.load().draining() ? ", draining" : "");
  for (const v1::EngineLoad& engine : status.load().engines()) {
    std::printf(
        "engine %d: %s, %lld running, %lld waiting, %lld of %lld pages free, %.1f tokens/s\n",
        engine.engine(), engine.up() ? "up" : "down", static_cast<long long>(engine.running()),
        static_cast<long long>(engine.waiting()), static_cast<long long>(engine.kv_pages_free()),
        static_cast<long long>(engine.kv_pages_total()), engine.tokens_per_second());
  }
}

int RunStatus(Operator& server) {
  constexpr std::pair<const char*, const char*> kServices[] = {
      {"ready", ""}, {"live", "liveness"}, {"started", "startup"}};
  std::string health;
  for (const auto& [name, service] : kServices) {
    const absl::StatusOr<std::string> status = server.HealthOf(service);
    if (!status.ok()) return Fail(status.status());
    health += std::string(health.empty() ? "" : ", ") + name + " " + *status;
  }
  std::printf("health: %s\n", health.c_str());
  v1::Status status;
  const absl::Status answer = server.Administer(&v1::Admin::Stub::GetStatus, &status);
  if (answer.ok()) {
    PrintLoad(status);
    return kExitOk;
  }
  // Health is everybody's; the rest is for administrators on the operators' port.
  const bool closed = absl::IsPermissionDenied(answer) || absl::IsUnauthenticated(answer) ||
                      absl::IsUnimplemented(answer);
  if (!closed) return Fail(answer);
  PrintError(kCtlName, "no more than health: " + engine::Message(answer));
  return kExitOk;
}

int RunDrain(Operator& server) {
  v1::DrainResponse response;
  const absl::Status answer = server.Administer(&v1::Admin::Stub::Drain, &response);
  if (!answer.ok()) return Fail(answer);
  std::printf("draining: %lld calls open\n", static_cast<long long>(response.open_streams()));
  return kExitOk;
}

int RunReload(Operator& server) {
  v1::ReloadResponse response;
  const absl::Status answer = server.Administer(&v1::Admin::Stub::Reload, &response);
  if (!answer.ok()) return Fail(answer);
  bool in_force = true;
  for (const auto& file : response.files()) {
    in_force = in_force && file.in_force();
    std::printf("%s: %s\n", file.name().c_str(),
                file.in_force() ? "in force" : ("refused: " + file.error()).c_str());
  }
  return in_force ? kExitOk : kExitFailed;
}

int RunProbe(Operator& server, const CtlFlags& flags) {
  const absl::StatusOr<std::string> status = server.HealthOf(flags.service);
  if (!status.ok()) return Fail(status.status());
  std::printf("%s\n", status->c_str());
  return *status == "SERVING" ? kExitOk : kExitFailed;
}

int Run(const CLI::App& app, const CtlFlags& flags) {
  const std::string action = app.get_subcommands().front()->get_name();
  if (action == "sleep") {
    std::this_thread::sleep_for(flags.pause);
    return kExitOk;
  }
  if (flags.remote.server.empty()) return UsageError(kCtlName, "give --server ADDRESS:PORT");
  absl::StatusOr<Operator> server = Operator::Connect(flags);
  if (!server.ok()) return UsageError(kCtlName, engine::Message(server.status()));
  const int exit_code = action == "status"   ? RunStatus(*server)
                        : action == "drain"  ? RunDrain(*server)
                        : action == "reload" ? RunReload(*server)
                                             : RunProbe(*server, flags);
  return FinishOutput(kCtlName, exit_code);
}

CLI::App* AddAction(CLI::App& app, CtlFlags* flags, const char* name, const char* description) {
  CLI::App* const action = app.add_subcommand(name, description);
  AddRemoteFlags(*action, &flags->remote, "Its operators' port, or its service where it has none",
                 "Options");
  AddDurationFlag(*action, "--timeout", &flags->timeout, "For the answer")->default_str("5s");
  return action;
}

}  // namespace

Command AddCtl(CLI::App& program) {
  auto flags = std::make_shared<CtlFlags>();
  CLI::App* const app =
      program.add_subcommand(kCtlName, "Ask and operate a running server; for people and hooks");
  app->require_subcommand(1);
  AddAction(*app, flags.get(), "status", "Show its health, and what it does (scope admin)");
  AddAction(*app, flags.get(), "drain", "Begin a drain, as SIGTERM does (scope admin)");
  AddAction(*app, flags.get(), "reload",
            "Look at its files of credentials, tenants and certificates (scope admin)");
  CLI::App* const probe =
      AddAction(*app, flags.get(), "probe", "Exit with 0 when it is SERVING, else with 1");
  probe
      ->add_option("--service", flags->service,
                   "liveness, startup, model/NAME; unset: ready for calls")
      ->type_name("NAME");
  CLI::App* const pause = app->add_subcommand(
      "sleep", "Wait: for a preStop hook of an image that has no other program");
  AddDurationFlag(*pause, "time", &flags->pause, "500ms, 15s, 2m; a bare number is seconds")
      ->required();
  app->footer(
      "Exit codes: 0 done (probe: SERVING), 1 not, 2 bad flags.\n"
      "\n"
      "Examples:\n"
      "  sluice ctl status --server 127.0.0.1:9090 --token-file admin.token\n"
      "  sluice ctl probe --server 127.0.0.1:9090 --service liveness\n"
      "  sluice ctl sleep 15");
  return {app, [app, flags] { return Run(*app, *flags); }};
}

}  // namespace sluice::cli
