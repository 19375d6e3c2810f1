// The prefix cache with its pool: what is found and what is given up. Random operations on both:
// page_model.cc.

#include "engine/kv/prefix_cache.h"

#include <memory>
#include <optional>
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

  std::vector<TokenId> Page(size_t index) const {
    std::vector<TokenId> tokens(kPageTokens, 7);
    tokens.back() = letters[index];
    return tokens;
  }
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

}  // namespace
}  // namespace sluice::engine
