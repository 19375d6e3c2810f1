// The prefix cache with its pool: what is found, what is given up, and that no operation breaks the
// accounts.

#include "engine/kv/prefix_cache.h"

#include <map>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "engine/kv/page_pool.h"
#include "engine/kv/page_table.h"

namespace sluice::engine {
namespace {

const PrefixCache::Options kWeak = {.hash_bits = 0};  // all pages collide

// A text of whole pages, one letter a page: the letter is in the page's last token.
struct Text {
  std::string domain;
  std::string letters;
  auto operator<=>(const Text&) const = default;

  std::vector<TokenId> Page(size_t index) const {
    std::vector<TokenId> tokens(kPageTokens, 7);
    tokens.back() = letters[index];
    return tokens;
  }
  Text First(size_t pages) const { return {domain, letters.substr(0, pages)}; }
};

// Calls visit(key) for each page of `text` whose forerunners are cached, until it gives no page.
template <typename Visit>
void Walk(const PagePool& pool, const Text& text, size_t first, PageId parent, const Visit& visit) {
  uint64_t hash = 0;
  for (size_t i = 0; i < text.letters.size(); ++i) {
    const std::vector<TokenId> tokens = text.Page(i);
    hash = i == 0 ? pool.cache().Hash(text.domain, tokens) : pool.cache().Hash(hash, tokens);
    if (i < first) continue;
    const std::optional<PageId> page = visit(PrefixKey{parent, text.domain, tokens, hash});
    if (!page) return;
    parent = *page;
  }
}

// A table with the cached pages of `text`.
std::unique_ptr<PageTable> Open(PagePool& pool, const Text& text) {
  auto table = std::make_unique<PageTable>(&pool);
  Walk(pool, text, 0, PageId{0}, [&](const PrefixKey& key) {
    const std::optional<PageId> page = pool.Find(key);
    if (page) table->Share(*page);
    return page;
  });
  return table;
}

// Puts the pages of `text` from `first` on into the cache; equal ones replace the table's.
void Publish(PagePool& pool, const Text& text, PageTable& table, size_t first) {
  const PageId parent = first == 0 ? PageId{0} : table.page(static_cast<int>(first) - 1);
  size_t index = first;
  Walk(pool, text, first, parent, [&](const PrefixKey& key) {
    const PageId own = table.page(static_cast<int>(index));
    const PageId cached = pool.Publish(key, own);
    if (cached != own) pool.Release(table.Replace(static_cast<int>(index), cached));
    ++index;
    return std::optional(cached);
  });
}

// Computes `text` as a sequence would, and closes it. How many pages were found?
int Serve(PagePool& pool, const Text& text) {
  const std::unique_ptr<PageTable> table = Open(pool, text);
  const int found = table->num_pages();
  EXPECT_TRUE(table->Cover(static_cast<int>(text.letters.size()) * kPageTokens));
  Publish(pool, text, *table, static_cast<size_t>(found));
  return found;
}

std::string Fault(const PagePool& pool, const std::vector<const PageTable*>& tables = {}) {
  std::vector<std::span<const PageId>> pages;
  for (const PageTable* table : tables) pages.push_back(table->pages());
  return pool.Fault(pages).value_or("");
}

TEST(PrefixCacheTest, FindsEqualBeginningsAndNothingElse) {
  PagePool pool(20, {});
  EXPECT_EQ(Serve(pool, {"", "abc"}), 0);
  EXPECT_EQ(Serve(pool, {"", "abc"}), 3);
  EXPECT_EQ(Serve(pool, {"", "abd"}), 2);
  EXPECT_EQ(Serve(pool, {"", "bc"}), 0) << "equal pages behind another beginning";
  EXPECT_EQ(Serve(pool, {"salt", "abc"}), 0);
  EXPECT_EQ(Serve(pool, {"salt", "abd"}), 2);
  EXPECT_EQ(Fault(pool), "");
}

TEST(PrefixCacheTest, CollidingHashesNeverGiveAWrongPage) {
  PagePool pool(20, kWeak);
  const std::vector<TokenId> a = Text{"", "a"}.Page(0), b = Text{"", "b"}.Page(0);
  ASSERT_EQ(pool.cache().Hash("", a), pool.cache().Hash("x", b));
  EXPECT_EQ(Serve(pool, {"", "abc"}), 0);
  EXPECT_EQ(Serve(pool, {"", "bbc"}), 0);
  EXPECT_EQ(Serve(pool, {"", "aca"}), 1);
  EXPECT_EQ(Serve(pool, {"x", "abc"}), 0);
  EXPECT_EQ(Serve(pool, {"", "abc"}), 3);
  EXPECT_EQ(Serve(pool, {"x", "abc"}), 3);
  EXPECT_EQ(Fault(pool), "");
}

TEST(PrefixCacheTest, HashesHaveASecretKey) {
  const PrefixCache one(4, {}), other(4, {});
  const std::vector<TokenId> tokens = Text{"", "a"}.Page(0);
  EXPECT_EQ(one.Hash("", tokens), one.Hash("", tokens));
  EXPECT_NE(one.Hash("", tokens), other.Hash("", tokens));
  EXPECT_NE(one.Hash(1, tokens), one.Hash(2, tokens));
}

TEST(PrefixCacheTest, GivesUpTheLeastRecentlyUsedLeafFirst) {
  PagePool pool(7, {});  // 6 pages
  Serve(pool, {"", "abc"});
  Serve(pool, {"", "xyz"});
  EXPECT_EQ(pool.num_free(), 0);
  EXPECT_EQ(pool.num_available(), 6);
  Open(pool, {"", "a"});  // used last
  std::vector<PageId> taken;
  const auto found = [&](const Text& text) { return Open(pool, text)->num_pages(); };
  ASSERT_TRUE(pool.Allocate(1, taken));
  EXPECT_EQ(found({"", "abc"}), 2);
  ASSERT_TRUE(pool.Allocate(2, taken));
  EXPECT_EQ(found({"", "xyz"}) + found({"", "abc"}), 3);
  EXPECT_EQ(found({"", "a"}), 1);
  ASSERT_TRUE(pool.Allocate(3, taken));
  EXPECT_EQ(pool.cache().size(), 0);
  EXPECT_FALSE(pool.Allocate(1, taken));
  EXPECT_EQ(pool.Fault(std::vector<std::span<const PageId>>{taken}).value_or(""), "");
}

TEST(PrefixCacheTest, NeverGivesUpAPageInUse) {
  PagePool pool(5, {});
  Serve(pool, {"", "ab"});
  const std::unique_ptr<PageTable> user = Open(pool, {"", "ab"});
  std::vector<PageId> taken;
  EXPECT_FALSE(pool.Allocate(3, taken));
  ASSERT_TRUE(pool.Allocate(2, taken));
  EXPECT_FALSE(pool.Allocate(1, taken));
  EXPECT_EQ(Open(pool, {"", "ab"})->num_pages(), 2);
}

TEST(PrefixCacheTest, SwitchedOffKeepsNothing) {
  PagePool pool(5, {.enabled = false});
  EXPECT_FALSE(pool.cache().enabled());
  PageTable table(&pool);
  ASSERT_TRUE(table.Cover(40));
  table.Clear();
  EXPECT_EQ(pool.num_free(), 4);
}

TEST(PrefixCacheTest, EqualPagesComeTogether) {
  PagePool pool(9, {});
  PageTable one(&pool), other(&pool);
  ASSERT_TRUE(one.Cover(32) && other.Cover(32));
  Publish(pool, {"", "ab"}, one, 0);
  EXPECT_EQ(pool.num_free(), 4);
  Publish(pool, {"", "ab"}, other, 0);
  EXPECT_EQ(pool.num_free(), 6);
  EXPECT_EQ(one.page(1), other.page(1));
  EXPECT_EQ(Fault(pool, {&one, &other}), "");
}

// The check that the scheduler's tests lean on must see what it is for.
TEST(PagePoolFaultTest, SeesAMissingAndASurplusReference) {
  PagePool pool(9, {});
  PageTable table(&pool);
  ASSERT_TRUE(table.Cover(40));
  EXPECT_EQ(Fault(pool, {&table}), "");
  EXPECT_NE(Fault(pool), "");
  EXPECT_NE(Fault(pool, {&table, &table}), "");
  Publish(pool, {"", "ab"}, table, 0);
  EXPECT_EQ(Fault(pool, {&table}), "");
  EXPECT_NE(Fault(pool), "");
}

// What pool and cache must come to, worked out with whole texts, a clock and searches.
class NaiveModel {
 public:
  explicit NaiveModel(int total) : total_(total) {}

