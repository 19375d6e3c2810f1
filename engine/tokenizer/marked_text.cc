#include "engine/tokenizer/marked_text.h"

#include <algorithm>

namespace sluice::engine {
namespace {

MarkedText::Mark Other(MarkedText::Mark mark) {
  return mark == MarkedText::Mark::kTemplate ? MarkedText::Mark::kContent
                                             : MarkedText::Mark::kTemplate;
}

}  // namespace

void MarkedText::Append(std::string_view bytes, Mark mark) {
  if (bytes.empty()) return;
  if (bytes_.empty()) {
    first_ = mark;
  } else if (MarkAt(bytes_.size() - 1) != mark) {
    flips_.push_back(bytes_.size());
  }
  bytes_ += bytes;
}

void MarkedText::Append(const MarkedText& other, size_t begin, size_t size) {
  if (size == 0) return;
  const std::string_view bytes = other.bytes_;
  if (other.flips_.empty()) return Append(bytes.substr(begin, size), other.first_);
  const size_t end = begin + size;
  auto flip = std::upper_bound(other.flips_.begin(), other.flips_.end(), begin);
  Mark mark = other.MarkAt(begin);
  while (begin < end) {
    const size_t run_end = flip == other.flips_.end() ? end : std::min(end, *flip);
    Append(bytes.substr(begin, run_end - begin), mark);
    begin = run_end;
    mark = Other(mark);
    if (flip != other.flips_.end()) ++flip;
  }
}

MarkedText MarkedText::Substr(size_t begin, size_t size) const {
  MarkedText part;
  part.Append(*this, begin, size);
  return part;
}

MarkedText::Mark MarkedText::MarkAt(size_t offset) const {
  const auto flip = std::upper_bound(flips_.begin(), flips_.end(), offset);
  return (flip - flips_.begin()) % 2 == 0 ? first_ : Other(first_);
}

std::vector<MarkedText::Run> MarkedText::Runs() const {
  std::vector<Run> runs;
  if (bytes_.empty()) return runs;
  size_t begin = 0;
  Mark mark = first_;
  for (const size_t flip : flips_) {
    runs.push_back({begin, flip, mark});
    begin = flip;
    mark = Other(mark);
  }
  runs.push_back({begin, bytes_.size(), mark});
  return runs;
}

}  // namespace sluice::engine
