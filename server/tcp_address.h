#pragma once

#include <netdb.h>
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
  // own, each once; empty when the host has no address.
  static std::vector<TcpAddress> ResolveAll(const std::string& address, int port);
  // The addresses of IPv4 and IPv6 in a list of getaddrinfo(3), in its order, each once: the list
  // repeats an address that two lines of /etc/hosts give to one name.
  static std::vector<TcpAddress> AllOf(const addrinfo* list);
  // The first of ResolveAll.
  static std::optional<TcpAddress> Resolve(const std::string& address, int port);

  bool operator==(const TcpAddress& other) const;
  int port() const;
  void set_port(int port);
  // A socket that connects without blocking; -1 with `errno` set.
  int Connect() const;
};

}  // namespace sluice::server
