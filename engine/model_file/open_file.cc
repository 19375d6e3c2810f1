#include "engine/model_file/open_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/base/failpoint.h"
#include "engine/base/status.h"

namespace sluice::engine {
namespace {

int64_t Nanoseconds(const timespec& time) {
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

OpenFile& OpenFile::operator=(OpenFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(bytes_, other.bytes_);
  std::swap(modified_ns_, other.modified_ns_);
  return *this;
}

OpenFile::~OpenFile() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<OpenFile> OpenFile::Open(const std::string& path) {
  OpenFile file;
  file.path_ = path;
  // O_NONBLOCK: opening a FIFO must fail below, not wait for a writer.
  do {
    file.fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (file.fd_ < 0 && errno == EINTR);
  if (file.fd_ < 0) {
    const int error = errno;
    const std::string message = path + ": cannot open: " + std::strerror(error);
    if (error == ENOENT || error == ENOTDIR) return NotFound(message);
    if (error == EACCES || error == EPERM) {
      return MakeStatus(absl::StatusCode::kPermissionDenied, message);
    }
    return FailedPrecondition(message);
  }
  struct stat facts {};
  if (fstat(file.fd_, &facts) != 0) {
    return FailedPrecondition(path + ": cannot read its size: " + std::strerror(errno));
  }
  if (!S_ISREG(facts.st_mode)) {
    return FailedPrecondition(path + ": expected a regular file, got " +
                              (S_ISDIR(facts.st_mode)    ? "a directory"
                               : S_ISFIFO(facts.st_mode) ? "a FIFO"
                               : S_ISCHR(facts.st_mode) || S_ISBLK(facts.st_mode)
                                   ? "a device"
                                   : "something else"));
  }
  file.bytes_ = static_cast<uint64_t>(facts.st_size);
  file.modified_ns_ = Nanoseconds(facts.st_mtim);
  return file;
}

absl::Status OpenFile::CheckUnchanged() const {
  struct stat facts {};
  if (fstat(fd_, &facts) != 0) {
    return DataLoss(path_ + ": cannot read its size: " + std::strerror(errno));
  }
  if (static_cast<uint64_t>(facts.st_size) != bytes_) {
    return DataLoss(path_ + ": expected " + std::to_string(bytes_) +
                    " bytes as when it was opened, got " + std::to_string(facts.st_size));
  }
  if (Nanoseconds(facts.st_mtim) != modified_ns_) {
    return DataLoss(path_ + ": was modified while it was being read");
  }
  return absl::OkStatus();
}

absl::Status OpenFile::Read(uint64_t offset, std::span<std::byte> out) const {
  size_t done = 0;
  while (done < out.size()) {
    // Linux moves at most 2 GiB a call; a smaller step keeps the count within ssize_t anywhere.
    const size_t part = std::min(out.size() - done, size_t{1} << 30);
    ssize_t n = pread(fd_, out.data() + done, part, static_cast<off_t>(offset + done));
    if (Fails(Failpoint::kRead)) {
      n = -1;
      errno = EIO;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const std::string why =
          n < 0 ? std::strerror(errno) : "the file ends there; it was longer when it was opened";
      return DataLoss(path_ + ": cannot read " + std::to_string(out.size() - done) +
                      " bytes at byte " + std::to_string(offset + done) + ": " + why);
    }
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

}  // namespace sluice::engine
