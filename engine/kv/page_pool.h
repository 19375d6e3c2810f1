#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/ids.h"
#include "engine/kv/page_allocator.h"
#include "engine/kv/prefix_cache.h"

namespace sluice::engine {

// The KV pool of one engine, as page tables and the scheduler see it. A page is in one of three
// states: free; named by page tables, so many references; or unreferenced but cached, which counts
// as available and is given up, least recently used first, when the free ones run out. Owned by the
// scheduler; engine thread only.
class PagePool {
 public:
  // `num_pages`: page 0 included.
  PagePool(int num_pages, const PrefixCache::Options& cache)
      : allocator_(num_pages), cache_(num_pages, cache) {}

  int total() const { return allocator_.total(); }  // page 0 not counted
  int num_free() const { return allocator_.num_free(); }
  int num_cached() const { return cache_.num_unreferenced(); }  // and unreferenced
  int num_available() const { return num_free() + num_cached(); }
  int references(PageId page) const { return allocator_.references(page); }

  // Appends `count` pages to `pages`, each with one reference; false, and none taken, when fewer
  // are available.
  bool Allocate(int count, std::vector<PageId>& pages);
  void Share(PageId page);
  void Release(PageId page);

  // The page that holds the same as `key` says; nothing when there is none.
  std::optional<PageId> Find(const PrefixKey& key) const { return cache_.Find(key); }
  // Puts `page`, which the caller names in a table, into the cache. Returns the page that was there
  // under the key before, else `page`.
  PageId Publish(const PrefixKey& key, PageId page);
  const PrefixCache& cache() const { return cache_; }
  // Forgets every cached page that is unreferenced.
  void Flush();

  // What is wrong with the accounts, given the pages of all page tables; nothing when all is well.
  // O(pages): for tests, and for a server that is asked.
  std::optional<std::string> Fault(std::span<const std::span<const PageId>> tables) const;

 private:
  void Evict();

  PageAllocator allocator_;
  PrefixCache cache_;
};

}  // namespace sluice::engine
