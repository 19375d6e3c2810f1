#include "engine/sampling/stop_matcher.h"

#include <algorithm>

#include "engine/base/check.h"

namespace sluice::engine {

StopMatcher::Pattern::Pattern(const std::string& stop) : text(stop), border(stop.size() + 1, 0) {
  SLUICE_CHECK(!stop.empty(), "a stop string has one byte at least");
  for (size_t end = 1; end < text.size(); ++end) {
    size_t length = border[end];
    while (length > 0 && text[length] != text[end]) length = border[length];
    border[end + 1] = text[length] == text[end] ? length + 1 : 0;
  }
}

bool StopMatcher::Pattern::Advance(char byte) {
  while (matched > 0 && text[matched] != byte) matched = border[matched];
  if (text[matched] == byte) ++matched;
  return matched == text.size();
}

StopMatcher::StopMatcher(const std::vector<std::string>& stop, bool include_stop_in_output)
    : include_stop_(include_stop_in_output) {
  patterns_.reserve(stop.size());
  for (const std::string& text : stop) patterns_.emplace_back(text);
}

std::optional<std::string> StopMatcher::Append(std::string_view text, std::string& out) {
  if (matched_) return std::nullopt;
  if (patterns_.empty()) {
    out += text;
    return std::nullopt;
  }
  for (const char byte : text) {
    held_.push_back(byte);
    const Pattern* complete = nullptr;
    for (Pattern& pattern : patterns_) {
      if (pattern.Advance(byte) && (!complete || pattern.text.size() > complete->text.size()))
        complete = &pattern;
    }
    if (complete) {
      matched_ = true;
      if (!include_stop_) held_.resize(held_.size() - complete->text.size());
      out += held_;
      held_.clear();
      return complete->text;
    }
  }
  size_t keep = 0;
  for (const Pattern& pattern : patterns_) keep = std::max(keep, pattern.matched);
  out.append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return std::nullopt;
}

void StopMatcher::Finish(std::string& out) {
  out += held_;
  held_.clear();
}

}  // namespace sluice::engine
