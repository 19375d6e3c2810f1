#pragma once

#include <cstddef>
#include <utility>

#include "absl/status/statusor.h"

namespace sluice::kernels {

// Owns zero-filled memory: the host's, aligned to 64 bytes, in blocks of 2 MiB and more with huge
// pages; or what a device backend had allocated. Movable, not copyable.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer();
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // RESOURCE_EXHAUSTED with the number of bytes when the memory cannot be had. `bytes` may be 0.
  static absl::StatusOr<Buffer> Allocate(size_t bytes);

  // Takes over zero-filled memory of another kind, given back by `release`.
  using Release = void (*)(std::byte* bytes, size_t size);
  static Buffer Adopt(std::byte* bytes, size_t size, Release release);

  // A piece of this Buffer's memory, which has to outlive it: many small arrays share huge pages.
  Buffer Part(size_t offset, size_t bytes) const;

  // Keeps all of the memory resident from now on, touched or not (mlock). FAILED_PRECONDITION with
  // the process's limit where that forbids it.
  absl::Status Lock() const;

  std::byte* bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(bytes_);
  }
  size_t size() const { return size_; }

 private:
  std::byte* bytes_ = nullptr;
  size_t size_ = 0;
  // size_ rounded up: 2 MiB and more are mapped, less comes from the heap; 0 owns nothing.
  size_t capacity_ = 0;
  Release release_ = nullptr;  // of adopted memory
};

}  // namespace sluice::kernels
