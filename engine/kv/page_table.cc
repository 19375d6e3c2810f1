#include "engine/kv/page_table.h"

#include <utility>

namespace sluice::engine {

bool PageTable::Cover(int positions) {
  const int missing = PagesFor(positions) - num_pages();
  return missing <= 0 || pool_->Allocate(missing, pages_);
}

void PageTable::Share(PageId page) {
  pool_->Share(page);
  pages_.push_back(page);
}

PageId PageTable::Replace(int index, PageId page) {
  pool_->Share(page);
  return std::exchange(pages_[static_cast<size_t>(index)], page);
}

void PageTable::Clear() {
  // From the end: so the pool knows pages that depend on others as unused for longer than those.
  for (; !pages_.empty(); pages_.pop_back()) pool_->Release(pages_.back());
}

}  // namespace sluice::engine
