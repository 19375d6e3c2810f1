#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sluice::engine {

// A regular file held open for reading, and what it was when it was opened. Movable; const methods
// are thread-safe (reads are pread).
class OpenFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED, or FAILED_PRECONDITION for what is no regular file.
  static absl::StatusOr<OpenFile> Open(const std::string& path);

  OpenFile(OpenFile&& other) noexcept { *this = std::move(other); }
  OpenFile& operator=(OpenFile&& other) noexcept;
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  ~OpenFile();

  const std::string& path() const { return path_; }
  uint64_t bytes() const { return bytes_; }

  // Reads [offset, offset + out.size()). DATA_LOSS when the file has become shorter or cannot be
  // read.
  absl::Status Read(uint64_t offset, std::span<std::byte> out) const;
  // DATA_LOSS when size or time of modification are not what they were.
  absl::Status CheckUnchanged() const;

 private:
  OpenFile() = default;

  std::string path_;
  int fd_ = -1;
  uint64_t bytes_ = 0;
  int64_t modified_ns_ = 0;
};

}  // namespace sluice::engine
