#pragma once

#include <sys/socket.h>

#include <optional>
#include <string>
#include <vector>

namespace sluice::server {

// Where TCP leads: an address of IPv4 or IPv6 with its port. Value.
struct TcpAddress {
  sockaddr_storage address{};
  socklen_t size = 0;

  // All that `address` ("host:port", brackets around IPv6) stands for, with `port` in place of its
  // own; empty when the host has no address.
  static std::vector<TcpAddress> ResolveAll(const std::string& address, int port);
  // The first of them.
  static std::optional<TcpAddress> Resolve(const std::string& address, int port);

  int port() const;
  void set_port(int port);
  // A socket that connects without blocking; -1 with `errno` set.
  int Connect() const;
};

}  // namespace sluice::server
