#include "engine/tokenizer/token_matcher.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "engine/base/status.h"

namespace sluice::engine {
namespace {

constexpr size_t kMaxTotalBytes = size_t{8} << 20;

}  // namespace

absl::StatusOr<TokenMatcher> TokenMatcher::Create(std::vector<Token> tokens) {
  size_t num_bytes = 0;
  for (const Token& token : tokens) num_bytes += token.text.size();
  if (num_bytes > kMaxTotalBytes) {
    return InvalidArgument(
        "tokenizer.ggml.tokens: expected at most " + std::to_string(kMaxTotalBytes) +
        " bytes of control and user-defined tokens, got " + std::to_string(num_bytes));
  }
  // Backwards, so that the tokens of a node are a range.
  std::sort(tokens.begin(), tokens.end(), [](const Token& a, const Token& b) {
    if (a.text == b.text) return a.id < b.id;
    return std::lexicographical_compare(a.text.rbegin(), a.text.rend(), b.text.rbegin(),
                                        b.text.rend());
  });
  TokenMatcher matcher;
  matcher.AddNodes(tokens);
  return matcher;
}

void TokenMatcher::AddNodes(const std::vector<Token>& sorted) {
  struct Range {
    size_t begin;
    size_t end;
    uint32_t depth;
  };
  std::vector<Range> ranges = {{0, sorted.size(), 0}};
  nodes_.emplace_back();
  labels_.push_back(0);
  for (uint32_t node = 0; node < nodes_.size(); ++node) {
    auto [begin, end, depth] = ranges[node];
    if (begin < end && sorted[begin].text.size() == depth) {
      nodes_[node].match_id = sorted[begin].id;
      nodes_[node].match_size = depth;
      while (begin < end && sorted[begin].text.size() == depth) ++begin;
    } else if (node != kRoot) {
      const Node& shorter = nodes_[nodes_[node].failure];
      nodes_[node].match_id = shorter.match_id;
      nodes_[node].match_size = shorter.match_size;
    }
    const auto label_of = [&sorted, depth = depth](size_t token) {
      return static_cast<uint8_t>(*(sorted[token].text.rbegin() + depth));
    };
    nodes_[node].first_child = static_cast<uint32_t>(nodes_.size());
    while (begin < end) {
      const uint8_t label = label_of(begin);
      const size_t range_begin = begin;
      while (begin < end && label_of(begin) == label) ++begin;
      // Breadth first: the failure of a node is nearer to the root and complete.
      const uint32_t failure = node == kRoot ? kRoot : Step(nodes_[node].failure, label);
      const auto child = static_cast<uint32_t>(nodes_.size());
      nodes_.emplace_back().failure = failure;
      labels_.push_back(label);
      ranges.push_back({range_begin, begin, depth + 1});
      ++nodes_[node].num_children;
      if (node == kRoot) roots_[label] = child;
    }
  }
}

uint32_t TokenMatcher::Child(uint32_t node, uint8_t label) const {
  if (node == kRoot) return roots_[label];
  const Node& parent = nodes_[node];
  if (parent.num_children == 0) return kRoot;
  const uint8_t* labels = labels_.data() + parent.first_child;
  const void* found = std::memchr(labels, label, parent.num_children);
  if (found == nullptr) return kRoot;
  return parent.first_child + static_cast<uint32_t>(static_cast<const uint8_t*>(found) - labels);
}

uint32_t TokenMatcher::Step(uint32_t node, uint8_t label) const {
  uint32_t next = Child(node, label);
  while (next == kRoot && node != kRoot) {
    node = nodes_[node].failure;
    next = Child(node, label);
  }
  return next;
}

std::vector<TokenMatcher::Match> TokenMatcher::FindLongest(std::string_view text) const {
  std::vector<Match> matches;
  if (nodes_.size() == 1) return matches;
  uint32_t node = kRoot;
  for (size_t begin = text.size(); begin-- > 0;) {
    node = Step(node, static_cast<uint8_t>(text[begin]));
    const Node& at = nodes_[node];
    if (at.match_size != 0) matches.push_back({begin, at.match_size, at.match_id});
  }
  std::reverse(matches.begin(), matches.end());
  return matches;
}

std::vector<TokenMatcher::Match> TokenMatcher::WithoutOverlaps(std::vector<Match> matches) {
  size_t free_from = 0;
  std::erase_if(matches, [&free_from](const Match& match) {
    if (match.begin < free_from) return true;
    free_from = match.begin + match.size;
    return false;
  });
  return matches;
}

}  // namespace sluice::engine
