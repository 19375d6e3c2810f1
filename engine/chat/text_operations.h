#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <vector>

#include "engine/tokenizer/marked_text.h"

namespace sluice::engine::chat {

// Python's str methods on marked text: marks stay with their bytes.

enum class Side : uint8_t { kLeft, kRight, kBoth };
// Without code points of `characters` at the side; none: without white space.
MarkedText Strip(const MarkedText& text, std::optional<std::string_view> characters, Side side);

inline constexpr int64_t kEverywhere = std::numeric_limits<int64_t>::max();
// At each `separator`, which is not empty, from the given side; at most `most` cuts.
std::vector<MarkedText> Split(const MarkedText& text, std::string_view separator, int64_t most,
                              Side side);
// At runs of white space, none of which is in a part.
std::vector<MarkedText> SplitAtSpace(const MarkedText& text, int64_t most, Side side);
std::vector<MarkedText> SplitLines(const MarkedText& text, bool keeps_ends);

// The first `most` occurrences of `old` replaced; of an empty one, the places between characters.
MarkedText Replace(const MarkedText& text, std::string_view old, const MarkedText& replacement,
                   int64_t most);
// With spaces, or `fill`, around it so that it has `width` code points. Left: the spaces are left.
MarkedText Pad(const MarkedText& text, int64_t width, std::string_view fill, Side side);
// Byte offset of the first occurrence at or after `from`, last one below `from`; npos: none.
size_t Find(std::string_view text, std::string_view wanted, size_t from);
size_t FindLast(std::string_view text, std::string_view wanted);

}  // namespace sluice::engine::chat
