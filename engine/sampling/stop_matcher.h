#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::engine {

// Finds stop strings in text that arrives in pieces. Text that may be the beginning of a stop
// string is held back until it is known; text before it is given out. Bytes are compared, so a
// match may cross token borders anywhere. One a sequence.
class StopMatcher {
 public:
  StopMatcher(const std::vector<std::string>& stop, bool include_stop_in_output);

  // Takes the next piece; appends the text that is certain to be output to `out`. Returns the stop
  // string when one is complete: of several, the one that ends first, then the longest. After a
  // match nothing more is given out. Time linear in `text` for each stop string.
  std::optional<std::string> Append(std::string_view text, std::string& out);
  // At the end without a match: gives out what was held back.
  void Finish(std::string& out);
  // Text that may be the beginning of a stop string: a new matcher that takes it goes on as this
  // one would.
  const std::string& held_back() const { return held_; }

 private:
  // One stop string and how much of it the text so far ends with (Knuth, Morris, Pratt 1977).
  struct Pattern {
    std::string text;
    std::vector<size_t> border;  // [text.size() + 1] longest proper border of each prefix
    size_t matched = 0;          // < text.size()

    explicit Pattern(const std::string& stop);
    bool Advance(char byte);  // true when the whole pattern has just been seen
  };

  std::vector<Pattern> patterns_;
  bool include_stop_;
  std::string held_;
  bool matched_ = false;
};

}  // namespace sluice::engine
