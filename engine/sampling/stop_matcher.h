#pragma once

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
  StopMatcher(std::vector<std::string> stop, bool include_stop_in_output);

  // Takes the next piece; appends the text that is certain to be output to `out`. Returns the stop
  // string when one is complete: of several, the one that ends first, then the longest. After a
  // match nothing more is given out.
  std::optional<std::string> Append(std::string_view text, std::string& out);
  // At the end without a match: gives out what was held back.
  void Finish(std::string& out);
  // True when text is held back.
  bool holding() const { return !held_.empty(); }

 private:
  std::vector<std::string> stop_;
  bool include_stop_;
  std::string held_;
  bool matched_ = false;
};

}  // namespace sluice::engine
