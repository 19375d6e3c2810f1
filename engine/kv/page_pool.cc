#include "engine/kv/page_pool.h"

#include "engine/base/check.h"

namespace sluice::engine {

bool PagePool::Allocate(int count, std::vector<PageId>& pages) {
  if (count > num_available()) return false;
  while (allocator_.num_free() < count) Evict();
  return allocator_.Allocate(count, pages);
}

void PagePool::Evict() { allocator_.Free(cache_.Evict()); }

void PagePool::Share(PageId page) {
  allocator_.Share(page);
  if (allocator_.references(page) == 1) cache_.SetReferenced(page);
}

void PagePool::Release(PageId page) {
  if (allocator_.Release(page) > 0) return;
  if (cache_.Holds(page)) {
    cache_.SetUnreferenced(page);
  } else {
    allocator_.Free(page);
  }
}

PageId PagePool::Publish(const PrefixKey& key, PageId page) {
  SLUICE_CHECK(allocator_.references(page) > 0, "a page is published by who names it");
  return cache_.Insert(key, page);
}

void PagePool::Flush() {
  while (cache_.num_unreferenced() > 0) Evict();
}

std::optional<std::string> PagePool::Fault(std::span<const std::span<const PageId>> tables) const {
  std::vector<int> named(static_cast<size_t>(total()) + 1, 0);
  for (const std::span<const PageId> table : tables) {
    for (const PageId page : table) {
      if (page.value < 1 || page.value > total()) return "a table names no page of the pool";
      ++named[static_cast<size_t>(page.value)];
    }
  }
  int num_referenced = 0;
  int num_unreferenced = 0;
  for (int32_t id = 1; id <= total(); ++id) {
    const PageId page{id};
    const int references = named[static_cast<size_t>(id)];
    const auto name = [id] { return "page " + std::to_string(id); };
    if (allocator_.references(page) != references) {
      return name() + ": " + std::to_string(allocator_.references(page)) + " references, " +
             std::to_string(references) + " tables name it";
    }
    if (references > 0 && allocator_.is_free(page)) return name() + " is free and in a table";
    if (allocator_.is_free(page) && cache_.Holds(page)) return name() + " is free and cached";
    num_referenced += references > 0;
    if (references > 0 || allocator_.is_free(page)) continue;
    if (!cache_.Holds(page)) return name() + " is leaked: neither free nor named nor cached";
    ++num_unreferenced;
  }
  if (num_free() + num_referenced + num_unreferenced != total() ||
      num_unreferenced != num_cached()) {
    return std::to_string(num_free()) + " free, " + std::to_string(num_referenced) +
           " referenced and " + std::to_string(num_cached()) + " (counted " +
           std::to_string(num_unreferenced) + ") cached pages are not " + std::to_string(total());
  }
  return cache_.Fault([this](PageId page) { return allocator_.references(page); });
}

}  // namespace sluice::engine
