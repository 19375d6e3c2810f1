#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sluice::engine {

// What PagePool and its prefix cache must come to, worked out so simply that it can be trusted:
// there are pages and nothing else, and every question is answered by looking at all of them.
// Pages are numbers from 1; 0 is none. Value.
class NaivePool {
 public:
  struct Page {
    int references = 0;
    std::string text;           // cached under: all from the beginning on; empty: not cached
    uint64_t hash = 0;          // of the text, as the cache gave it
    uint64_t unused_since = 0;  // when the last reference went, on a clock of such events
  };

  explicit NaivePool(int total) : pages_(static_cast<size_t>(total) + 1) {}

  const Page& page(int id) const { return pages_[static_cast<size_t>(id)]; }
  int total() const { return static_cast<int>(pages_.size()) - 1; }
  bool IsFree(int id) const { return page(id).references == 0 && page(id).text.empty(); }
  int num_free() const;
  int num_cached() const;  // and without references
  int num_held() const;    // cached, with references or without

  // The page that is cached under `text`; 0: there is none.
  int Find(const std::string& text) const;
  // Gives cached pages up, the one that is unused for longest first, until `count` are free. False,
  // and nothing given up, when there are too few. `evicted` counts them.
  bool MakeRoom(int count, int64_t& evicted);
  // Gives all of them up.
  void Flush(int64_t& evicted) { MakeRoom(num_free() + num_cached(), evicted); }
  // A reference more, and one less.
  void Take(int id) { ++pages_[static_cast<size_t>(id)].references; }
  void Drop(int id);
  // The page that is cached under `text` from now on: `id` when there was none.
  int Publish(const std::string& text, uint64_t hash, int id);

  // Whether another cached page continues the text of `id`.
  bool IsContinued(int id) const;

 private:
  std::vector<Page> pages_;  // by id
  uint64_t clock_ = 0;
};

}  // namespace sluice::engine
