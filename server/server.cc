#include "server/server.h"

#include <grpcpp/server.h>
#include <malloc.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/base/mutex.h"
#include "engine/base/status.h"
#include "server/admin_service.h"
#include "server/configuration.h"
#include "server/delivery.h"
#include "server/frontend.h"
#include "server/hang_detector.h"
#include "server/health_service.h"
#include "server/inference_service.h"
#include "server/library_log.h"
#include "server/listener.h"
#include "server/listener_probe.h"
#include "server/metrics.h"
#include "server/process_stats.h"

namespace sluice::server {
namespace {

using engine::Seconds;
using engine::Time;
using std::chrono::milliseconds;

constexpr milliseconds kWatchInterval{50};
constexpr milliseconds kCutGrace{2000};
constexpr milliseconds kFaultGrace{1000};
constexpr milliseconds kTrimInterval{1000};
constexpr milliseconds kFullTrimInterval{10'000};
constexpr size_t kMostFreeBytes = 32 << 20;
constexpr int kMaxOpsConnections = 256;
constexpr milliseconds kLeastPatience{100};  // two looks of the watcher
// Of the watcher's time between two looks, what counts as an engine's: a process that was stopped,
// or starved, is not one that hangs.
constexpr milliseconds kMostOfALook{4 * kWatchInterval};
// A step may take so many times as long as its tokens took when they were few.
constexpr double kStepPatience = 4;

Time Now() { return std::chrono::steady_clock::now(); }

engine::Duration Nanoseconds(double seconds) {
  return std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
}

int NumCores() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

}  // namespace

class Server::Impl {
 public:
  explicit Impl(const ServerOptions& options)
      : frontend_(options, std::clamp(NumCores() / 2, 1, 4)),
        health_(&frontend_.authenticator),
        inference_(&frontend_),
        admin_([this] { BeginDrain(); }, &frontend_) {}
  ~Impl() { Shutdown(); }

  absl::Status Start();
  void Serve(engine::LoadedModel model);
  void BeginDrain();
  bool WaitForDrain();
  void WaitForDrainOrFault();
  void Shutdown();

  int port() const { return port_; }
  int ops_port() const { return ops_.acceptor ? ops_.acceptor->port() : 0; }
  int metrics_port() const { return metrics_ ? metrics_->port() : 0; }
  bool engines_down() const { return engines_down_.load(); }
  int num_lanes() const {
    const int wanted = frontend_.options.delivery_threads;
    return wanted > 0 ? wanted : std::clamp(NumCores() / 4, 1, 4);
  }

 private:
  absl::Status StartService();
  absl::Status StartOps();
  void SetReady(bool ready) {
    health_.SetReady(ready);
    ops_health_.SetReady(ready);
  }
  void SetLive(bool live) {
    health_.SetLive(live);
    ops_health_.SetLive(live);
  }
  void Watch();
  // What the watcher has seen of an engine.
  struct Watched {
    int64_t last_step_nanos = 0;
    HangDetector hang{kMostOfALook};
    bool fault_logged = false;
  };
  void CheckEngines();
  // Looks at what an engine has done in the last `passed`.
  void CheckProgress(int index, engine::Duration passed);
  void LogFault(int index);
  void CheckMemory();
  // Gives memory that is free back to the kernel when it is much.
  void TrimMemory();
  // Something broke for good: not live, and WaitForDrainOrFault returns.
  void Fault(const char* what);
  // False when some are still open kCutGrace after the first cut.
  bool CutOpenCalls(const std::string& message);

  Frontend frontend_;
  Metrics::Startup startup_;
  HealthService health_;
  HealthService ops_health_{nullptr};  // probes show no credentials
  InferenceService inference_;
  AdminService admin_;
  std::unique_ptr<ServedModel> model_;  // set once by Serve, then published in the frontend
  std::unique_ptr<Delivery> delivery_;
  Listener service_;
  Listener ops_;  // empty without an address for it
  std::unique_ptr<Metrics> metrics_;
  int port_ = 0;
  Time next_full_trim_ = Now();  // watcher only

