#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::engine {

// UTF-8 text of which every byte has a mark: it was written by the author of a chat template, or it
// is content that came from elsewhere (a user's message, a tool's answer, a number that a template
// computed). Control tokens are recognised where template text spells them from first to last byte;
// text that only looks like them because content completes it stays text. Value.
class MarkedText {
 public:
  enum class Mark : uint8_t { kTemplate, kContent };
  // A longest stretch of bytes with one mark. Never empty.
  struct Run {
    size_t begin;
    size_t end;
    Mark mark;
  };

  MarkedText() = default;
  MarkedText(std::string bytes, Mark mark) : bytes_(std::move(bytes)), first_(mark) {}

  const std::string& bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }

  void Append(std::string_view bytes, Mark mark);
  void Append(const MarkedText& other) { Append(other, 0, other.size()); }
  // Bytes [begin, begin + size) of another text, marks included.
  void Append(const MarkedText& other, size_t begin, size_t size);
  MarkedText Substr(size_t begin, size_t size) const;

  // Of the byte at `offset`, which is below size().
  Mark MarkAt(size_t offset) const;
  // Ascending, covering the text; empty for an empty text.
  std::vector<Run> Runs() const;

 private:
  std::string bytes_;
  Mark first_ = Mark::kTemplate;  // of byte 0
  std::vector<size_t> flips_;     // ascending offsets, in (0, size()), where the mark changes
};

}  // namespace sluice::engine
