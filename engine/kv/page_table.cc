#include "engine/kv/page_table.h"

namespace sluice::engine {

bool PageTable::Cover(int positions) {
  const int missing = PagesFor(positions) - num_pages();
  return missing <= 0 || allocator_->Allocate(missing, pages_);
}

void PageTable::Clear() {
  for (const PageId page : pages_) allocator_->Free(page);
  pages_.clear();
}

}  // namespace sluice::engine
