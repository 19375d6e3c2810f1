#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace sluice::engine {

// Transparent hash and equality, so that a container keyed by std::string is searched by
// std::string_view without a copy. (Debian's Abseil containers know only absl::string_view.)
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
struct StringEqual {
  using is_transparent = void;
  bool operator()(std::string_view a, std::string_view b) const { return a == b; }
};

}  // namespace sluice::engine
