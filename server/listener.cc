#include "server/listener.h"

#include <grpc/compression.h>
#include <grpcpp/ext/channelz_service_plugin.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>

#include "engine/base/status.h"
#include "server/library_log.h"
#include "server/port_credentials.h"

namespace sluice::server {
namespace {

constexpr size_t kQuotaBytes = 256 << 20;

struct Argument {
  const char* name;
  int value;
};
constexpr Argument kArguments[] = {
    // Advisory: a client may ignore it until it has acknowledged SETTINGS; the registry counts too.
    {GRPC_ARG_MAX_CONCURRENT_STREAMS, 256},
    {GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, 4 << 20},
    {GRPC_ARG_MAX_METADATA_SIZE, 8 << 10},
    // Compressed messages are bounded before inflation only, so none is inflated: a call that
    // announces them is answered UNIMPLEMENTED.
    {GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0},
    {GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE},
    {GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 10'000},
    // A client that vanished gives its pages back within 40 s, even during a long prefill. One on a
    // busy machine may need seconds for its answer: gRPC's own default.
    {GRPC_ARG_KEEPALIVE_TIME_MS, 20'000},
    {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000},
    {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
    {GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0},
    {GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000},
    {GRPC_ARG_HTTP2_MAX_PING_STRIKES, 2},
    {GRPC_ARG_MAX_CONNECTION_IDLE_MS, 300'000},
    // Rebalances behind a headless service. The grace stays infinite: a stream is never cut for it.
    {GRPC_ARG_MAX_CONNECTION_AGE_MS, 1'800'000},
    // With bandwidth probing on, windows grow to megabytes a call.
    {GRPC_ARG_HTTP2_BDP_PROBE, 0},
    {GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64 << 10},
    {GRPC_ARG_TCP_TX_ZEROCOPY_ENABLED, 0},
    // What is read at once is dealt with at once: some hundred streams then, not the hundred
    // thousand that fit into megabytes.
    {GRPC_ARG_TCP_MAX_READ_CHUNK_SIZE, 4 << 10},
    // The accounts by which floods of resets are found.
    {GRPC_ARG_ENABLE_CHANNELZ, 1},
    {GRPC_ARG_MAX_CHANNEL_TRACE_EVENT_MEMORY_PER_NODE, 0},  // events, which would cost at each look
};

// The libraries of reflection and channelz install their plugins in every server of the process;
// this leaves a server with those that are wanted.
class PluginOption final : public grpc::ServerBuilderOption {
 public:
  explicit PluginOption(std::vector<std::string> wanted) : wanted_(std::move(wanted)) {}

  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    const auto unwanted = [this](const auto& plugin) {
      return std::find(wanted_.begin(), wanted_.end(), plugin->name()) == wanted_.end();
    };
    plugins->erase(std::remove_if(plugins->begin(), plugins->end(), unwanted), plugins->end());
  }

 private:
  const std::vector<std::string> wanted_;
};

std::vector<std::string> PluginsOf(const ListenOptions& options) {
  std::vector<std::string> plugins;
  if (options.reflection) {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    plugins.push_back(grpc::reflection::ProtoServerReflectionPlugin().name());
  }
  if (options.channelz) {
    grpc::channelz::experimental::InitChannelzService();
    plugins.push_back("channelz_service");
  }
  return plugins;
}

// A connection is a descriptor: take as many as we may have.
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max) return;
  const auto before = limit.rlim_cur;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) == 0) {
    spdlog::debug("raised the limit of open files from {} to {}", before, limit.rlim_cur);
  } else {
    spdlog::warn("cannot raise the limit of open files from {} to {}", before, limit.rlim_cur);
  }
}

// The server of the library's services, which listens nowhere; null when none is wanted.
// Reflection describes the services of its server: it has them all.
std::unique_ptr<grpc::Server> MakeInner(const ListenOptions& options) {
  const std::vector<std::string> plugins = PluginsOf(options);
  if (plugins.empty()) return nullptr;
  grpc::ServerBuilder builder;
  builder.SetOption(std::make_unique<PluginOption>(plugins));
  for (grpc::Service* service : options.services) builder.RegisterService(service);
  return builder.BuildAndStart();
}

}  // namespace

absl::Status CheckAddress(const std::string& what, const std::string& address) {
  const size_t colon = address.rfind(':');
  const std::string port = colon == std::string::npos ? "" : address.substr(colon + 1);
  const bool digits =
      !port.empty() && port.size() <= 5 &&
      std::all_of(port.begin(), port.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (!digits || colon == 0 || std::stoi(port) > 65'535) {
    return engine::InvalidArgument(
        what + ": expected ADDRESS:PORT with a port of 0 to 65535, got \"" + address + "\"");
  }
  return absl::OkStatus();
}

absl::StatusOr<Listener> Listen(const ListenOptions& options) {
  RETURN_IF_ERROR(CheckAddress(options.name, options.address));
  LibraryLog::Take();
  RaiseDescriptorLimit();
  Listener listener;
  listener.connections = std::make_shared<ConnectionTable>(options.max_connections,
                                                           options.max_connections_of_address);
  ASSIGN_OR_RETURN(listener.acceptor, Acceptor::Listen(options.address));
  // The library's own health service says SERVING from the start; ours waits for the model.
  grpc::EnableDefaultHealthCheckService(false);
  grpc::ServerBuilder builder;
  builder.SetOption(std::make_unique<PluginOption>(std::vector<std::string>()));
  for (const Argument& argument : kArguments) {
    builder.AddChannelArgument(argument.name, argument.value);
  }
  grpc::ResourceQuota quota("sluice");
  quota.Resize(kQuotaBytes);
  builder.SetResourceQuota(quota);
  for (grpc::Service* service : options.services) builder.RegisterService(service);
  listener.other_calls = std::make_unique<OtherCalls>(options.authenticator, MakeInner(options));
  builder.RegisterCallbackGenericService(listener.other_calls.get());
  listener.credentials = MakePortCredentials(options.certificates);
  using Builder = grpc::ServerBuilder::experimental_type;
  std::shared_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor =
      Builder(&builder).AddExternalConnectionAcceptor(Builder::ExternalConnectionType::FROM_FD,
                                                      listener.credentials);
  listener.server = builder.BuildAndStart();
  if (listener.server == nullptr) {
    return engine::Unavailable("cannot serve on " + options.address + ": gRPC did not start");
  }
  listener.guard =
      std::make_unique<FloodGuard>(listener.connections, [acceptor](int listening, int fd) {
        grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
        connection.listener_fd = listening;
        connection.fd = fd;
        acceptor->HandleNewConnection(&connection);
      });
  listener.acceptor->Start(
      [connections = listener.connections, guard = listener.guard.get()](int listening, int fd) {
        // Closed at once: a client learns sooner than by waiting that there is no room.
        if (!connections->Add(fd)) {
          close(fd);
          return;
        }
        guard->Take(listening, fd);
      });
  return listener;
}

}  // namespace sluice::server
