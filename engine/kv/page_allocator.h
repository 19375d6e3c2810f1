#pragma once

#include <vector>

#include "engine/base/ids.h"

namespace sluice::engine {

// Which pages of the KV pool are free: ids and counts only, no memory of the device. Every page but
// page 0, which is scratch, is either free or held by exactly one page table. Owned by the
// scheduler; engine thread only.
class PageAllocator {
 public:
  // `num_pages`: of the pool, page 0 included; at least 1.
  explicit PageAllocator(int num_pages);

  int total() const { return total_; }  // page 0 not counted
  int num_free() const { return static_cast<int>(free_.size()); }

  // Appends `count` pages to `pages`, or none when fewer are free.
  bool Allocate(int count, std::vector<PageId>& pages);
  // Takes back a page that is held; anything else ends the process.
  void Free(PageId page);

 private:
  int total_;
  std::vector<PageId> free_;  // a stack: a page just freed is warm
  std::vector<bool> held_;    // by page id
};

}  // namespace sluice::engine
