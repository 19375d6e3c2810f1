#include "server/listener_probe.h"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace sluice::server {

std::optional<TcpAddress> TcpAddress::Resolve(const std::string& address, int port) {
  std::string host = address.substr(0, address.rfind(':'));
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
    return std::nullopt;
  }
  TcpAddress out;
  std::memcpy(&out.address, found->ai_addr, found->ai_addrlen);
  out.size = found->ai_addrlen;
  freeaddrinfo(found);
  return out;
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

ListenerProbe::~ListenerProbe() {
  if (fd_ >= 0) close(fd_);
}

bool ListenerProbe::Tick(engine::Time now) {
  if (!address_) return false;
  if (fd_ < 0) {
    if (now >= next_) Begin(now);
  } else {
    pollfd ready{fd_, POLLIN, 0};
    char byte;
    if (poll(&ready, 1, 0) > 0) {
      End(recv(fd_, &byte, 1, 0) > 0, now);
    } else if (now - began_ > options_.patience) {
      End(false, now);
    }
  }
  return greeted_once_ && failures_ >= options_.max_failures;
}

void ListenerProbe::Begin(engine::Time now) {
  next_ = now + options_.interval;
  began_ = now;
  fd_ = address_->Connect();
  if (fd_ < 0 && errno == ECONNREFUSED) End(false, now);
}

void ListenerProbe::End(bool greeted, engine::Time now) {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
  next_ = now + options_.interval;
  greeted_once_ = greeted_once_ || greeted;
  failures_ = greeted ? 0 : failures_ + 1;
}

}  // namespace sluice::server
