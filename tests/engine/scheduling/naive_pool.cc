#include "tests/engine/scheduling/naive_pool.h"

#include "engine/base/check.h"

namespace sluice::engine {

int NaivePool::num_free() const {
  int count = 0;
  for (int id = 1; id <= total(); ++id) count += IsFree(id);
  return count;
}

int NaivePool::num_cached() const {
  int count = 0;
  for (int id = 1; id <= total(); ++id) count += page(id).references == 0 && !IsFree(id);
  return count;
}

int NaivePool::num_held() const {
  int count = 0;
  for (int id = 1; id <= total(); ++id) count += !page(id).text.empty();
  return count;
}

int NaivePool::Find(const std::string& text) const {
  for (int id = 1; id <= total(); ++id) {
    if (page(id).text == text) return id;
  }
  return 0;
}

bool NaivePool::IsContinued(int id) const {
  for (int other = 1; other <= total(); ++other) {
    if (other != id && page(other).text.starts_with(page(id).text)) return true;
  }
  return false;
}

bool NaivePool::MakeRoom(int count, int64_t& evicted) {
  if (count > num_free() + num_cached()) return false;
  while (num_free() < count) {
    int oldest = 0;
    for (int id = 1; id <= total(); ++id) {
      if (page(id).references > 0 || page(id).text.empty()) continue;
      if (oldest == 0 || page(id).unused_since < page(oldest).unused_since) oldest = id;
    }
    SLUICE_CHECK(!IsContinued(oldest), "a page leaves after those that continue it");
    pages_[static_cast<size_t>(oldest)] = Page{};
    ++evicted;
  }
  return true;
}

void NaivePool::Drop(int id) {
  Page& dropped = pages_[static_cast<size_t>(id)];
  SLUICE_CHECK(dropped.references > 0, "only what was taken is dropped");
  --dropped.references;
  if (dropped.references == 0) dropped.unused_since = ++clock_;
}

int NaivePool::Publish(const std::string& text, uint64_t hash, int id) {
  if (const int there = Find(text)) return there;
  Page& published = pages_[static_cast<size_t>(id)];
  SLUICE_CHECK(published.text.empty(), "a page is cached under one text");
  published.text = text;
  published.hash = hash;
  return id;
}

}  // namespace sluice::engine
