#include "engine/chat/text_operations.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "engine/chat/unicode.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::engine::chat {
namespace {

constexpr size_t kNone = std::string_view::npos;

bool IsLineEnd(char32_t c) {
  return (c >= 0xA && c <= 0xD) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

}  // namespace

size_t Find(std::string_view text, std::string_view wanted, size_t from) {
  if (from > text.size()) return kNone;
  if (wanted.empty()) return from;
  // Linear in both, which string_view::find is not.
  const void* found = memmem(text.data() + from, text.size() - from, wanted.data(), wanted.size());
  if (found == nullptr) return kNone;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

size_t FindLast(std::string_view text, std::string_view wanted) {
  const std::string backwards(text.rbegin(), text.rend());
  const size_t at = Find(backwards, std::string(wanted.rbegin(), wanted.rend()), 0);
  return at == kNone ? kNone : text.size() - at - wanted.size();
}

MarkedText Strip(const MarkedText& text, std::optional<std::string_view> characters, Side side) {
  std::vector<char32_t> set;
  if (characters) set = CodePoints(*characters).values;
  const auto goes = [&](char32_t c) {
    return characters ? std::find(set.begin(), set.end(), c) != set.end() : IsSpace(c);
  };
  const std::string_view bytes = text.bytes();
  size_t begin = 0, end = bytes.size();
  while (side != Side::kRight && begin < end) {
    const Utf8Step step = NextUtf8(bytes.substr(begin));
    if (!goes(step.code_point)) break;
    begin += step.length;
  }
  while (side != Side::kLeft && begin < end) {
    size_t last = end - 1;
    while (last > begin && (static_cast<uint8_t>(bytes[last]) & 0xC0) == 0x80) --last;
    if (!goes(NextUtf8(bytes.substr(last)).code_point)) break;
    end = last;
  }
  return text.Substr(begin, end - begin);
}

std::vector<MarkedText> Split(const MarkedText& text, std::string_view separator, int64_t most,
                              Side side) {
  const std::string_view bytes = text.bytes();
  std::vector<size_t> cuts;
  if (side != Side::kRight) {
    for (size_t at = Find(bytes, separator, 0);
         at != kNone && static_cast<int64_t>(cuts.size()) < most;
         at = Find(bytes, separator, at + separator.size())) {
      cuts.push_back(at);
    }
  } else {
    const std::string backwards(bytes.rbegin(), bytes.rend());
    const std::string wanted(separator.rbegin(), separator.rend());
    for (size_t at = Find(backwards, wanted, 0);
         at != kNone && static_cast<int64_t>(cuts.size()) < most;
         at = Find(backwards, wanted, at + wanted.size())) {
      cuts.push_back(bytes.size() - at - wanted.size());
    }
    std::reverse(cuts.begin(), cuts.end());
  }
  std::vector<MarkedText> parts;
  size_t begin = 0;
  for (const size_t cut : cuts) {
    parts.push_back(text.Substr(begin, cut - begin));
    begin = cut + separator.size();
  }
  parts.push_back(text.Substr(begin, bytes.size() - begin));
  return parts;
}

std::vector<MarkedText> SplitAtSpace(const MarkedText& text, int64_t most, Side side) {
  const CodePoints points(text.bytes());
  const auto piece = [&](size_t begin, size_t end) {
    return text.Substr(points.offsets[begin], points.offsets[end] - points.offsets[begin]);
  };
  std::vector<MarkedText> parts;
  size_t begin = 0, end = points.values.size();
  const auto skip_left = [&] {
    while (begin < end && IsSpace(points.values[begin])) ++begin;
  };
  const auto skip_right = [&] {
    while (end > begin && IsSpace(points.values[end - 1])) --end;
  };
  if (side != Side::kRight) {
    for (skip_left(); begin < end; skip_left()) {
      size_t stop = begin;
      if (static_cast<int64_t>(parts.size()) >= most) {
        stop = end;
      }
      while (stop < end && !IsSpace(points.values[stop])) ++stop;
      parts.push_back(piece(begin, stop));
      begin = stop;
    }
    return parts;
  }
  for (skip_right(); begin < end; skip_right()) {
    size_t start = end;
    if (static_cast<int64_t>(parts.size()) >= most) {
      start = begin;
    }
    while (start > begin && !IsSpace(points.values[start - 1])) --start;
    parts.push_back(piece(start, end));
    end = start;
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<MarkedText> SplitLines(const MarkedText& text, bool keeps_ends) {
  const CodePoints points(text.bytes());
  const size_t count = points.values.size();
  std::vector<MarkedText> lines;
  for (size_t begin = 0; begin < count;) {
    size_t end = begin;
    while (end < count && !IsLineEnd(points.values[end])) ++end;
    size_t next = std::min(end + 1, count);
    if (next < count && points.values[end] == '\r' && points.values[next] == '\n') ++next;
    const size_t stop = keeps_ends ? next : end;
    lines.push_back(
        text.Substr(points.offsets[begin], points.offsets[stop] - points.offsets[begin]));
    begin = next;
  }
  return lines;
}

MarkedText Replace(const MarkedText& text, std::string_view old, const MarkedText& replacement,
                   int64_t most) {
  MarkedText out;
  if (old.empty()) {
    const CodePoints points(text.bytes());
    for (size_t i = 0; i <= points.values.size(); ++i) {
      if (static_cast<int64_t>(i) < most) out.Append(replacement);
      if (i == points.values.size()) break;
      out.Append(text, points.offsets[i], points.offsets[i + 1] - points.offsets[i]);
    }
    return out;
  }
  size_t begin = 0;
  for (int64_t i = 0; i < most; ++i) {
    const size_t at = Find(text.bytes(), old, begin);
    if (at == kNone) break;
    out.Append(text, begin, at - begin);
    out.Append(replacement);
    begin = at + old.size();
  }
  out.Append(text, begin, text.size() - begin);
  return out;
}

MarkedText Pad(const MarkedText& text, int64_t width, std::string_view fill, Side side) {
  const auto length = static_cast<int64_t>(CountCodePoints(text.bytes()));
  const int64_t missing = std::max<int64_t>(0, width - length);
  int64_t left = side == Side::kLeft ? missing : 0;
  // Python's center puts the odd one left for odd widths only.
  if (side == Side::kBoth) left = missing / 2 + (missing & width & 1);
  MarkedText out;
  for (int64_t i = 0; i < left; ++i) out.Append(fill, MarkedText::Mark::kContent);
  out.Append(text);
  for (int64_t i = left; i < missing; ++i) out.Append(fill, MarkedText::Mark::kContent);
  return out;
}

}  // namespace sluice::engine::chat
