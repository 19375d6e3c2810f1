#include "kernels/cuda/attention_plan.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace sluice::kernels::cuda {
namespace {

// Rows of `count` tokens after `before` of their sequences.
struct Row {
  int before = 0;
  int count = 1;
};

struct Planned {
  std::vector<int32_t> row_begins = {0}, positions, page_begins = {0}, slots;
  std::vector<AttentionItem> items;
  std::vector<AttentionBlock> blocks;
  int32_t block_queries = 0;

  int64_t num_tokens() const { return row_begins.back(); }
};

AttentionShape ShapeOf(int64_t ratio, int64_t head_size, const std::vector<Row>& rows) {
  AttentionShape shape;
  shape.num_kv_heads = 2;
  shape.num_heads = 2 * ratio;
  shape.head_size = head_size;
  shape.num_multiprocessors = 132;
  shape.max_rows = static_cast<int64_t>(rows.size());
  for (const Row& row : rows) shape.max_tokens += row.count;
  shape.max_slots = int64_t{1} << 30;
  return shape;
}

Planned Plan(const AttentionShape& shape, const std::vector<Row>& rows) {
  Planned planned;
  for (const Row& row : rows) {
    for (int i = 0; i < row.count; ++i) planned.positions.push_back(row.before + i);
    planned.row_begins.push_back(static_cast<int32_t>(planned.positions.size()));
    planned.page_begins.push_back(planned.page_begins.back() + (row.before + row.count + 15) / 16);
  }
  planned.slots.assign(planned.positions.size(), -7);
  planned.items.resize(static_cast<size_t>(MaxItems(shape)));
  planned.blocks.resize(static_cast<size_t>(MaxBlocks(shape)));
  AttentionPlan plan;
  plan.items = planned.items.data();
  plan.blocks = planned.blocks.data();
  plan.slots = planned.slots.data();
  PlanAttention(shape, planned.row_begins, planned.positions.data(), planned.page_begins.data(),
                plan);
  EXPECT_LE(plan.num_items, MaxItems(shape));
  EXPECT_LE(plan.num_blocks, MaxBlocks(shape));
  planned.items.resize(static_cast<size_t>(plan.num_items));
  planned.blocks.resize(static_cast<size_t>(plan.num_blocks));
  planned.block_queries = plan.block_queries;
  return planned;
}

// Every query of every token is in one block, or has an item for each of its splits with a place of
// its own for the outcome.
void ExpectComplete(const AttentionShape& shape, const std::vector<Row>& rows,
                    const Planned& planned) {
  std::map<std::pair<int, int>, int> items;  // by (token, split)
  std::set<int32_t> places;
  for (const AttentionItem& item : planned.items) {
    ASSERT_GT(item.num_tokens, 0);
    ASSERT_TRUE(item.num_tokens == 1 || item.num_tokens * shape.ratio() <= kItemQueries);
    for (int i = 0; i < item.num_tokens; ++i) {
      ASSERT_EQ(planned.positions[static_cast<size_t>(item.first_token + i)],
                item.first_position + i);
      for (int split = item.first_split; split < item.first_split + item.num_splits; ++split) {
        ++items[{item.first_token + i, split}];
        const int32_t place = item.first_slot + i * item.slots + split;
        ASSERT_TRUE(places.insert(place).second) << "two outcomes at " << place;
        ASSERT_LT(place, shape.max_slots);
        ASSERT_EQ(place, planned.slots[static_cast<size_t>(item.first_token + i)] + split);
      }
    }
  }
  std::map<std::pair<int, int>, int> queries;  // by (token, head of those that share a KV head)
  for (const AttentionBlock& block : planned.blocks) {
    ASSERT_GT(block.num_queries, 0);
    ASSERT_LE(block.num_queries, planned.block_queries);
    ASSERT_LT(block.first_query, shape.ratio());
    ASSERT_EQ(planned.positions[static_cast<size_t>(block.first_token)], block.first_position);
    for (int i = block.first_query; i < block.first_query + block.num_queries; ++i) {
      ++queries[{block.first_token + i / shape.ratio(), i % shape.ratio()}];
    }
  }
  for (size_t row = 0; row < rows.size(); ++row) {
    for (int32_t t = planned.row_begins[row]; t < planned.row_begins[row + 1]; ++t) {
      const int position = planned.positions[static_cast<size_t>(t)];
      if (planned.slots[static_cast<size_t>(t)] < 0) {
        for (int head = 0; head < shape.ratio(); ++head) ASSERT_EQ((queries[{t, head}]), 1);
        continue;
      }
      for (int split = 0; split <= position / kSplitKeys; ++split) {
        ASSERT_EQ((items[{t, split}]), 1) << "token " << t << " split " << split;
      }
    }
  }
  // The page table of each piece is its row's.
  const auto row_of = [&](int32_t token) {
    return static_cast<size_t>(
        std::upper_bound(planned.row_begins.begin(), planned.row_begins.end(), token) -
        planned.row_begins.begin() - 1);
  };
  for (const AttentionItem& item : planned.items) {
    ASSERT_EQ(row_of(item.first_token), row_of(item.first_token + item.num_tokens - 1));
    ASSERT_EQ(item.page_begin, planned.page_begins[row_of(item.first_token)]);
  }
  for (const AttentionBlock& block : planned.blocks) {
    const int32_t last = (block.first_query + block.num_queries - 1) / shape.ratio();
    ASSERT_EQ(row_of(block.first_token), row_of(block.first_token + last));
    ASSERT_EQ(block.page_begin, planned.page_begins[row_of(block.first_token)]);
  }
}

TEST(AttentionPlanTest, CoversRandomSteps) {
  const uint32_t seed = 20261128;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (int step = 0; step < 400; ++step) {
    std::vector<Row> rows(1 + random() % 40);
    for (Row& row : rows) {
      row.before = static_cast<int>(random() % (random() % 2 == 0 ? 700 : 9000));
      row.count = static_cast<int>(random() % 4 == 0 ? 1 + random() % 500 : 1 + random() % 3);
    }
    const int64_t ratios[] = {1, 3, 4, 7, 16, 17, 40, 71};
    const int64_t head_sizes[] = {64, 128, 256};
    AttentionShape shape = ShapeOf(ratios[random() % 8], head_sizes[random() % 3], rows);
    if (random() % 3 == 0) shape.max_slots = static_cast<int64_t>(random() % 200);
    ExpectComplete(shape, rows, Plan(shape, rows));
    if (HasFatalFailure()) return;
  }
}

TEST(AttentionPlanTest, SingleTokensAreItems) {
  for (const int64_t ratio : {1, 7, 40, 71}) {
    const std::vector<Row> rows = {{0, 1}, {255, 1}, {256, 1}, {8191, 1}};
    const Planned planned = Plan(ShapeOf(ratio, 64, rows), rows);
    EXPECT_TRUE(planned.blocks.empty());
    EXPECT_EQ(planned.items.size(), 1u + 1 + 2 + 32);
  }
}

TEST(AttentionPlanTest, TokensOfARowShareItemsUpToSixteenQueries) {
  const std::vector<Row> rows = {{300, 5}};
  const Planned planned = Plan(ShapeOf(7, 64, rows), rows);
  ASSERT_EQ(planned.items.size(), 6u);  // 2 + 2 + 1 tokens, two splits each
  EXPECT_EQ(planned.items[0].num_tokens, 2);
  EXPECT_EQ(planned.items[5].num_tokens, 1);
}

TEST(AttentionPlanTest, PromptsAreBlocksLongestFirst) {
  const std::vector<Row> rows = {{0, 100}, {1000, 40}, {5, 1}};
  const AttentionShape shape = ShapeOf(7, 64, rows);
  const Planned planned = Plan(shape, rows);
  EXPECT_EQ(planned.items.size(), 1u);
  EXPECT_EQ(planned.blocks.size(), 11u + 5);
  EXPECT_EQ(planned.blocks.front().first_position, 1000 + 256 / 7);
  for (size_t i = 1; i < planned.blocks.size(); ++i) {
    EXPECT_GE(planned.blocks[i - 1].first_position, planned.blocks[i].first_position);
  }
}

TEST(AttentionPlanTest, BlocksAreWideWhereTheyFillTheCard) {
  for (const int64_t head_size : {64, 96, 128, 256}) {
    for (const int tokens : {64, 2048, 8192}) {
      const std::vector<Row> rows = {{0, tokens}};
      const Planned planned = Plan(ShapeOf(7, head_size, rows), rows);
      const bool wide = head_size == 128 && tokens * 7 / 128 * 2 >= 2 * 132;
      EXPECT_EQ(planned.block_queries, wide ? 128 : 64) << head_size << " " << tokens;
    }
  }
}

TEST(AttentionPlanTest, LongContextsTakeSeveralSplitsAnItem) {
  const std::vector<Row> rows(200, Row{131071, 1});
  const AttentionShape shape = ShapeOf(7, 64, rows);
  const Planned planned = Plan(shape, rows);
  EXPECT_GT(planned.items[0].num_splits, 1);
  EXPECT_GT(static_cast<int64_t>(planned.items.size()), MaxItems(shape) / 3);
  ExpectComplete(shape, rows, planned);
}

TEST(AttentionPlanTest, WhatFindsNoRoomForPartialOutcomesIsABlock) {
  const std::vector<Row> rows = {{600, 1}, {300, 1}, {0, 1}};
  AttentionShape shape = ShapeOf(7, 64, rows);
  shape.max_slots = 4;
  const Planned planned = Plan(shape, rows);
  ExpectComplete(shape, rows, planned);
  EXPECT_EQ(planned.slots, (std::vector<int32_t>{0, -1, 3}));
  EXPECT_EQ(planned.blocks.size(), 1u);
}

}  // namespace
}  // namespace sluice::kernels::cuda
