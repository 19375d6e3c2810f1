#include "engine/gguf/byte_cursor.h"

#include <cstdio>
#include <cstdlib>
#include <span>

#include "engine/base/status.h"

namespace sluice::engine {

absl::Status ByteCursor::TakeAcrossWindows(std::byte* out, uint64_t size) {
  if (size > left()) {
    std::fprintf(stderr, "ByteCursor: %llu bytes taken, %llu left\n",
                 static_cast<unsigned long long>(size), static_cast<unsigned long long>(left()));
    std::abort();
  }
  while (size > 0) {
    if (offset_ >= window_begin_ + window_.size()) {
      window_begin_ = offset_;
      window_.resize(std::min(kWindowBytes, left()));
      if (absl::Status status = file_.Read(window_begin_, window_); !status.ok()) {
        window_.clear();
        return status;
      }
    }
    const uint64_t at = offset_ - window_begin_;
    const uint64_t part = std::min<uint64_t>(size, window_.size() - at);
    std::memcpy(out, window_.data() + at, part);
    out += part;
    offset_ += part;
    size -= part;
  }
  return absl::OkStatus();
}

}  // namespace sluice::engine
