#include "kernels/cuda/attention_plan.h"

#include <algorithm>
#include <cstddef>

namespace sluice::kernels::cuda {
namespace {

// Rows of more queries a KV head than this are worth a block's longer way.
constexpr int kFewQueries = 64;
// Items beyond one for each group of tokens: what several waves of blocks have to do.
constexpr int64_t kSpreadItems = 2048;
// Blocks of 128 queries read less; with smaller heads several of 64 fit a multiprocessor, and
// larger ones have no registers for them.
bool MayBeWide(int64_t head_size) { return head_size > 96 && head_size <= 128; }

int TokensAnItem(int ratio) { return std::max(1, kItemQueries / ratio); }

bool FewQueries(int64_t num_tokens, int ratio) {
  return num_tokens == 1 || num_tokens * ratio <= kFewQueries;
}

int32_t Splits(int32_t last_position) { return last_position / kSplitKeys + 1; }

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls group(row, first token, tokens) for the groups of tokens of the rows that have few queries
// and, by `slots`, room for partial outcomes.
template <typename Group>
void ForGroups(const AttentionShape& shape, std::span<const int32_t> row_begins,
               const AttentionPlan& plan, const Group& group) {
  const int tokens = TokensAnItem(shape.ratio());
  for (size_t row = 0; row + 1 < row_begins.size(); ++row) {
    if (row_begins[row] == row_begins[row + 1] || plan.slots[row_begins[row]] < 0) continue;
    for (int32_t t = row_begins[row]; t < row_begins[row + 1]; t += tokens) {
      group(row, t, std::min(tokens, row_begins[row + 1] - t));
    }
  }
}

// Gives the tokens of rows with few queries their slots, the others -1.
void AssignSlots(const AttentionShape& shape, std::span<const int32_t> row_begins,
                 const int32_t* positions, AttentionPlan& plan) {
  int64_t next = 0;
  for (size_t row = 0; row + 1 < row_begins.size(); ++row) {
    const int32_t begin = row_begins[row];
    const int32_t end = row_begins[row + 1];
    if (begin == end) continue;
    // All tokens of a row have as many slots as its last.
    const int32_t splits = Splits(positions[end - 1]);
    const bool item = FewQueries(end - begin, shape.ratio()) &&
                      next + int64_t{end - begin} * splits <= shape.max_slots;
    for (int32_t t = begin; t < end; ++t) {
      plan.slots[t] = item ? static_cast<int32_t>(next) : -1;
      if (item) next += splits;
    }
  }
}

void PlanItems(const AttentionShape& shape, std::span<const int32_t> row_begins,
               const int32_t* positions, const int32_t* page_begins, AttentionPlan& plan) {
  const auto count = [&](int32_t run) {
    int64_t items = 0;
    ForGroups(shape, row_begins, plan, [&](size_t, int32_t t, int32_t tokens) {
      items += CeilDiv(Splits(positions[t + tokens - 1]), run);
    });
    return items;
  };
  int32_t run = 1;  // splits of an item
  while (count(run) > MaxItems(shape)) run *= 2;
  ForGroups(shape, row_begins, plan, [&](size_t row, int32_t t, int32_t tokens) {
    const int32_t splits = Splits(positions[t + tokens - 1]);
    for (int32_t split = 0; split < splits; split += run) {
      plan.items[plan.num_items++] = {.page_begin = page_begins[row],
                                      .first_token = t,
                                      .num_tokens = tokens,
                                      .first_position = positions[t],
                                      .first_split = split,
                                      .num_splits = std::min(run, splits - split),
                                      .first_slot = plan.slots[t],
                                      .slots = Splits(positions[row_begins[row + 1] - 1])};
    }
  });
}

void PlanBlocks(const AttentionShape& shape, std::span<const int32_t> row_begins,
                const int32_t* positions, const int32_t* page_begins, AttentionPlan& plan) {
  const int ratio = shape.ratio();
  const auto count = [&](int32_t queries) {
    int64_t blocks = 0;
    for (size_t row = 0; row + 1 < row_begins.size(); ++row) {
      const int64_t tokens = row_begins[row + 1] - row_begins[row];
      if (tokens > 0 && plan.slots[row_begins[row]] < 0) blocks += CeilDiv(tokens * ratio, queries);
    }
    return blocks;
  };
  const bool wide = MayBeWide(shape.head_size) &&
                    count(128) * shape.num_kv_heads >= 2 * shape.num_multiprocessors;
  plan.block_queries = wide ? 128 : 64;
  for (size_t row = 0; row + 1 < row_begins.size(); ++row) {
    const int32_t begin = row_begins[row];
    if (begin == row_begins[row + 1] || plan.slots[begin] >= 0) continue;
    const int32_t queries = (row_begins[row + 1] - begin) * ratio;
    for (int32_t query = 0; query < queries; query += plan.block_queries) {
      const int32_t token = begin + query / ratio;
      plan.blocks[plan.num_blocks++] = {
          .page_begin = page_begins[row],
          .first_token = token,
          .first_position = positions[token],
          .first_query = query % ratio,
          .num_queries = std::min(plan.block_queries, queries - query)};
    }
  }
  std::stable_sort(plan.blocks, plan.blocks + plan.num_blocks,
                   [](const AttentionBlock& a, const AttentionBlock& b) {
                     return a.first_position > b.first_position;
                   });
}

}  // namespace

int64_t MaxItems(const AttentionShape& shape) {
  // A row of few queries has at most kFewQueries tokens.
  return std::min(shape.max_tokens, shape.max_rows * kFewQueries) + kSpreadItems;
}

int64_t MaxBlocks(const AttentionShape& shape) {
  return CeilDiv(shape.max_tokens * shape.ratio(), 64) + shape.max_rows;
}

void PlanAttention(const AttentionShape& shape, std::span<const int32_t> row_begins,
                   const int32_t* positions, const int32_t* page_begins, AttentionPlan& plan) {
  plan.num_items = plan.num_blocks = 0;
  AssignSlots(shape, row_begins, positions, plan);
  PlanItems(shape, row_begins, positions, page_begins, plan);
  PlanBlocks(shape, row_begins, positions, page_begins, plan);
}

}  // namespace sluice::kernels::cuda
