#include "server/metrics.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "prometheus/collectable.h"
#include "prometheus/exposer.h"

#include "engine/base/status.h"
#include "server/acceptor.h"
#include "server/library_log.h"
#include "server/metric_families.h"
#include "server/process_stats.h"
#include "server/tcp_address.h"

namespace sluice::server {
namespace {

double Load(const std::atomic<int64_t>& value) { return static_cast<double>(value.load()); }
double Load(const std::atomic<uint64_t>& value) { return static_cast<double>(value.load()); }

double KvUsage(const engine::EngineStats& stats) {
  const double total = Load(stats.kv_pages_total);
  return total == 0 ? 0 : (total - Load(stats.kv_pages_free)) / total;
}

void AddEngineGauges(const engine::EngineStats& stats, const Labels& labels, MetricFamilies* out) {
  const auto with = [&labels](const char* name, const char* value) {
    Labels more = labels;
    more.emplace_back(name, value);
    return more;
  };
  out->Gauge("sluice_requests_running", "Sequences that hold KV pages.", labels,
             Load(stats.requests_running));
  out->Gauge("sluice_requests_waiting", "Sequences in the queue, preempted ones included.", labels,
             Load(stats.requests_waiting));
  const double available = Load(stats.kv_pages_free);
  const double cached = std::min(available, Load(stats.kv_pages_cached));
  out->Gauge("sluice_kv_pages",
             "Pages of the KV pool by state; cached ones are used by nobody and can be taken.",
             with("state", "free"), available - cached);
  out->Gauge("sluice_kv_pages", "", with("state", "cached"), cached);
  out->Gauge("sluice_kv_pages", "", with("state", "used"), Load(stats.kv_pages_total) - available);
  out->Gauge("sluice_kv_usage_ratio", "Share of the KV pool in use, 0 to 1.", labels,
             KvUsage(stats));
  out->Gauge("sluice_engine_up", "1 while the engine serves, 0 for ever after a fault.", labels,
             stats.up.load() ? 1 : 0);
  out->Gauge("sluice_engine_last_step_age_seconds",
             "Time since the engine's last step while it has work; 0 when it has none.", labels,
             StepAge(stats));
  out->Gauge("sluice_leaked_pages", "Pages that an idle engine misses; must be 0.", labels,
             Load(stats.leaked_pages));
  out->Gauge("sluice_tokens_per_second", "Tokens generated over about the last second.", labels,
             stats.tokens_per_second.load());
}

void AddEngineCounters(const engine::EngineStats& stats, const Labels& labels,
                       MetricFamilies* out) {
  const auto cancelled = [&](const char* phase, double count) {
    Labels more = labels;
    more.emplace_back("phase", phase);
    out->Counter("sluice_cancelled_total", "Sequences cancelled, by where they were.", more, count);
  };
  cancelled("waiting", Load(stats.cancelled_waiting));
  cancelled("running", Load(stats.cancelled_running));
  out->Counter("sluice_prompt_tokens_total", "Prompt tokens prefilled.", labels,
               Load(stats.prompt_tokens));
  out->Counter("sluice_prefix_cache_queries_tokens_total",
               "Prompt tokens looked up in the prefix cache.", labels,
               Load(stats.prefix_cache_queries));
  out->Counter("sluice_prefix_cache_hits_tokens_total", "Prompt tokens found in the prefix cache.",
               labels, Load(stats.prefix_cache_hits));
  out->Counter("sluice_generation_tokens_total", "Tokens generated.", labels,
               Load(stats.generation_tokens));
  out->Counter("sluice_preemptions_total", "Sequences that gave their pages back to wait.", labels,
               Load(stats.preemptions));
  out->Counter("sluice_recomputed_tokens_total", "Tokens computed again after preemption.", labels,
               Load(stats.recomputed_tokens));
  out->Counter("sluice_nonfinite_logits_total", "Rows whose logits were not finite.", labels,
               Load(stats.nonfinite_logits));
  out->Counter("sluice_steps_total", "Steps run.", labels, Load(stats.steps));
}

void AddEngineHistograms(const engine::EngineStats& stats, const Labels& labels,
                         MetricFamilies* out) {
  out->Histogram("sluice_time_to_first_token_seconds", "From arrival to the first token.", labels,
                 stats.time_to_first_token.Read());
  out->Histogram("sluice_inter_token_latency_seconds", "Between two tokens of a sequence.", labels,
                 stats.inter_token_latency.Read());
  out->Histogram("sluice_queue_time_seconds", "From arrival to the first planned step.", labels,
                 stats.queue_time.Read());
  out->Histogram("sluice_step_duration_seconds", "Duration of a step.", labels,
                 stats.step_duration.Read());
  out->Histogram("sluice_step_host_gap_seconds",
                 "Between two steps when there was work; on a GPU its wait, by its clock.", labels,
                 stats.step_host_gap.Read());
  out->Histogram("sluice_step_tokens", "Tokens a step.", labels, stats.step_tokens.Read());
  out->Histogram("sluice_batch_rows", "Rows a step.", labels, stats.batch_rows.Read());
  out->Histogram("sluice_cancel_to_free_seconds", "From a cancel to the return of the pages.",
                 labels, stats.cancel_to_free.Read());
}

// The names that endpoint pickers, autoscalers and stock dashboards read.
void AddVllmNames(const engine::EngineStats& stats, const Labels& labels, MetricFamilies* out) {
  out->Gauge("vllm:num_requests_running", "Sequences that hold KV pages.", labels,
             Load(stats.requests_running));
  out->Gauge("vllm:num_requests_waiting", "Sequences in the queue.", labels,
             Load(stats.requests_waiting));
  out->Gauge("vllm:kv_cache_usage_perc", "Share of the KV pool in use, 0 to 1.", labels,
             KvUsage(stats));
  out->Counter("vllm:prompt_tokens_total", "Prompt tokens, prefilled or found in the prefix cache.",
               labels, Load(stats.prompt_tokens) + Load(stats.prefix_cache_hits));
  out->Counter("vllm:generation_tokens_total", "Tokens generated.", labels,
               Load(stats.generation_tokens));
  out->Counter("vllm:num_preemptions_total", "Preemptions.", labels, Load(stats.preemptions));
  out->Counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.",
               labels, Load(stats.prefix_cache_queries));
  out->Counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", labels,
               Load(stats.prefix_cache_hits));
  out->Histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", labels,
                 stats.time_to_first_token.Read());
  out->Histogram("vllm:inter_token_latency_seconds", "Between two tokens of a sequence.", labels,
                 stats.inter_token_latency.Read());
}

