#include "engine/kv/page_table.h"

#include <map>
#include <memory>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sluice::engine {
namespace {

TEST(PageAllocatorTest, HandsOutEveryPageButTheFirstOnce) {
  PageAllocator allocator(5);
  EXPECT_EQ(allocator.total(), 4);
  std::vector<PageId> pages;
  ASSERT_TRUE(allocator.Allocate(4, pages));
  EXPECT_EQ(std::set<PageId>(pages.begin(), pages.end()),
            (std::set<PageId>{PageId{1}, PageId{2}, PageId{3}, PageId{4}}));
  EXPECT_EQ(allocator.num_free(), 0);
}

TEST(PageAllocatorTest, TakesNothingWhenTooFewAreFree) {
  PageAllocator allocator(4);
  std::vector<PageId> pages;
  EXPECT_FALSE(allocator.Allocate(4, pages));
  EXPECT_THAT(pages, testing::IsEmpty());
  EXPECT_EQ(allocator.num_free(), 3);
  EXPECT_TRUE(allocator.Allocate(3, pages));
  EXPECT_FALSE(allocator.Allocate(1, pages));
  EXPECT_TRUE(allocator.Allocate(0, pages));
}

TEST(PageAllocatorDeathTest, EndsTheProcessOnADoubleFree) {
  PageAllocator allocator(4);
  std::vector<PageId> pages;
  ASSERT_TRUE(allocator.Allocate(2, pages));
  EXPECT_DEATH(allocator.Free(pages[0]), "that a table names");
  EXPECT_EQ(allocator.Release(pages[0]), 0);
  EXPECT_DEATH(allocator.Release(pages[0]), "more often than it was taken");
  allocator.Free(pages[0]);
  EXPECT_DEATH(allocator.Free(pages[0]), "freed twice");
  EXPECT_DEATH(allocator.Share(pages[0]), "not free");
  EXPECT_DEATH(allocator.Free(PageId{0}), "no such page");
  EXPECT_DEATH(allocator.Free(PageId{4}), "no such page");
}

TEST(PageTableTest, CoversPositionsPageByPage) {
  PagePool pool(4, {});
  PageTable table(&pool);
  EXPECT_TRUE(table.Covers(0));
  EXPECT_FALSE(table.Covers(1));
  ASSERT_TRUE(table.Cover(16));
  EXPECT_EQ(table.num_pages(), 1);
  EXPECT_FALSE(table.Covers(17));
  ASSERT_TRUE(table.Cover(17));
  EXPECT_EQ(table.num_pages(), 2);
  ASSERT_TRUE(table.Cover(3));
  EXPECT_EQ(table.num_pages(), 2);
  EXPECT_EQ(table.Pages(16).size(), 1u);
  EXPECT_EQ(table.Pages(17).size(), 2u);
  EXPECT_FALSE(table.Cover(49));
  EXPECT_EQ(table.num_pages(), 2);
}

TEST(PageTableTest, ReturnsItsPagesInItsDestructor) {
  PagePool pool(9, {});
  {
    PageTable table(&pool);
    ASSERT_TRUE(table.Cover(100));
    EXPECT_EQ(pool.num_free(), 1);
  }
  EXPECT_EQ(pool.num_free(), 8);
}

// The invariant that all scheduler tests lean on: it must notice a page that nobody returns.
TEST(PageTableTest, ALeakedPageShows) {
  PagePool pool(9, {});
  std::vector<PageId> leaked;
  ASSERT_TRUE(pool.Allocate(1, leaked));
  PageTable table(&pool);
  ASSERT_TRUE(table.Cover(20));
  EXPECT_NE(pool.num_free() + table.num_pages(), pool.total());
}

TEST(PageTableTest, RandomTablesNeverShareAPage) {
  constexpr uint64_t kSeed = 20240611;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937_64 random(kSeed);
  PagePool pool(40, {});
  std::vector<std::unique_ptr<PageTable>> tables(12);
  for (int round = 0; round < 20000; ++round) {
    std::unique_ptr<PageTable>& table = tables[random() % tables.size()];
    if (!table) table = std::make_unique<PageTable>(&pool);
    const int positions = static_cast<int>(random() % 200);
    const int before = table->num_pages();
    const bool fits = PagesFor(positions) - before <= pool.num_free();
    ASSERT_EQ(table->Cover(positions), fits);
    if (random() % 3 == 0) table.reset();
    std::set<PageId> held;
    int num_held = 0;
    for (const auto& each : tables) {
      if (!each) continue;
      num_held += each->num_pages();
      for (const PageId page : each->Pages(each->num_pages() * kPageTokens)) held.insert(page);
    }
    ASSERT_EQ(static_cast<int>(held.size()), num_held);
    ASSERT_EQ(num_held + pool.num_free(), pool.total());
    ASSERT_FALSE(held.contains(PageId{0}));
  }
}

}  // namespace
}  // namespace sluice::engine
