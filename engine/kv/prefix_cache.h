#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/ids.h"
#include "engine/base/keyed_hash.h"
#include "engine/kv/page_size.h"

namespace sluice::engine {

// What a full page holds, as it can be found again: its tokens, what came before them, and who may
// see it. Keys and values of a position depend on all tokens up to it and on nothing else, so an
// equal chain of keys means equal pages, to the bit. View.
struct PrefixKey {
  PageId parent;                    // the cached page of the positions before; 0: the first page
  std::string_view domain;          // looked at for the first page: who shares none is apart
  std::span<const TokenId> tokens;  // [kPageTokens]
  uint64_t hash = 0;                // as PrefixCache::Hash gives it
};

// Full pages by what they hold: a forest whose roots are first pages and whose edges lead from a
// page to those that continue it. A page is found by its hash and then compared in full (parent,
// tokens, domain), so a collision of hashes costs time and is never a wrong page; the hash has a
// secret key, so that nobody can make many. Holds no references: it is told when the last one to a
// page goes. Ids only. Owned by the page pool; engine thread only.
//
// A page is named by no table unless its parent is, and loses its last reference before its parent
// does. So unreferenced pages, in the order in which they became so, come before their parents, and
// eviction from the front takes leaves first.
class PrefixCache {
 public:
  struct Options {
    bool enabled = true;  // off: nothing is ever put in
    KeyedHash hash{};
    int hash_bits = 64;  // that are used; fewer in tests of collisions
  };
  // `num_pages`: of the pool, page 0 included.
  PrefixCache(int num_pages, const Options& options);

  bool enabled() const { return enabled_; }
  // The hash of a first page's `tokens`, and of those behind a page with hash `parent`.
  uint64_t Hash(std::string_view domain, std::span<const TokenId> tokens) const;
  uint64_t Hash(uint64_t parent, std::span<const TokenId> tokens) const;

  std::optional<PageId> Find(const PrefixKey& key) const;
  // Takes `page`, which is referenced, under `key`, whose parent is here. Returns the page that is
  // under the key already, if one is (`page` itself when two tables share it), else `page`.
  PageId Insert(const PrefixKey& key, PageId page);
  bool Holds(PageId page) const {
    return static_cast<size_t>(page.value) < nodes_.size() && node(page).held;
  }

  // A page that is here got its first reference, or lost its last one.
  void SetReferenced(PageId page);
  void SetUnreferenced(PageId page);
  int num_unreferenced() const { return num_unreferenced_; }
  int size() const { return size_; }
  // Gives up the page that is unreferenced for longest; there is one.
  PageId Evict();

  // What is wrong with the index, given references(page); nothing when all is well.
  std::optional<std::string> Fault(const std::function<int(PageId)>& references) const;

 private:
  struct Node {
    std::array<TokenId, kPageTokens> tokens{};
    std::string domain;  // of first pages
    uint64_t hash = 0;
    int32_t parent = 0;
    int32_t num_children = 0;
    int32_t next_in_bucket = 0;
    int32_t older = 0, newer = 0;  // among the unreferenced; 0: the list's end
    bool held = false;
    bool unreferenced = false;
  };

  Node& node(PageId page) { return nodes_[static_cast<size_t>(page.value)]; }
  const Node& node(PageId page) const { return nodes_[static_cast<size_t>(page.value)]; }
  size_t Bucket(uint64_t hash) const { return hash & (buckets_.size() - 1); }
  void Unlink(Node& node);

  const bool enabled_;
  const KeyedHash hash_;
  const uint64_t hash_mask_;
  // By page id, as far as pages were ever held; node 0 holds both ends of the unreferenced. Grows
  // without moving: no step waits for it, and a pool that is never used takes no memory here.
  std::deque<Node> nodes_{1};
  std::vector<int32_t> buckets_;
  int num_unreferenced_ = 0;
  int size_ = 0;
};

}  // namespace sluice::engine