  std::vector<PageId> Find(const Text& text) const {
    std::vector<PageId> pages;
    for (size_t n = 1; n <= text.letters.size() && cached_.contains(text.First(n)); ++n)
      pages.push_back(cached_.at(text.First(n)));
    return pages;
  }
  int available() const { return total_ - static_cast<int>(references_.size()); }
  void Take(PageId page) {
    ++references_[page];
    unused_since_.erase(page);
  }
  void Drop(PageId page) {
    if (--references_[page] > 0) return;
    references_.erase(page);
    if (IsCached(page)) unused_since_[page] = ++clock_;
  }
  // Makes room for `count` pages.
  void Evict(int count) {
    while (available() - static_cast<int>(unused_since_.size()) < count) {
      auto oldest = unused_since_.begin();
      for (auto at = unused_since_.begin(); at != unused_since_.end(); ++at)
        if (at->second < oldest->second) oldest = at;
      const PageId page = oldest->first;
      for (auto at = cached_.begin(); at != cached_.end(); ++at) {
        if (at->second != page) continue;
        for (const auto& [text, other] : cached_)
          EXPECT_FALSE(text.domain == at->first.domain && other != page &&
                       text.letters.starts_with(at->first.letters))
              << "a page leaves after those that continue it";
        cached_.erase(at);
        break;
      }
      unused_since_.erase(oldest);
    }
  }
  void Cache(const Text& text, PageId page) { cached_.emplace(text, page); }
  bool IsCached(PageId page) const {
    for (const auto& [text, other] : cached_)
      if (other == page) return true;
    return false;
  }

