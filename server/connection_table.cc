#include "server/connection_table.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "server/tcp_address.h"

namespace sluice::server {
namespace {

constexpr size_t kDiscardedAtOnce = 1 << 20;

std::string HostOf(const TcpAddress& address) {
  char host[NI_MAXHOST] = "";
  getnameinfo(reinterpret_cast<const sockaddr*>(&address.address), address.size, host, sizeof host,
              nullptr, 0, NI_NUMERICHOST);
  return host;
}

std::optional<TcpAddress> PeerOf(int fd) {
  TcpAddress peer;
  peer.size = sizeof peer.address;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer.address), &peer.size) != 0) return {};
  return peer;
}

// As ServerContext::peer() and channelz have it.
std::string NameOf(const TcpAddress& address) {
  const std::string port = ":" + std::to_string(address.port());
  char host[INET6_ADDRSTRLEN] = "";
  if (address.address.ss_family == AF_INET) {
    const auto* four = reinterpret_cast<const sockaddr_in*>(&address.address);
    inet_ntop(AF_INET, &four->sin_addr, host, sizeof host);
    return "ipv4:" + std::string(host) + port;
  }
  const auto* six = reinterpret_cast<const sockaddr_in6*>(&address.address);
  if (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr)) {
    inet_ntop(AF_INET, &six->sin6_addr.s6_addr[12], host, sizeof host);
    return "ipv4:" + std::string(host) + port;
  }
  inet_ntop(AF_INET6, &six->sin6_addr, host, sizeof host);
  const std::string scope =
      six->sin6_scope_id == 0 ? "" : "%25" + std::to_string(six->sin6_scope_id);
  return "ipv6:%5B" + std::string(host) + scope + "%5D" + port;
}

}  // namespace

std::string ConnectionTable::RemoteHost(int fd) {
  TcpAddress own;
  own.size = sizeof own.address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&own.address), &own.size) != 0) return "";
  const auto peer = PeerOf(fd);
  if (!peer) return "";
  std::string host = HostOf(*peer);
  return host == HostOf(own) ? "" : host;
}

ConnectionTable::ConnectionTable(int max_all, int max_of_address)
    : max_all_(static_cast<size_t>(max_all)),
      max_of_address_(max_of_address),
      reserve_(eventfd(0, EFD_CLOEXEC)),
      unused_(eventfd(0, EFD_CLOEXEC)) {}

ConnectionTable::~ConnectionTable() {
  close(reserve_);
  close(unused_);
}

bool ConnectionTable::Add(int fd) {
  struct stat facts {};
  if (fstat(fd, &facts) != 0) return false;
  const auto peer = PeerOf(fd);
  Connection connection{facts.st_dev, facts.st_ino, RemoteHost(fd), peer ? NameOf(*peer) : ""};
  engine::MutexLock lock(mutex_);
  // The number is new again, so the connection that had it is gone.
  const auto before = connections_.find(fd);
  if (before != connections_.end()) {
    Forget(before->second);
    connections_.erase(before);
  }
  if (!HasRoom(connection.address)) Sweep();
  if (!HasRoom(connection.address)) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  if (!connection.address.empty()) ++of_address_[connection.address];
  connections_.emplace(fd, std::move(connection));
  return true;
}

bool ConnectionTable::Is(int fd, const Connection& connection) {
  struct stat facts {};
  return fstat(fd, &facts) == 0 && facts.st_dev == connection.device &&
         facts.st_ino == connection.inode;
}

std::optional<std::string> ConnectionTable::Cut(const std::string& peer, Fault fault) {
  engine::MutexLock lock(mutex_);
  const auto place = std::find_if(connections_.begin(), connections_.end(),
                                  [&](const auto& one) { return one.second.peer == peer; });
  if (place == connections_.end()) return std::nullopt;
  // A second descriptor stays what it is, whatever gRPC does with the first meanwhile.
  if (dup3(place->first, reserve_, O_CLOEXEC) < 0) return std::nullopt;
  const bool open = Is(reserve_, place->second);
  if (open) {
    // Or a client that waits with more to send would wait until its kernel gives up.
    const linger none{1, 0};
    setsockopt(reserve_, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    shutdown(reserve_, SHUT_RDWR);
    // What the kernel holds would still be read to its end: megabytes, thousands of streams each.
    while (recv(reserve_, nullptr, kDiscardedAtOnce, MSG_TRUNC | MSG_DONTWAIT) > 0) {
    }
  }
  dup3(unused_, reserve_, O_CLOEXEC);
  if (!open) return std::nullopt;
  (fault == Fault::kHeld ? cut_held_ : cut_broken_).fetch_add(1, std::memory_order_relaxed);
  return place->second.address;
}

bool ConnectionTable::HasRoom(const std::string& address) {
  if (connections_.size() >= max_all_) return false;
  if (address.empty()) return true;
  const auto place = of_address_.find(address);
  return place == of_address_.end() || place->second < max_of_address_;
}

void ConnectionTable::Forget(const Connection& connection) {
  const auto place = of_address_.find(connection.address);
  if (place != of_address_.end() && --place->second == 0) of_address_.erase(place);
}

void ConnectionTable::Sweep() {
  for (auto place = connections_.begin(); place != connections_.end();) {
    if (Is(place->first, place->second)) {
      ++place;
    } else {
      Forget(place->second);
      place = connections_.erase(place);
    }
  }
}

int64_t ConnectionTable::size() {
  engine::MutexLock lock(mutex_);
  Sweep();
  return static_cast<int64_t>(connections_.size());
}

bool ConnectionTable::full() {
  engine::MutexLock lock(mutex_);
  if (connections_.size() >= max_all_) Sweep();
  return connections_.size() >= max_all_;
}

}  // namespace sluice::server
