#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/engine.h"

namespace sluice::server {

// The logger that writes a line of every Generate call.
inline constexpr char kAccessLogger[] = "access";

struct ServerOptions {
  std::string listen = "127.0.0.1:50051";  // address:port of the service; port 0 takes a free one
  std::string ops_listen;                  // address:port for operators, without TLS; empty: none
  std::string metrics_listen;              // address:port of /metrics; empty: none
  // PEM files of the service's TLS; empty: plain text. With `tls_client_ca` clients need
  // certificates.
  std::string tls_cert, tls_key, tls_client_ca;
  std::string auth_file;     // credentials of callers (CredentialTable); empty: everybody may call
  std::string model_name;    // how clients call the model; empty: the file's general.name
  int delivery_threads = 0;  // 0: min(4, cores / 4), at least 1
  int max_open_streams = 4096;
  int max_connections = 4096;
  int max_connections_of_address = 1024;  // of one address of another machine
  std::string tenants_file;               // limits of tenants (TenantPolicy); empty: none
  int64_t max_queue_tokens = 10'000'000;  // of prompts whose calls have no token yet; 0: no bound
  uint64_t max_queue_bytes = 256 << 20;   // of their messages; 0: no bound
  uint64_t memory_watermark = 0;          // resident bytes above which no call is let in; 0: none
  int max_tokens_cap = 0;                 // server's own cap on max_tokens; 0: none
  bool reflection = false;                // on the ops port when there is one
  bool channelz = false;                  // on the ops port
  std::chrono::milliseconds lame_duck{
      0};  // after a drain began, new calls are still taken for so long
  std::chrono::milliseconds drain_timeout{30'000};
  // A stream whose reader takes nothing for so long ends ABORTED (SLOW_READER).
  std::chrono::milliseconds stall_timeout{30'000};
  // The messages of kAccessLogger are members of a JSON object, `"message":"generate","tenant":...`
  // without braces, for a formatter of the default logger's sinks to put among its own; else they
  // are text, as those of other loggers always are.
  bool json_logs = false;
  // An engine that has work and ends no step for so long is out of service for good; longer where
  // the model's steps are (Server::Serve).
  std::chrono::milliseconds hang_timeout{10'000};
  std::string build;  // provenance: version and commit
};

// The gRPC front: service, operators' port, health, reflection, delivery, metrics. Answers health
// NOT_SERVING and Generate UNAVAILABLE (LOADING) from Start until Serve. Thread-safe.
class Server {
 public:
  // Reads the files and binds the ports. INVALID_ARGUMENT for a malformed address or a bad file,
  // UNAVAILABLE naming the address when it cannot be bound.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options);
  ~Server();

  int port() const;          // of the service
  int ops_port() const;      // 0: none
  int metrics_port() const;  // 0: none
  // Delivery threads = lanes of the chunk mailbox that the model must be loaded with.
  int num_lanes() const;

  // The model is loaded and self-checked: health turns SERVING. Once.
  void Serve(engine::LoadedModel model);
  // Ready is over: health NOT_SERVING; after lame_duck new calls get UNAVAILABLE (DRAINING); what
  // was accepted goes on. Returns at once.
  void BeginDrain();
  // Waits until the drain is over (or drain_timeout passed and the rest was cut with UNAVAILABLE),
  // or the last engine died. True when every accepted request ended by itself.
  bool WaitForDrain();
  // All engines died of a fault, or no connections can be taken any more: the process should exit
  // with 70.
  bool engines_down() const;
  // Blocks until BeginDrain was called or engines_down().
  void WaitForDrainOrFault();
  // Stops everything; streams that are still open end UNAVAILABLE.
  void Shutdown();

 private:
  Server();
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::server
