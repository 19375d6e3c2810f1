#include "kernels/core/buffer.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels/core/check.h"

namespace sluice::kernels {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t RoundUp(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// Zero pages from the system, aligned to huge pages, given to the process only as they are touched:
// a large KV pool costs nothing at start. The unaligned ends of the mapping are returned at once.
std::byte* MapLarge(size_t bytes) {
  const size_t span = bytes + kHugePage;
  void* mapping = mmap(nullptr, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  std::byte* begin = static_cast<std::byte*>(mapping);
  std::byte* aligned =
      reinterpret_cast<std::byte*>(RoundUp(reinterpret_cast<uintptr_t>(begin), kHugePage));
  if (aligned > begin) munmap(begin, static_cast<size_t>(aligned - begin));
  std::byte* end = aligned + bytes;
  if (begin + span > end) munmap(end, static_cast<size_t>(begin + span - end));
  madvise(aligned, bytes, MADV_HUGEPAGE);
  return aligned;
}

}  // namespace

absl::StatusOr<Buffer> Buffer::Allocate(size_t bytes) {
  Buffer buffer;
  if (bytes == 0) return buffer;
  const bool large = bytes >= kHugePage;
  const size_t capacity = RoundUp(bytes, large ? kHugePage : 64);
  if (capacity >= bytes) {
    buffer.bytes_ =
        large ? MapLarge(capacity) : static_cast<std::byte*>(std::aligned_alloc(64, capacity));
  }
  if (buffer.bytes_ == nullptr) {
    return absl::ResourceExhaustedError("cannot allocate " + std::to_string(bytes) +
                                        " bytes of host memory");
  }
  if (!large) std::memset(buffer.bytes_, 0, capacity);
  buffer.size_ = bytes;
  buffer.capacity_ = capacity;
  return buffer;
}

Buffer Buffer::Adopt(std::byte* bytes, size_t size, Release release) {
  Buffer buffer;
  buffer.bytes_ = bytes;
  buffer.size_ = size;
  buffer.release_ = release;
  return buffer;
}

Buffer Buffer::Part(size_t offset, size_t bytes) const {
  SLUICE_KERNEL_CHECK(offset <= size_ && bytes <= size_ - offset, "a part lies inside its whole");
  Buffer part;
  part.bytes_ = bytes_ + offset;
  part.size_ = bytes;
  return part;
}

absl::Status Buffer::Lock() const {
  // Adopted memory is a device's, or page-locked.
  if (size_ == 0 || release_ != nullptr || mlock(bytes_, size_) == 0) return absl::OkStatus();
  const int error = errno;
  rlimit limit{};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  return absl::FailedPreconditionError(
      "cannot lock " + std::to_string(size_) + " bytes in memory: " + std::strerror(error) +
      "; the process may lock " +
      (limit.rlim_cur == RLIM_INFINITY ? "any number of"
                                       : std::to_string(static_cast<uint64_t>(limit.rlim_cur))) +
      " bytes in all (RLIMIT_MEMLOCK; ulimit -l sets it in KiB)");
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  std::swap(size_, other.size_);
  std::swap(capacity_, other.capacity_);
  std::swap(release_, other.release_);
  return *this;
}

Buffer::~Buffer() {
  if (release_ != nullptr) release_(bytes_, size_);
  if (capacity_ == 0) return;
  if (capacity_ >= kHugePage) {
    munmap(bytes_, capacity_);
  } else {
    std::free(bytes_);
  }
}

}  // namespace sluice::kernels
