#include "engine/kv/page_allocator.h"

#include "engine/base/check.h"

namespace sluice::engine {

PageAllocator::PageAllocator(int num_pages) : total_(num_pages - 1) {
  SLUICE_CHECK(num_pages >= 1, "a pool has page 0 at least");
  references_.assign(static_cast<size_t>(num_pages), kFree);
  free_.reserve(static_cast<size_t>(total_));
  for (int32_t id = total_; id >= 1; --id) free_.push_back(PageId{id});
}

size_t PageAllocator::Index(PageId page) const {
  SLUICE_CHECK(page.value >= 1 && page.value <= total_, "no such page in the pool");
  return static_cast<size_t>(page.value);
}

bool PageAllocator::Allocate(int count, std::vector<PageId>& pages) {
  if (count > num_free()) return false;
  for (int i = 0; i < count; ++i) {
    const PageId page = free_.back();
    free_.pop_back();
    references_[Index(page)] = 1;
    pages.push_back(page);
  }
  return true;
}

void PageAllocator::Share(PageId page) {
  SLUICE_CHECK(!is_free(page), "only a page that is not free is shared");
  ++references_[Index(page)];
}

int PageAllocator::Release(PageId page) {
  SLUICE_CHECK(references_[Index(page)] > 0, "page released more often than it was taken");
  return --references_[Index(page)];
}

void PageAllocator::Free(PageId page) {
  SLUICE_CHECK(!is_free(page), "page freed twice");
  SLUICE_CHECK(references_[Index(page)] == 0, "page freed that a table names");
  references_[Index(page)] = kFree;
  free_.push_back(page);
}

}  // namespace sluice::engine