const char* VllmReason(const std::string& finish_reason) {
  if (finish_reason == "length" || finish_reason == "context") return "length";
  if (finish_reason == "error" || finish_reason == "deadline" || finish_reason == "cancelled")
    return "abort";
  return "stop";
}

void AddServer(const Counters::Snapshot& counters, const std::string& model, MetricFamilies* out) {
  std::map<std::string, uint64_t> by_vllm_reason = {{"stop", 0}, {"length", 0}, {"abort", 0}};
  for (const auto& [key, count] : counters.requests) {
    out->Counter("sluice_requests_total", "Calls that ended, by method, status and finish reason.",
                 {{"model", model},
                  {"method", key.method},
                  {"code", key.code},
                  {"finish_reason", key.finish_reason}},
                 static_cast<double>(count));
    if (!key.finish_reason.empty()) by_vllm_reason[VllmReason(key.finish_reason)] += count;
  }
  for (const auto& [reason, count] : counters.rejected) {
    out->Counter("sluice_rejected_total", "Calls refused before any work, by reason.",
                 {{"model", model}, {"reason", reason}}, static_cast<double>(count));
  }
  out->Histogram("sluice_request_duration_seconds", "Generate calls from arrival to end.",
                 {{"model", model}}, counters.generate_duration);
  if (model.empty()) return;
  for (const auto& [reason, count] : by_vllm_reason) {
    out->Counter("vllm:request_success_total", "Generate calls by how they finished.",
                 {{"model_name", model}, {"finished_reason", reason}}, static_cast<double>(count));
  }
  out->Histogram("vllm:e2e_request_latency_seconds", "Generate calls from arrival to end.",
                 {{"model_name", model}}, counters.generate_duration);
}