 private:
  const int total_;
  std::map<Text, PageId> cached_;
  std::map<PageId, int> references_;
  std::map<PageId, uint64_t> unused_since_;
  uint64_t clock_ = 0;
};

// Sequences that come, grow, publish and go at random, in a small pool.
class RandomTables {
 public:
  RandomTables(uint64_t seed, int hash_bits)
      : random_(seed), pool_(kPages + 1, {.hash_bits = hash_bits}), model_(kPages) {}

  void Step() {
    User& user = users_[random_() % users_.size()];
    if (!user.table) {
      Begin(user);
    } else if (random_() % 3 == 0) {
      End(user);
    } else {
      Grow(user);
    }
    Check();
  }
  int64_t found() const { return found_; }
  int64_t replaced() const { return replaced_; }

 private:
  static constexpr int kPages = 24;
  struct User {
    Text text;
    std::unique_ptr<PageTable> table;
    size_t published = 0;
  };

  void Begin(User& user) {
    user.text = {random_() % 3 == 0 ? "other" : "", ""};
    for (uint64_t i = 1 + random_() % 6; i > 0; --i)
      user.text.letters.push_back(static_cast<char>('a' + random_() % 2));
    const std::vector<PageId> expected = model_.Find(user.text);
    user.table = Open(pool_, user.text);
    ASSERT_EQ(std::vector<PageId>(user.table->pages().begin(), user.table->pages().end()),
              expected);
    for (const PageId page : expected) model_.Take(page);
    user.published = expected.size();
    found_ += static_cast<int64_t>(expected.size());
  }
  void Grow(User& user) {
    const auto before = static_cast<size_t>(user.table->num_pages());
    if (before < user.text.letters.size()) {
      const size_t after = before + 1 + random_() % (user.text.letters.size() - before);
      const int missing = static_cast<int>(after - before);
      const bool fits = missing <= model_.available();
      ASSERT_EQ(user.table->Cover(static_cast<int>(after) * kPageTokens), fits);
      if (!fits) return;
      model_.Evict(missing);
      for (size_t i = before; i < after; ++i) model_.Take(user.table->page(static_cast<int>(i)));
      return;
    }
    const std::vector<PageId> own(user.table->pages().begin(), user.table->pages().end());
    Publish(pool_, user.text, *user.table, user.published);
    for (size_t i = user.published; i < own.size(); ++i) {
      const std::vector<PageId> found = model_.Find(user.text.First(i + 1));
      const bool is_there = found.size() > i;
      ASSERT_EQ(user.table->page(static_cast<int>(i)), is_there ? found[i] : own[i]);
      if (is_there) {
        model_.Take(found[i]);
        model_.Drop(own[i]);
        ++replaced_;
      } else {
        model_.Cache(user.text.First(i + 1), own[i]);
      }
    }
    user.published = own.size();
  }
  void End(User& user) {
    const std::vector<PageId> pages(user.table->pages().begin(), user.table->pages().end());
    user.table.reset();
    for (auto page = pages.rbegin(); page != pages.rend(); ++page) model_.Drop(*page);
  }
  void Check() {
    std::vector<std::span<const PageId>> tables;
    for (const User& user : users_)
      if (user.table) tables.push_back(user.table->pages());
    ASSERT_EQ(pool_.Fault(tables).value_or(""), "");
    ASSERT_EQ(pool_.num_available(), model_.available());
    for (int32_t id = 1; id <= kPages; ++id)
      ASSERT_EQ(pool_.cache().Holds(PageId{id}), model_.IsCached(PageId{id})) << "page " << id;
  }

  std::mt19937_64 random_;
  PagePool pool_;
  NaiveModel model_;
  std::array<User, 6> users_;
  int64_t found_ = 0;
  int64_t replaced_ = 0;
};

TEST(PrefixCacheRandomTest, EqualsANaiveModel) {
  // Other seeds: --gtest_random_seed=N.
  const auto seed = static_cast<uint64_t>(GTEST_FLAG_GET(random_seed));
  for (const int hash_bits : {0, 2, 64}) {
    SCOPED_TRACE("seed " + std::to_string(seed) + ", " + std::to_string(hash_bits) + " bits");
    RandomTables tables(seed, hash_bits);
    for (int step = 0; step < 20000; ++step) {
      tables.Step();
      ASSERT_FALSE(HasFatalFailure()) << "step " << step;
    }
    EXPECT_GT(tables.found(), 1000);
    EXPECT_GT(tables.replaced(), 30);
  }
}

}  // namespace
}  // namespace sluice::engine
