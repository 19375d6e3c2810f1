#include "server/connection_table.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <utility>

#include "server/tcp_address.h"

namespace sluice::server {
namespace {

std::string HostOf(const TcpAddress& address) {
  char host[NI_MAXHOST] = "";
  getnameinfo(reinterpret_cast<const sockaddr*>(&address.address), address.size, host, sizeof host,
              nullptr, 0, NI_NUMERICHOST);
  return host;
}

// The host at the other end; empty when it is this one (a sidecar's connections are many clients').
std::string RemoteHost(int fd) {
  TcpAddress own, peer;
  own.size = sizeof own.address;
  peer.size = sizeof peer.address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&own.address), &own.size) != 0) return "";
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer.address), &peer.size) != 0) return "";
  std::string host = HostOf(peer);
  return host == HostOf(own) ? "" : host;
}

}  // namespace

bool ConnectionTable::Add(int fd) {
  struct stat facts {};
  if (fstat(fd, &facts) != 0) return false;
  Connection connection{facts.st_dev, facts.st_ino, RemoteHost(fd)};
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
    const Connection& connection = place->second;
    struct stat facts {};
    const bool open = fstat(place->first, &facts) == 0 && facts.st_dev == connection.device &&
                      facts.st_ino == connection.inode;
    if (open) {
      ++place;
    } else {
      Forget(connection);
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
