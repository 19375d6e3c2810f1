#include "server/tcp_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace sluice::server {

std::vector<TcpAddress> TcpAddress::ResolveAll(const std::string& address, int port) {
  std::string host = address.substr(0, address.rfind(':'));
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return {};
  std::vector<TcpAddress> all = AllOf(found);
  freeaddrinfo(found);
  return all;
}

std::vector<TcpAddress> TcpAddress::AllOf(const addrinfo* list) {
  std::vector<TcpAddress> all;
  for (const addrinfo* one = list; one != nullptr; one = one->ai_next) {
    if (one->ai_family != AF_INET && one->ai_family != AF_INET6) continue;
    TcpAddress address;
    std::memcpy(&address.address, one->ai_addr, one->ai_addrlen);
    address.size = one->ai_addrlen;
    if (std::find(all.begin(), all.end(), address) == all.end()) all.push_back(address);
  }
  return all;
}

std::optional<TcpAddress> TcpAddress::Resolve(const std::string& address, int port) {
  const std::vector<TcpAddress> all = ResolveAll(address, port);
  if (all.empty()) return std::nullopt;
  return all.front();
}

bool TcpAddress::operator==(const TcpAddress& other) const {
  if (address.ss_family != other.address.ss_family || port() != other.port()) return false;
  if (address.ss_family == AF_INET6) {
    const auto* a = reinterpret_cast<const sockaddr_in6*>(&address);
    const auto* b = reinterpret_cast<const sockaddr_in6*>(&other.address);
    return std::memcmp(&a->sin6_addr, &b->sin6_addr, sizeof a->sin6_addr) == 0 &&
           a->sin6_scope_id == b->sin6_scope_id;
  }
  return reinterpret_cast<const sockaddr_in*>(&address)->sin_addr.s_addr ==
         reinterpret_cast<const sockaddr_in*>(&other.address)->sin_addr.s_addr;
}

int TcpAddress::port() const {
  if (address.ss_family == AF_INET6) {
    return ntohs(reinterpret_cast<const sockaddr_in6*>(&address)->sin6_port);
  }
  return ntohs(reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
}

void TcpAddress::set_port(int port) {
  const uint16_t number = htons(static_cast<uint16_t>(port));
  if (address.ss_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(&address)->sin6_port = number;
  } else {
    reinterpret_cast<sockaddr_in*>(&address)->sin_port = number;
  }
}

int TcpAddress::Connect() const {
  const int fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), size) == 0 || errno == EINPROGRESS) {
    return fd;
  }
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

}  // namespace sluice::server