void AddModel(const ServedModel& model, MetricFamilies* out) {
  for (const auto& engine : model.dispatcher().engines()) {
    const std::string index = std::to_string(engine->index());
    const Labels labels = {{"model", model.name}, {"engine", index}};
    const Labels vllm_labels = {{"model_name", model.name}, {"engine", index}};
    AddEngineGauges(engine->stats(), labels, out);
    AddEngineCounters(engine->stats(), labels, out);
    AddEngineHistograms(engine->stats(), labels, out);
    AddVllmNames(engine->stats(), vllm_labels, out);
    out->Gauge("vllm:cache_config_info", "Facts of the KV pool, always 1.",
               {{"model_name", model.name},
                {"engine", index},
                {"block_size", std::to_string(engine::KvAccounting{}.page_tokens)},
                {"num_gpu_blocks", std::to_string(model.loaded.facts.kv_pages)},
                {"cache_dtype", model.loaded.facts.kv_dtype}},
               1);
  }
  const engine::SelfCheck& check = model.loaded.self_check;
  out->Gauge("sluice_selfcheck_error",
             "Largest relative error of the canary against the strict path.",
             {{"model", model.name}}, check.max_relative_error);
  out->Gauge("sluice_selfcheck_tolerance", "The most that it may be.", {{"model", model.name}},
             check.tolerance);
  out->Gauge("sluice_selfcheck_passed",
             "0 when the model's own weights give logits that are not finite; other failures end "
             "the start.",
             {{"model", model.name}}, check.passed ? 1 : 0);
  out->Gauge("sluice_build_info", "What serves, always 1.",
             {{"model", model.name},
              {"build", model.build},
              {"backend", model.loaded.facts.backend},
              {"quantization", model.loaded.facts.quantization}},
             1);
}

// By the names that every client library of Prometheus gives them.
void AddProcess(double start_time_seconds, MetricFamilies* out) {
  out->Counter("process_cpu_seconds_total", "Processor time, user and system.", {}, CpuSeconds());
  out->Gauge("process_resident_memory_bytes", "Resident memory.", {},
             static_cast<double>(ResidentBytes()));
  out->Gauge("process_virtual_memory_bytes", "Virtual memory.", {},
             static_cast<double>(VirtualBytes()));
  out->Gauge("process_open_fds", "Open file descriptors.", {}, static_cast<double>(OpenFiles()));
  out->Gauge("process_max_fds", "The most that may be open.", {},
             static_cast<double>(MaxOpenFiles()));
  out->Gauge("process_start_time_seconds", "When the process started, in seconds since 1970.", {},
             start_time_seconds);
}

// What keeps strangers out, and whether the files that say who is one are in force.
void AddSecurity(Frontend* frontend, MetricFamilies* out) {
  const Authenticator::Counts refused = frontend->authenticator.Read();
  const char* help = "Calls refused for whose they were: no or bad credentials, or not allowed.";
  out->Counter("sluice_auth_refused_total", help, {{"code", "UNAUTHENTICATED"}},
               static_cast<double>(refused.unauthenticated));
  out->Counter("sluice_auth_refused_total", help, {{"code", "PERMISSION_DENIED"}},
               static_cast<double>(refused.denied));
  for (const auto& [name, counts] : frontend->reloader.Read()) {
    const auto reloads = [&, file = name](const char* result, uint64_t count) {
      out->Counter("sluice_config_reloads_total",
                   "Files of configuration taken, at the start and when they changed, or refused.",
                   {{"file", file}, {"result", result}}, static_cast<double>(count));
    };
    reloads("applied", counts.applied);
    reloads("refused", counts.failed);
  }
  out->Counter("sluice_tls_handshakes_failed_total",
               "Connections that ended before their TLS handshake had succeeded.", {},
               static_cast<double>(LibraryLog::failed_handshakes()));
  if (const auto certificates = frontend->certificates.current()) {
    out->Gauge("sluice_tls_certificate_not_after_seconds",
               "When the server's certificate ends, in seconds since 1970.", {},
               static_cast<double>(certificates->not_after));
  }
  if (const auto& connections = frontend->connections) {
    out->Gauge("sluice_connections", "Connections of the service that are open.", {},
               static_cast<double>(connections->size()));
    out->Counter("sluice_connections_refused_total",
                 "Connections closed at once because there were too many.", {},
                 static_cast<double>(connections->refused()));
    const char* cut_help =
        "Connections cut for the streams that they held beyond what a connection may have open, or "
        "broke off.";
    out->Counter("sluice_connections_cut_total", cut_help, {{"streams", "held"}},
                 static_cast<double>(connections->cut(ConnectionTable::Fault::kHeld)));
    out->Counter("sluice_connections_cut_total", cut_help, {{"streams", "broken_off"}},
                 static_cast<double>(connections->cut(ConnectionTable::Fault::kBrokenOff)));
  }
}

