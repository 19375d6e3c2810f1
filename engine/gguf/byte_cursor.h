#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/status/status.h"

#include "engine/model_file/model_file.h"

namespace sluice::engine {

// Walks forward through the first `limit` bytes of a file, holding one window of them in memory.
// Its user asks `left()` before taking bytes: taking more is a broken invariant. One thread.
class ByteCursor {
 public:
  ByteCursor(const ModelFile& file, uint64_t limit) : file_(file), limit_(limit) {}

  uint64_t offset() const { return offset_; }
  uint64_t left() const { return limit_ - offset_; }

  // Copies the next `size` <= left() bytes. DATA_LOSS when the file does not hold them any more.
  absl::Status Take(void* out, uint64_t size) {
    const uint64_t at = offset_ - window_begin_;
    if (at <= window_.size() && size <= window_.size() - at) {
      std::memcpy(out, window_.data() + at, size);
      offset_ += size;
      return absl::OkStatus();
    }
    return TakeAcrossWindows(static_cast<std::byte*>(out), size);
  }

 private:
  absl::Status TakeAcrossWindows(std::byte* out, uint64_t size);

  static constexpr uint64_t kWindowBytes = uint64_t{256} << 10;

  const ModelFile& file_;
  const uint64_t limit_;
  uint64_t offset_ = 0;
  uint64_t window_begin_ = 0;
  std::vector<std::byte> window_;  // bytes from window_begin_ on
};

}  // namespace sluice::engine
