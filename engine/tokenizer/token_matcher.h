#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/ids.h"

namespace sluice::engine {

// Finds added tokens written in text: from the left, at each position the longest one, never two
// that overlap (Hugging Face's leftmost-longest). Linear in the text, however many tokens there are
// and however they overlap: an Aho-Corasick automaton (CACM 18(6), 1975) of the tokens read
// backwards, run over the text from its end, knows the longest token that begins at each byte.
// Immutable; thread-safe.
class TokenMatcher {
 public:
  struct Token {
    std::string_view text;  // not empty
    TokenId id;
  };
  struct Match {
    size_t begin;
    size_t size;
    TokenId id;
  };

  // INVALID_ARGUMENT when all texts together are longer than 8 MiB. Of equal texts the lowest id
  // wins.
  static absl::StatusOr<TokenMatcher> Create(std::vector<Token> tokens);

  // The matches in `text`, ascending.
  std::vector<Match> FindAll(std::string_view text) const {
    return WithoutOverlaps(FindLongest(text));
  }
  // The longest token at each byte where one begins, ascending: they may overlap.
  std::vector<Match> FindLongest(std::string_view text) const;
  // Of ascending matches those that a reader from the left takes.
  static std::vector<Match> WithoutOverlaps(std::vector<Match> matches);

 private:
  // A node is a suffix of tokens. The children of a node are neighbours, by ascending label.
  struct Node {
    uint32_t first_child = 0;
    uint32_t num_children = 0;
    uint32_t failure = 0;     // the longest proper "suffix" that is a node too
    uint32_t match_size = 0;  // longest token that ends here, 0: none
    TokenId match_id = -1;
  };
  static constexpr uint32_t kRoot = 0;

  uint32_t Child(uint32_t node, uint8_t label) const;  // kRoot when there is none
  uint32_t Step(uint32_t node, uint8_t label) const;
  void AddNodes(const std::vector<Token>& sorted);

  std::vector<Node> nodes_;            // breadth first
  std::vector<uint8_t> labels_;        // [nodes_.size()] of the edge that leads to the node
  std::array<uint32_t, 256> roots_{};  // the root's children by label
};

}  // namespace sluice::engine
