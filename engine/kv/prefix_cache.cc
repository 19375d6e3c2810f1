#include "engine/kv/prefix_cache.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "engine/base/check.h"

namespace sluice::engine {
namespace {

template <typename T>
std::string_view BytesOf(std::span<const T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

}  // namespace

PrefixCache::PrefixCache(int num_pages, const Options& options)
    : enabled_(options.enabled),
      hash_(options.hash),
      hash_mask_(options.hash_bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << options.hash_bits) - 1),
      buckets_(std::bit_ceil(static_cast<size_t>(num_pages)), 0) {}

uint64_t PrefixCache::Hash(std::string_view domain, std::span<const TokenId> tokens) const {
  return Hash(hash_.OfBytes(domain), tokens);
}

uint64_t PrefixCache::Hash(uint64_t parent, std::span<const TokenId> tokens) const {
  SLUICE_CHECK(tokens.size() == kPageTokens, "only full pages are cached");
  char bytes[sizeof parent + kPageTokens * sizeof(TokenId)];
  std::memcpy(bytes, &parent, sizeof parent);
  std::memcpy(bytes + sizeof parent, tokens.data(), tokens.size_bytes());
  return hash_.OfBytes({bytes, sizeof bytes}) & hash_mask_;
}

std::optional<PageId> PrefixCache::Find(const PrefixKey& key) const {
  for (int32_t id = buckets_[Bucket(key.hash)]; id != 0;) {
    const Node& candidate = nodes_[static_cast<size_t>(id)];
    // The parent was compared when it was found, and so on down to the first page and its domain.
    if (candidate.hash == key.hash && candidate.parent == key.parent.value &&
        BytesOf<TokenId>(candidate.tokens) == BytesOf(key.tokens) &&
        (candidate.parent != 0 || candidate.domain == key.domain)) {
      return PageId{id};
    }
    id = candidate.next_in_bucket;
  }
  return std::nullopt;
}

PageId PrefixCache::Insert(const PrefixKey& key, PageId page) {
  SLUICE_CHECK(enabled_, "nothing is put into a cache that is off");
  SLUICE_CHECK(key.parent.value == 0 || Holds(key.parent), "a page follows one that is here");
  if (const std::optional<PageId> found = Find(key)) return *found;
  SLUICE_CHECK(!Holds(page), "a page is put in under one key");
  if (static_cast<size_t>(page.value) >= nodes_.size()) {
    nodes_.resize(static_cast<size_t>(page.value) + 1);
  }
  Node& added = node(page);
  std::copy(key.tokens.begin(), key.tokens.end(), added.tokens.begin());
  added.domain = key.parent.value == 0 ? std::string(key.domain) : std::string();
  added.hash = key.hash;
  added.parent = key.parent.value;
  added.num_children = 0;
  added.held = true;
  added.unreferenced = false;
  int32_t& bucket = buckets_[Bucket(key.hash)];
  added.next_in_bucket = bucket;
  bucket = page.value;
  if (key.parent.value != 0) ++node(key.parent).num_children;
  ++size_;
  return page;
}

void PrefixCache::Unlink(Node& node) {
  nodes_[static_cast<size_t>(node.older)].newer = node.newer;
  nodes_[static_cast<size_t>(node.newer)].older = node.older;
  node.unreferenced = false;
  --num_unreferenced_;
}

void PrefixCache::SetReferenced(PageId page) {
  SLUICE_CHECK(Holds(page) && node(page).unreferenced, "an unreferenced page that is cached");
  Unlink(node(page));
}

void PrefixCache::SetUnreferenced(PageId page) {
  Node& newest = node(page);
  SLUICE_CHECK(newest.held && !newest.unreferenced, "a referenced page that is cached");
  // Node 0 is both ends: newer than the newest, older than the oldest.
  newest.older = nodes_[0].older;
  newest.newer = 0;
  nodes_[static_cast<size_t>(newest.older)].newer = page.value;
  nodes_[0].older = page.value;
  newest.unreferenced = true;
  ++num_unreferenced_;
}

PageId PrefixCache::Evict() {
  const PageId page{nodes_[0].newer};
  SLUICE_CHECK(page.value != 0, "a page to evict");
  Node& evicted = node(page);
  SLUICE_CHECK(evicted.num_children == 0, "a page leaves after those that continue it");
  Unlink(evicted);
  int32_t* link = &buckets_[Bucket(evicted.hash)];
  while (*link != page.value) link = &nodes_[static_cast<size_t>(*link)].next_in_bucket;
  *link = evicted.next_in_bucket;
  if (evicted.parent != 0) --nodes_[static_cast<size_t>(evicted.parent)].num_children;
  evicted.held = false;
  --size_;
  return page;
}

std::optional<std::string> PrefixCache::Fault(const std::function<int(PageId)>& references) const {
  std::vector<int32_t> children(nodes_.size(), 0);
  int held = 0;
  for (int32_t id = 1; id < static_cast<int32_t>(nodes_.size()); ++id) {
    const Node& node = nodes_[static_cast<size_t>(id)];
    if (!node.held) continue;
    ++held;
    const auto name = [id] { return "cached page " + std::to_string(id); };
    const Node& parent = nodes_[static_cast<size_t>(node.parent)];
    if (node.parent != 0 && !parent.held) return name() + " outlived its parent";
    if (node.unreferenced != (references(PageId{id}) == 0)) return name() + ": wrong list";
    if (node.parent != 0 && parent.unreferenced && !node.unreferenced)
      return name() + " is referenced, its parent is not";
    ++children[static_cast<size_t>(node.parent)];
    const uint64_t hash =
        node.parent == 0 ? Hash(node.domain, node.tokens) : Hash(parent.hash, node.tokens);
    if (hash != node.hash) return name() + ": its hash is another's";
    if (Find({PageId{node.parent}, node.domain, node.tokens, hash}) != PageId{id})
      return name() + " is not found under its key";
  }
  if (held != size_) return "the cache does not hold as many pages as it counts";
  for (size_t id = 1; id < nodes_.size(); ++id) {
    if (nodes_[id].held && nodes_[id].num_children != children[id])
      return "cached page " + std::to_string(id) + ": wrong number of children";
  }
  return std::nullopt;
}

}  // namespace sluice::engine