  std::atomic<bool> engines_down_{false};
  engine::Duration hang_timeout_{};  // set by Serve
  std::vector<Watched> watched_;     // watcher only; by engine
  Time last_look_ = Now();           // watcher only
  engine::Mutex mutex_;
  engine::CondVar changed_;
  std::optional<Time> drain_began_ ABSL_GUARDED_BY(mutex_);
  std::optional<Time> cut_until_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool shut_down_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread watcher_;
};

absl::Status Server::Impl::Start() {
  const ServerOptions& options = frontend_.options;
  if (!options.metrics_listen.empty()) {
    RETURN_IF_ERROR(CheckAddress("--metrics-listen", options.metrics_listen));
  }
  if (options.channelz && options.ops_listen.empty()) {
    return engine::InvalidArgument(
        "--channelz is answered on the operators' port: give --ops-listen");
  }
  for (const auto& [flag, patience] : {std::pair("--hang-timeout", options.hang_timeout),
                                       std::pair("--stall-timeout", options.stall_timeout)}) {
    if (patience < kLeastPatience) {
      return engine::InvalidArgument(std::string(flag) + ": expected " +
                                     std::to_string(kLeastPatience.count()) + " ms at least");
    }
  }
  RETURN_IF_ERROR(LoadConfiguration(&frontend_));
  RETURN_IF_ERROR(StartService());
  if (!options.ops_listen.empty()) RETURN_IF_ERROR(StartOps());
  if (!options.metrics_listen.empty()) {
    ASSIGN_OR_RETURN(metrics_, Metrics::Listen(options.metrics_listen, &frontend_, &startup_));
  }
  frontend_.reloader.Start();
  watcher_ = std::thread([this] { Watch(); });
  return absl::OkStatus();
}

absl::Status Server::Impl::StartService() {
  const ServerOptions& options = frontend_.options;
  ListenOptions listen;
  listen.name = "--listen";
  listen.address = options.listen;
  listen.authenticator = &frontend_.authenticator;
  if (!options.tls_cert.empty()) listen.certificates = &frontend_.certificates;
  listen.max_connections = options.max_connections;
  listen.max_connections_of_address = options.max_connections_of_address;
  listen.reflection = options.reflection && options.ops_listen.empty();
  listen.services = {&inference_, &health_};
  ASSIGN_OR_RETURN(service_, Listen(listen));
  frontend_.connections = service_.connections;
  port_ = service_.acceptor->port();
  return absl::OkStatus();
}

// Plain text: the probes of Kubernetes speak nothing else, nor can they show credentials.
absl::Status Server::Impl::StartOps() {
  const ServerOptions& options = frontend_.options;
  ListenOptions listen;
  listen.name = "--ops-listen";
  listen.address = options.ops_listen;
  listen.authenticator = &frontend_.authenticator;
  listen.max_connections = kMaxOpsConnections;
  listen.max_connections_of_address = kMaxOpsConnections;
  listen.reflection = options.reflection;
  listen.channelz = options.channelz;
  listen.services = {&ops_health_, &admin_};
  ASSIGN_OR_RETURN(ops_, Listen(listen));
  return absl::OkStatus();
}

void Server::Impl::Serve(engine::LoadedModel model) {
  SLUICE_CHECK(model_ == nullptr, "a server serves one model, once");
  const double seconds = Seconds(Now() - frontend_.started);
  startup_.self_check_seconds = model.self_check.seconds;
  startup_.load_seconds = std::max(0.0, seconds - model.self_check.seconds);
  model_ = std::make_unique<ServedModel>(std::move(model), frontend_.options.model_name,
                                         frontend_.options.build, frontend_.options.max_tokens_cap);
  // A step of many tokens costs each of them less than the few of the self-check did.
  hang_timeout_ = frontend_.options.hang_timeout;
  for (const auto& engine : model_->dispatcher().engines()) {
    const double step =
        model_->loaded.self_check.seconds_per_token * engine->limits().max_step_tokens;
    hang_timeout_ = std::max(hang_timeout_, Nanoseconds(kStepPatience * step));
  }
  delivery_ = std::make_unique<Delivery>(&model_->dispatcher().chunks(), &frontend_.calls);
  startup_.ready_seconds = Seconds(Now() - frontend_.started);
  for (HealthService* health : {&health_, &ops_health_}) {
    health->SetModel(model_->name);
    health->SetStarted();
  }
  frontend_.model.store(model_.get());
  if (!frontend_.draining.load()) SetReady(true);
  // A drain that began in between has seen no model: its word is the last.
  if (frontend_.draining.load()) SetReady(false);
}

void Server::Impl::BeginDrain() {
  frontend_.draining.store(true);
  SetReady(false);
  if (frontend_.options.lame_duck.count() == 0) frontend_.refusing.store(true);
  engine::MutexLock lock(mutex_);
  if (!drain_began_) drain_began_ = Now();
  changed_.NotifyAll();
}

void Server::Impl::WaitForDrainOrFault() {
  engine::MutexLock lock(mutex_);
  while (!drain_began_ && !stopping_ && !engines_down_.load()) changed_.Wait(mutex_);
}

bool Server::Impl::WaitForDrain() {
  Time refuse_at;
  {
    engine::MutexLock lock(mutex_);
    refuse_at = drain_began_.value_or(Now()) + frontend_.options.lame_duck;
    while (!engines_down_.load() && !stopping_ && Now() < refuse_at) {
      changed_.WaitUntil(mutex_, refuse_at);
    }
  }
  frontend_.refusing.store(true);
  const bool in_time = frontend_.calls.WaitUntilEmpty(Now() + frontend_.options.drain_timeout);
  if (!in_time) CutOpenCalls("the server stops before this call could end");
  const ServedModel* model = frontend_.model.load();
  return in_time && (model == nullptr || model->dispatcher().any_up());
}

bool Server::Impl::CutOpenCalls(const std::string& message) {
  Time until;
  {
    engine::MutexLock lock(mutex_);
    if (!cut_until_) cut_until_ = Now() + kCutGrace;
    until = *cut_until_;
  }
  for (const auto& call : frontend_.calls.All()) call->Cut("DRAINING", message);
  return frontend_.calls.WaitUntilEmpty(until);
}

void Server::Impl::Watch() {
  const milliseconds patience = frontend_.options.stall_timeout;
  const milliseconds stall_interval = std::clamp(patience / 8, milliseconds{5}, milliseconds{500});
  Time next_stall_check = Now() + stall_interval;
  Time next_trim = Now() + kTrimInterval;
  ListenerProbe::Options probing;
  // A server of TLS waits for the client to begin, and hangs up on what is no TLS.
  if (!frontend_.options.tls_cert.empty()) {
    probing.hello = "no TLS\n";
    probing.on_hello = LibraryLog::ExpectFailedHandshake;
  }
  ListenerProbe probe(TcpAddress::Resolve(frontend_.options.listen, port_), probing);
  while (true) {
    {
      engine::MutexLock lock(mutex_);
      const Time until = std::min(Now() + kWatchInterval, next_stall_check);
      while (!stopping_ && Now() < until) changed_.WaitUntil(mutex_, until);
      if (stopping_) return;
    }
    CheckEngines();
    CheckMemory();
    // Without descriptors, or with every place taken, nobody is greeted; that passes.
    const bool crowded = service_.acceptor->starved() || service_.connections->full();
    if (!crowded && probe.Tick(Now())) Fault("the service takes no connections any more");
    if (Now() < next_stall_check) continue;
    for (const auto& call : frontend_.calls.All()) call->CheckStall(Now());
    next_stall_check = Now() + stall_interval;
    if (Now() < next_trim) continue;
    TrimMemory();
    next_trim = Now() + kTrimInterval;
  }
}

void Server::Impl::CheckEngines() {
  const ServedModel* model = frontend_.model.load();
  const Time now = Now();
  const engine::Duration passed = now - std::exchange(last_look_, now);
  if (model == nullptr || engines_down_.load()) return;
  const int num_engines = static_cast<int>(model->dispatcher().engines().size());
  watched_.resize(static_cast<size_t>(num_engines));
  for (int i = 0; i < num_engines; ++i) CheckProgress(i, passed);
  // They are up from the start: one that is not has failed, however soon after that.
  for (int i = 0; i < num_engines; ++i) LogFault(i);
  if (!model->dispatcher().any_up()) Fault("all engines are down");
}

void Server::Impl::CheckMemory() {
  const uint64_t most = frontend_.options.memory_watermark;
  if (most == 0) return;
  const uint64_t resident = ResidentBytes();
  Admission& admission = frontend_.admission;
  // Back only well below, or it would go to and fro with every call.
  const bool is_short = resident > (admission.short_of_memory() ? most / 20 * 19 : most);
  if (is_short == admission.short_of_memory()) return;
  admission.SetShortOfMemory(is_short);
  spdlog::warn("{} bytes are resident, the watermark is {}: calls are {}", resident, most,
               is_short ? "refused" : "let in again");
}

// What calls leave free in the heaps of gRPC's threads glibc keeps, because something small lies at
// their ends: after a flood of calls that are reset hundreds of megabytes, and of usual calls some
// more each hour, in one heap after the other.
void Server::Impl::TrimMemory() {
  if (Now() >= next_full_trim_) {
    malloc_trim(0);
    next_full_trim_ = Now() + kFullTrimInterval;
  } else if (mallinfo2().fordblks > kMostFreeBytes) {
    malloc_trim(kMostFreeBytes / 2);
  }
}

void Server::Impl::CheckProgress(int index, engine::Duration passed) {
  engine::Dispatcher& dispatcher = frontend_.model.load()->dispatcher();
  const engine::Engine& engine = *dispatcher.engines()[static_cast<size_t>(index)];
  Watched& watched = watched_[static_cast<size_t>(index)];
  if (!engine.up()) return;
  if (engine.crashed()) return dispatcher.Abandon(index, "the engine broke off");
  const int64_t last_step_nanos = engine.stats().last_step_nanos.load();
  const bool moves = engine.idle() || watched.last_step_nanos != last_step_nanos;
  watched.last_step_nanos = last_step_nanos;
  if (moves) return watched.hang.Moves();
  watched.hang.StandsStill(passed, ReadThreadTimes(engine.thread_id()));
  if (watched.hang.without_progress() > hang_timeout_) {
    dispatcher.Abandon(index, "the engine makes no progress");
  }
}

void Server::Impl::LogFault(int index) {
  const auto& dispatcher = frontend_.model.load()->dispatcher();
  const engine::Engine& engine = *dispatcher.engines()[static_cast<size_t>(index)];
  if (engine.up() || std::exchange(watched_[static_cast<size_t>(index)].fault_logged, true)) return;
  std::string what;
  if (engine.crashed()) {
    what = "an exception ended its thread";
  } else if (engine.abandoned()) {
    what = "it has work and has ended no step for " +
           std::to_string(engine::Seconds(hang_timeout_)) + " s";
  } else {
    what = engine.stats().fault;
  }
  spdlog::error("engine {} failed and is out of service: {}", index, what);
}

void Server::Impl::Fault(const char* what) {
  if (engines_down_.load()) return;
  SetReady(false);
  SetLive(false);
  spdlog::error("{}", what);
  engines_down_.store(true);
  engine::MutexLock lock(mutex_);
  changed_.NotifyAll();
}

// The order matters: calls end while delivery and engines still run, the library stops when no call
// is left or its deadline cancels the rest, and only then what the calls use goes away.
void Server::Impl::Shutdown() {
  {
    engine::MutexLock lock(mutex_);
    if (shut_down_) return;
    shut_down_ = true;
  }
  BeginDrain();
  frontend_.refusing.store(true);
  health_.EndWatches();
  ops_health_.EndWatches();
  // What a fault ended is on its way to its clients, with the fault for its reason.
  if (engines_down_.load()) frontend_.calls.WaitUntilEmpty(Now() + kFaultGrace);
  CutOpenCalls("the server is stopping");
  frontend_.text_pool.Stop();  // the library waits for the calls whose texts wait here
  // The library waits for clients to hang up, and some look only when they have a call.
  const auto until = std::chrono::system_clock::now() + kCutGrace;
  for (const Listener* listener : {&service_, &ops_}) {
    if (listener->acceptor) listener->acceptor->Stop();
    if (listener->guard) listener->guard->Stop();
    if (!listener->server) continue;
    listener->server->Shutdown(until);
    listener->server->Wait();
  }
  {
    engine::MutexLock lock(mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  if (watcher_.joinable()) watcher_.join();
  metrics_.reset();
  if (model_) {
    model_->dispatcher().Shutdown();
    model_->dispatcher().chunks().Close();
  }
  delivery_.reset();
  service_.server.reset();
  ops_.server.reset();
}

Server::Server() = default;
Server::~Server() = default;

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  std::unique_ptr<Server> server(new Server());
  server->impl_ = std::make_unique<Impl>(options);
  RETURN_IF_ERROR(server->impl_->Start());
  return server;
}

int Server::port() const { return impl_->port(); }
int Server::ops_port() const { return impl_->ops_port(); }
int Server::metrics_port() const { return impl_->metrics_port(); }
int Server::num_lanes() const { return impl_->num_lanes(); }
void Server::Serve(engine::LoadedModel model) { impl_->Serve(std::move(model)); }
void Server::BeginDrain() { impl_->BeginDrain(); }
bool Server::WaitForDrain() { return impl_->WaitForDrain(); }
bool Server::engines_down() const { return impl_->engines_down(); }
void Server::WaitForDrainOrFault() { impl_->WaitForDrainOrFault(); }
void Server::Shutdown() { impl_->Shutdown(); }

}  // namespace sluice::server
