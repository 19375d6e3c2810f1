#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace sluice::fuzz {

// Takes an input apart from its front. What is no longer there is 0 or empty: every input means
// something. Value.
class BytesReader {
 public:
  BytesReader(const uint8_t* data, size_t size)
      : left_(reinterpret_cast<const char*>(data), size) {}

  uint8_t Byte() {
    if (left_.empty()) return 0;
    const auto byte = static_cast<uint8_t>(left_.front());
    left_.remove_prefix(1);
    return byte;
  }
  std::string_view Text(size_t most) {
    const std::string_view text = left_.substr(0, most);
    left_.remove_prefix(text.size());
    return text;
  }
  std::string_view Rest() { return Text(left_.size()); }

 private:
  std::string_view left_;
};

}  // namespace sluice::fuzz
