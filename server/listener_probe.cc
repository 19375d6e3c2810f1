#include "server/listener_probe.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

namespace sluice::server {

ListenerProbe::~ListenerProbe() {
  if (fd_ >= 0) close(fd_);
}

bool ListenerProbe::Tick(engine::Time now) {
  if (!address_) return false;
  if (fd_ < 0) {
    if (now >= next_) Begin(now);
  } else {
    Continue(now);
  }
  return greeted_once_ && failures_ >= options_.max_failures;
}

void ListenerProbe::Continue(engine::Time now) {
  const bool to_say = !options_.hello.empty() && !said_hello_;
  pollfd ready{fd_, static_cast<short>(to_say ? POLLOUT : POLLIN), 0};
  char byte;
  if (poll(&ready, 1, 0) > 0) {
    if (to_say) {
      said_hello_ = true;
      options_.on_hello();
      const std::string& hello = options_.hello;
      if (send(fd_, hello.data(), hello.size(), MSG_NOSIGNAL) < 0) End(false, now);
    } else {
      End(recv(fd_, &byte, 1, 0) > 0 || said_hello_, now);
    }
  } else if (now - began_ > options_.patience) {
    End(false, now);
  }
}

void ListenerProbe::Begin(engine::Time now) {
  next_ = now + options_.interval;
  began_ = now;
  said_hello_ = false;
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
