#include "tests/fuzz/memory_file.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

namespace sluice::fuzz {

MemoryFile::MemoryFile() : fd_(memfd_create("model", MFD_CLOEXEC)) {
  if (fd_ < 0) std::abort();
  path_ = "/proc/self/fd/" + std::to_string(fd_);
}

MemoryFile::~MemoryFile() { close(fd_); }

void MemoryFile::Fill(const uint8_t* bytes, size_t size, size_t zeros) {
  const auto whole = static_cast<off_t>(size + zeros);
  if (ftruncate(fd_, 0) != 0 || pwrite(fd_, bytes, size, 0) != static_cast<ssize_t>(size) ||
      ftruncate(fd_, whole) != 0) {
    std::abort();
  }
}

}  // namespace sluice::fuzz
