#include "engine/kv/page_allocator.h"

#include "engine/base/check.h"

namespace sluice::engine {

PageAllocator::PageAllocator(int num_pages) : total_(num_pages - 1) {
  SLUICE_CHECK(num_pages >= 1, "a pool has page 0 at least");
  held_.assign(static_cast<size_t>(num_pages), false);
  free_.reserve(static_cast<size_t>(total_));
  for (int32_t id = total_; id >= 1; --id) free_.push_back(PageId{id});
}

bool PageAllocator::Allocate(int count, std::vector<PageId>& pages) {
  if (count > num_free()) return false;
  for (int i = 0; i < count; ++i) {
    const PageId page = free_.back();
    free_.pop_back();
    held_[static_cast<size_t>(page.value)] = true;
    pages.push_back(page);
  }
  return true;
}

void PageAllocator::Free(PageId page) {
  SLUICE_CHECK(page.value >= 1 && page.value <= total_, "no such page in the pool");
  SLUICE_CHECK(held_[static_cast<size_t>(page.value)], "page freed twice");
  held_[static_cast<size_t>(page.value)] = false;
  free_.push_back(page);
}

}  // namespace sluice::engine
