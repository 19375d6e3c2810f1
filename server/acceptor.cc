#include "server/acceptor.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <utility>

#include "engine/base/failpoint.h"
#include "engine/base/status.h"

namespace sluice::server {
namespace {

constexpr int kRetryMs = 50;        // after an accept that would fail again at once
constexpr int kTakenPerRound = 64;  // of one listener, before the others have their turn
constexpr int kPortAttempts = 16;   // to find a port that is free at every address

bool IsStarvation(int error) {
  return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

// Whether accept(2) passed on what happened to one connection, which is gone with it.
bool IsOfNetwork(int error) {
  static constexpr int kErrors[] = {ECONNABORTED, EHOSTDOWN,   EHOSTUNREACH, ENETDOWN, ENETUNREACH,
                                    ENONET,       ENOPROTOOPT, EOPNOTSUPP,   EPERM,    EPROTO};
  return std::find(std::begin(kErrors), std::end(kErrors), error) != std::end(kErrors);
}

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
  return ListenAt(TcpAddress::ResolveAll(address, port), address);
}

absl::StatusOr<std::unique_ptr<Acceptor>> Acceptor::ListenAt(std::vector<TcpAddress> places,
                                                             const std::string& name) {
  const auto failed = [&](const std::string& why) {
    return engine::Unavailable("cannot listen on " + name + ": " + why);
  };
  if (places.empty()) return failed("the host name has no address (a failure of DNS?)");
  std::unique_ptr<Acceptor> acceptor(new Acceptor());
  acceptor->wake_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (acceptor->wake_ < 0) return failed(std::strerror(errno));
  const bool any_port = places.front().port() == 0;
  int error = acceptor->Bind(places);
  // What is free at the first address may be taken at another.
  for (int i = 1; i < kPortAttempts && any_port && error == EADDRINUSE; ++i) {
    error = acceptor->Bind(places);
  }
  if (error == 0) return acceptor;
  if (error == EADDRINUSE) return failed("the port is taken");
  return failed(error == EADDRNOTAVAIL ? "the address is not one of this machine's"
                                       : std::strerror(error));
}

int Acceptor::Bind(std::vector<TcpAddress>& places) {
  const int wanted = places.front().port();
  int error = 0;
  for (TcpAddress& place : places) {
    place.set_port(listeners_.empty() ? wanted : port_);
    const int fd = ListeningSocket(place);
    if (fd >= 0) {
      listeners_.push_back(fd);
      port_ = PortOf(fd);
      continue;
    }
    error = errno;
    // A name may have addresses that are not there, such as ::1 without IPv6; a port that is
    // taken is never left out.
    if (error == EADDRINUSE) break;
  }
  if (error != EADDRINUSE) return listeners_.empty() ? error : 0;
  for (const int fd : listeners_) close(fd);
  listeners_.clear();
  for (TcpAddress& place : places) place.set_port(wanted);
  return error;
}

Acceptor::~Acceptor() {
  Stop();
  if (wake_ >= 0) close(wake_);
}

int Acceptor::AcceptFromKernel(int listener) {
  if (engine::Fails(engine::Failpoint::kAccept)) {
    errno = EMFILE;
    return -1;
  }
  return accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

void Acceptor::Start(Take take, Accept accept) {
  take_ = std::move(take);
  accept_ = std::move(accept);
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
  bool pause = false;
  while (true) {
    // During a pause only the wake is waited for: what waits to be taken would spin.
    poll(sources.data(), pause ? 1 : sources.size(), pause ? kRetryMs : -1);
    if (sources[0].revents != 0) return;
    pause = false;
    int starvation = 0;
    for (const int fd : listeners_) {
      const int error = TakeWaiting(fd);
      if (IsStarvation(error)) starvation = error;
      pause = pause || (error != 0 && !IsOfNetwork(error));
    }
    Report(starvation);
  }
}

int Acceptor::TakeWaiting(int listener) {
  for (int i = 0; i < kTakenPerRound; ++i) {
    const int fd = accept_(listener);
    if (fd >= 0) {
      take_(listener, fd);
    } else if (errno == EAGAIN) {
      return 0;
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

void Acceptor::Report(int error) {
  const bool starved = error != 0;
  if (starved == starved_.load(std::memory_order_relaxed)) return;
  starved_.store(starved, std::memory_order_relaxed);
  if (starved) {
    spdlog::warn("connections wait: {}", std::strerror(error));
  } else {
    spdlog::info("connections are taken again");
  }
}

}  // namespace sluice::server
