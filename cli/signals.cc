#include "cli/signals.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "cli/exit_codes.h"

namespace sluice::cli {
namespace {

[[noreturn]] void Die(const char* what) {
  std::perror(what);
  std::abort();
}

// Ends the process without destructors and without a word: a drain that hangs must not stop a
// second signal, and neither must a pipe that nobody reads, at which any write may block for ever.
[[noreturn]] void ExitAtOnce(int signal_number) { _exit(kExitSignalOffset + signal_number); }

}  // namespace

SignalWatcher::SignalWatcher() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  if (pthread_sigmask(SIG_BLOCK, &signals, nullptr) != 0) Die("pthread_sigmask");
  signal_fd_ = signalfd(-1, &signals, SFD_CLOEXEC);
  if (signal_fd_ < 0) Die("signalfd");
  stop_fd_ = eventfd(0, EFD_CLOEXEC);
  if (stop_fd_ < 0) Die("eventfd");
  thread_ = std::thread([this] { Watch(); });
}

SignalWatcher::~SignalWatcher() {
  const uint64_t one = 1;
  if (write(stop_fd_, &one, sizeof(one)) != sizeof(one)) Die("write to eventfd");
  thread_.join();
  close(signal_fd_);
  close(stop_fd_);
}

void SignalWatcher::Arm(std::function<void()> action) {
  engine::MutexLock lock(mutex_);
  action_ = std::move(action);
  exits_unarmed_ = false;
  if (first_signal_ != 0 && action_) action_();
}

void SignalWatcher::ArmEach(std::function<void(int signal_number)> action) {
  engine::MutexLock lock(mutex_);
  each_action_ = std::move(action);
}

void SignalWatcher::Disarm() {
  engine::MutexLock lock(mutex_);
  action_ = nullptr;
  each_action_ = nullptr;
  exits_unarmed_ = false;
}

int SignalWatcher::first_signal() const {
  engine::MutexLock lock(mutex_);
  return first_signal_;
}

void SignalWatcher::Watch() {
  while (true) {
    pollfd fds[] = {{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0) {
      if (errno == EINTR) continue;
      Die("poll");
    }
    if (fds[1].revents != 0) return;
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof(info)) != sizeof(info)) Die("read from signalfd");
    Take(static_cast<int>(info.ssi_signo));
  }
}

void SignalWatcher::Take(int signal_number) {
  engine::MutexLock lock(mutex_);
  if (each_action_) return each_action_(signal_number);
  if (first_signal_ != 0 || exits_unarmed_) ExitAtOnce(signal_number);
  first_signal_ = signal_number;
  if (action_) action_();
}

}  // namespace sluice::cli
