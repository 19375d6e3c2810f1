#include "server/reloader.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"

#include "engine/base/status.h"

namespace sluice::server {
namespace {

constexpr std::chrono::seconds kInterval{1};
constexpr size_t kMaxFileBytes = 4 << 20;

// Never waits: a FIFO without a writer reads as empty and a directory fails.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  const auto failed = [&](const std::string& why) {
    return engine::InvalidArgument(path + ": " + why);
  };
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return failed(std::strerror(errno));
  std::string content;
  std::optional<std::string> error;
  char buffer[16 * 1024];
  while (true) {
    const ssize_t got = read(fd, buffer, sizeof buffer);
    if (got == 0) break;
    if (got < 0) {
      if (errno == EINTR) continue;
      error = std::strerror(errno);
      break;
    }
    content.append(buffer, static_cast<size_t>(got));
    if (content.size() > kMaxFileBytes) {
      error = "larger than " + std::to_string(kMaxFileBytes) + " bytes";
      break;
    }
  }
  close(fd);
  if (error) return failed(*error);
  return content;
}

absl::Status ReadAll(const std::vector<std::string>& paths, std::vector<std::string>* contents) {
  for (const std::string& path : paths) {
    ASSIGN_OR_RETURN(std::string content, ReadSmallFile(path));
    contents->push_back(std::move(content));
  }
  return absl::OkStatus();
}

}  // namespace

Reloader::~Reloader() {
  {
    engine::MutexLock lock(mutex_);
    stopping_ = true;
    stop_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

absl::Status Reloader::Add(Source source) {
  Watched watched;
  RETURN_IF_ERROR(ReadAll(source.paths, &watched.contents));
  RETURN_IF_ERROR(source.apply(watched.contents));
  watched.source = std::move(source);
  watched.counts.applied = 1;
  engine::MutexLock lock(mutex_);
  watched_.push_back(std::move(watched));
  return absl::OkStatus();
}

void Reloader::Start() {
  thread_ = std::thread([this] { Run(); });
}

void Reloader::Run() {
  engine::MutexLock lock(mutex_);
  while (!stopping_) {
    const auto next = std::chrono::steady_clock::now() + kInterval;
    while (!stopping_ && std::chrono::steady_clock::now() < next) stop_.WaitUntil(mutex_, next);
    if (stopping_) return;
    for (Watched& watched : watched_) CheckOne(watched);
  }
}

void Reloader::CheckOne(Watched& watched) {
  std::vector<std::string> contents;
  absl::Status status = ReadAll(watched.source.paths, &contents);
  // An unreadable file differs from every content.
  if (!status.ok()) contents.clear();
  if (contents == watched.contents) return;
  if (status.ok()) status = watched.source.apply(contents);
  watched.contents = std::move(contents);
  watched.status = status;
  if (status.ok()) {
    ++watched.counts.applied;
    spdlog::info("{}: the change is in force", watched.source.name);
  } else {
    ++watched.counts.failed;
    spdlog::error("{}: the change is refused, what was in force stays: {}", watched.source.name,
                  engine::Message(status));
  }
}

std::map<std::string, absl::Status> Reloader::Check() {
  std::map<std::string, absl::Status> result;
  engine::MutexLock lock(mutex_);
  for (Watched& watched : watched_) {
    CheckOne(watched);
    result[watched.source.name] = watched.status;
  }
  return result;
}

std::map<std::string, Reloader::Counts> Reloader::Read() const {
  std::map<std::string, Counts> counts;
  engine::MutexLock lock(mutex_);
  for (const Watched& watched : watched_) counts[watched.source.name] = watched.counts;
  return counts;
}

}  // namespace sluice::server
