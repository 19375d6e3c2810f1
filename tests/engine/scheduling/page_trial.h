#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/ids.h"
#include "engine/kv/page_pool.h"
#include "engine/kv/page_table.h"
#include "tests/engine/scheduling/naive_pool.h"
#include "tests/sim/random.h"

namespace sluice::engine {

// Random operations on a pool of pages, its prefix cache and page tables, each done to NaivePool as
// well and compared: what the operation gave; then of every page whether it is cached and how many
// references it has; and that free, cached and used pages are all there are. A seed stands for the
// pool's size and all that happens.
//
// As the scheduler does, it names the pages of a text from the first on, and lets others name those
// of a sequence that uses the cache only once they are cached: the cache relies on both.
class PageTrial {
 public:
  struct Count {
    int64_t operations = 0;
    int64_t lookups = 0;      // texts that were looked up
    int64_t found = 0;        // pages of them
    int64_t allocated = 0;    // pages
    int64_t refused = 0;      // allocations that did not fit
    int64_t published = 0;    // pages
    int64_t replaced = 0;     // pages that gave way to an equal one
    int64_t forks = 0;        // sequences that began with another's pages
    int64_t copies = 0;       // pages of their own behind those
    int64_t bypassed = 0;     // sequences that keep out of the cache
    int64_t other_salts = 0;  // lookups that missed what another domain has
    int64_t evicted = 0;      // pages
    int64_t flushes = 0;

    void Add(const Count& other);
    // What never happened; null when everything did.
    const char* Missing() const;
  };

  // `trace`: prints each operation.
  PageTrial(uint64_t seed, bool trace);

  // Does `operations`, and then gives everything back. What differed first; nothing when nothing.
  std::optional<std::string> Run(int64_t operations);
  const Count& count() const { return count_; }

 private:
  // A sequence, in so far as pages know of it.
  struct User {
    explicit User(PagePool* pool) : table(pool) {}
    bool open = false;
    bool bypass = false;
    std::string text;              // a letter for who may see it, then one for each page
    std::vector<uint64_t> hashes;  // of its pages
    PageTable table;
    int positions = 0;   // that are covered
    int num_cached = 0;  // pages, from the first on, that are cached
  };

  // What is fixed for a trial.
  struct Shape {
    explicit Shape(sim::Random& random);
    int num_pages, num_users, most_letters, num_letters, num_domains, hash_bits, differs_at;
    bool enabled;
    KeyedHash::Key key;
  };

  void Step();
  void StepOfUser(User& user);
  void StepOfPool();
  void Open(User& user);
  void Fork(User& user, const User& from);
  void LookUp(User& user, bool names);
  void Cover(User& user, int positions);
  void Publish(User& user);
  void Close(User& user);
  void Allocate(int count);
  void Overdraw();
  void GiveBack(std::vector<PageId>& pages);
  void Flush();
  void CloseAll();

  std::string DrawText(std::string beginning);
  void SetText(User& user, std::string text);
  PrefixKey KeyOf(const User& user, int index, PageId parent) const;
  bool SameHashes(const std::string& text, uint64_t hash);
  // `page` was handed out.
  bool Take(PageId page);
  void CheckAll();
  // False when they differ, which is then told.
  bool Same(const char* what, int64_t actual, int64_t expected, int page = 0);

  sim::Random random_;
  const Shape shape_;
  const bool trace_;
  std::vector<std::array<TokenId, kPageTokens>> tokens_;  // of a page, by its letter
  PagePool pool_;
  NaivePool naive_;
  std::vector<std::unique_ptr<User>> users_;
  std::vector<PageId> loose_;     // named by no table, one entry a reference
  std::vector<PageId> replaced_;  // by equal ones, not given back yet
  std::string operation_;
  std::string fault_;
  Count count_;
};

}  // namespace sluice::engine
