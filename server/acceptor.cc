#include "server/acceptor.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/base/status.h"
#include "server/tcp_address.h"

namespace sluice::server {
namespace {

constexpr int kRetryMs = 50;  // after an accept without a descriptor

// A socket that listens on `address`; -1 with `errno` set.
int ListeningSocket(const TcpAddress& address) {
  const int family = address.address.ss_family;
  const int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  const int on = 1, off = 0;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  // What is accepted inherits it: tokens are small and must not wait for each other.
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // [::] takes IPv4 too, whatever the machine's default is.
  if (family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  if (bind(fd, reinterpret_cast<const sockaddr*>(&address.address), address.size) == 0 &&
      listen(fd, SOMAXCONN) == 0) {
    return fd;
  }
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

int PortOf(int fd) {
  TcpAddress bound;
  bound.size = sizeof bound.address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&bound.address), &bound.size) != 0) return 0;
  return bound.port();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Acceptor>> Acceptor::Listen(const std::string& address) {
  const int port = std::atoi(address.substr(address.rfind(':') + 1).c_str());
  std::vector<TcpAddress> places = TcpAddress::ResolveAll(address, port);
  const auto failed = [&](const std::string& why) {
    return engine::Unavailable("cannot listen on " + address + ": " + why);
  };
  if (places.empty()) return failed("the host name has no address (a failure of DNS?)");
  std::unique_ptr<Acceptor> acceptor(new Acceptor());
  acceptor->wake_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (acceptor->wake_ < 0) return failed(std::strerror(errno));
  int error = 0;
  for (TcpAddress& place : places) {
    if (acceptor->port_ != 0) place.set_port(acceptor->port_);
    const int fd = ListeningSocket(place);
    if (fd < 0) {
      error = errno;
      // A name may have addresses that are not there, such as ::1 without IPv6; a port that is
      // taken is never left out.
      if (error == EADDRINUSE) return failed("the port is taken");
      continue;
    }
    acceptor->listeners_.push_back(fd);
    acceptor->port_ = PortOf(fd);
  }
  if (!acceptor->listeners_.empty()) return acceptor;
  return failed(error == EADDRNOTAVAIL ? "the address is not one of this machine's"
                                       : std::strerror(error));
}

Acceptor::~Acceptor() {
  Stop();
  if (wake_ >= 0) close(wake_);
}

void Acceptor::Start(Take take) {
  take_ = std::move(take);
  thread_ = std::thread([this] { Run(); });
}

void Acceptor::Stop() {
  if (thread_.joinable()) {
    eventfd_write(wake_, 1);
    thread_.join();
  }
  for (const int fd : listeners_) close(fd);
  listeners_.clear();
}

void Acceptor::Run() {
  std::vector<pollfd> sources = {{wake_, POLLIN, 0}};
  for (const int fd : listeners_) sources.push_back({fd, POLLIN, 0});
  while (true) {
    // While starved only the wake is waited for: what waits to be taken would spin.
    const bool starved = starved_.load(std::memory_order_relaxed);
    poll(sources.data(), starved ? 1 : sources.size(), starved ? kRetryMs : -1);
    if (sources[0].revents != 0) return;
    for (const int fd : listeners_) {
      if (!TakeAll(fd)) break;
    }
  }
}

bool Acceptor::TakeAll(int listener) {
  while (true) {
    const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      Report(false, 0);
      take_(listener, fd);
    } else if (errno == EAGAIN) {
      Report(false, 0);
      return true;
    } else if (errno != EINTR && errno != ECONNABORTED && errno != EPROTO) {
      Report(true, errno);
      return false;
    }
  }
}

void Acceptor::Report(bool starved, int error) {
  if (starved == starved_.load(std::memory_order_relaxed)) return;
  starved_.store(starved, std::memory_order_relaxed);
  if (starved) {
    spdlog::warn("connections wait: {}", std::strerror(error));
  } else {
    spdlog::info("connections are taken again");
  }
}

}  // namespace sluice::server
