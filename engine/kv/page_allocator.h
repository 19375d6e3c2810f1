#pragma once

#include <cstdint>
#include <vector>

#include "engine/base/ids.h"

namespace sluice::engine {

// Which pages of the KV pool are free, and how many page tables name each of the others: ids and
// counts only, no memory of the device. A page that no table names is not free until Free: the
// prefix cache may keep it. Page 0 is scratch and never handed out. Owned by the page pool; engine
// thread only.
class PageAllocator {
 public:
  // `num_pages`: of the pool, page 0 included; at least 1.
  explicit PageAllocator(int num_pages);

  int total() const { return total_; }  // page 0 not counted
  int num_free() const { return static_cast<int>(free_.size()); }

  // Appends `count` pages to `pages`, each with one reference, or none when fewer are free.
  bool Allocate(int count, std::vector<PageId>& pages);
  // One reference more to a page that is not free, and one less. Release returns how many are left.
  // What contradicts the counts ends the process, here and below.
  void Share(PageId page);
  int Release(PageId page);
  // Takes back a page without references.
  void Free(PageId page);

  bool is_free(PageId page) const { return references_[Index(page)] == kFree; }
  int references(PageId page) const { return is_free(page) ? 0 : references_[Index(page)]; }

 private:
  static constexpr int32_t kFree = -1;
  size_t Index(PageId page) const;

  int total_;
  std::vector<PageId> free_;         // a stack: a page just freed is warm
  std::vector<int32_t> references_;  // by page id; kFree
};

}  // namespace sluice::engine