void AddAdmission(const Admission& admission, MetricFamilies* out) {
  out->Gauge("sluice_queue_tokens", "Tokens of prompts whose calls have no token yet.", {},
             static_cast<double>(admission.waiting_tokens()));
  out->Gauge("sluice_queue_bytes", "Bytes of their messages.", {},
             static_cast<double>(admission.waiting_bytes()));
  out->Gauge("sluice_short_of_memory", "1 while no call is let in for lack of memory.", {},
             admission.short_of_memory() ? 1 : 0);
  for (const auto& [tenant, usage] : admission.Read()) {
    const Labels labels = {{"tenant", tenant}};
    out->Gauge("sluice_tenant_open_calls", "Generate calls of a tenant that are open.", labels,
               static_cast<double>(usage.open));
    out->Gauge("sluice_tenant_kv_positions", "Positions of the KV caches that they may fill.",
               labels, static_cast<double>(usage.reserved_positions));
    out->Counter("sluice_tenant_tokens_total", "Tokens of prompts taken and generated, by tenant.",
                 labels, static_cast<double>(usage.tokens));
    out->Counter("sluice_tenant_refused_total", "Calls refused for the limits of their tenant.",
                 labels, static_cast<double>(usage.refused));
  }
}

}  // namespace

double StepAge(const engine::EngineStats& stats) {
  // The work first: an engine that takes some after a long rest has moved the step's time before.
  const bool works = stats.requests_running.load() != 0 || stats.requests_waiting.load() != 0;
  const int64_t last = stats.last_step_nanos.load();
  if (last == 0 || !works) return 0;
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  const int64_t nanos = std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
  return std::max<double>(0, static_cast<double>(nanos - last) * 1e-9);
}

// What a scrape reads.
class Metrics::Source final : public prometheus::Collectable {
 public:
  Source(Frontend* frontend, const Startup* startup) : frontend_(frontend), startup_(startup) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    MetricFamilies out;
    const ServedModel* model = frontend_->model.load();
    if (model != nullptr) AddModel(*model, &out);
    AddServer(frontend_->counters.Read(), model == nullptr ? "" : model->name, &out);
    AddSecurity(frontend_, &out);
    AddAdmission(frontend_->admission, &out);
    AddProcess(start_time_seconds_, &out);
    out.Counter("sluice_log_lines_dropped_total",
                "Lines lost because nobody took what was written.", {},
                static_cast<double>(frontend_->access_log.DroppedLines()));
    out.Gauge("sluice_draining", "1 from the beginning of a drain.", {},
              frontend_->draining.load() ? 1 : 0);
    out.Gauge("sluice_open_streams", "Generate calls that are open.", {},
              static_cast<double>(frontend_->calls.size()));
    if (model != nullptr) {
      const auto startup = [&out](const char* phase, const std::atomic<double>& seconds) {
        out.Gauge("sluice_startup_seconds", "How long the phases of the start took.",
                  {{"phase", phase}}, seconds.load());
      };
      startup("load", startup_->load_seconds);
      startup("self_check", startup_->self_check_seconds);
      startup("ready", startup_->ready_seconds);
    }
    return out.Take();
  }

 private:
  Frontend* const frontend_;
  const Startup* const startup_;
  const double start_time_seconds_ = StartTimeSeconds();  // one, whatever the clock is set to later
};

class Metrics::Listener {
 public:
  // Connections that ask for nothing hold a thread each until the timeout, so that there are some
  // to spare: with as many threads as such connections a scrape takes two seconds.
  explicit Listener(const std::string& address)
      : exposer(std::vector<std::string>{"listening_ports", address, "num_threads", "32",
                                         "request_timeout_ms", "2000"}) {}
  prometheus::Exposer exposer;
};

Metrics::Metrics() = default;

// The HTTP library looks every two seconds whether it is to stop, or when a connection comes: so
// connections come.
Metrics::~Metrics() {
  if (!listener_) return;
  std::atomic<bool> stopped{false};
  std::thread waker([this, &stopped, port = port()] {
    const auto address = TcpAddress::Resolve(address_, port);
    while (address && !stopped.load()) {
      const int fd = address->Connect();
      if (fd >= 0) close(fd);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  });
  listener_.reset();
  stopped.store(true);
  waker.join();
}

absl::StatusOr<std::unique_ptr<Metrics>> Metrics::Listen(const std::string& address,
                                                         Frontend* frontend,
                                                         const Startup* startup) {
  std::unique_ptr<Metrics> metrics(new Metrics());
  metrics->address_ = address;
  metrics->source_ = std::make_shared<Source>(frontend, startup);
  // The library reports a port in use by an exception, which stops here and does not say that it is
  // in use: sockets of ours do.
  try {
    metrics->listener_ = std::make_unique<Listener>(address);
  } catch (const std::exception& error) {
    RETURN_IF_ERROR(Acceptor::Listen(address).status());
    return engine::Unavailable("cannot listen on " + address + ": " + error.what());
  }
  metrics->listener_->exposer.RegisterCollectable(metrics->source_);
  return metrics;
}

int Metrics::port() const { return listener_->exposer.GetListeningPorts().front(); }

}  // namespace sluice::server
