#include "kernels/cpu/attention.h"

#include <algorithm>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/cpu/attention_item.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/workspace.h"

namespace sluice::kernels::cpu {
namespace {

// Work is cut by splits as well while there are fewer items than this many a worker.
constexpr int64_t kItemsPerWorker = 4;
// Output rows that one chunk of the last pass quantises.
constexpr int64_t kFinishTokens = 8;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the queries of a step become items: a function of the head counts.
struct HeadPlan {
  int64_t ratio = 1;           // H / G
  int64_t heads_per_item = 1;  // query heads of one KV head that an item takes
  int64_t head_chunks = 1;     // items that one KV head's query heads make
  int64_t tokens_per_item = 1;

  HeadPlan(int64_t num_heads, int64_t num_kv_heads)
      : ratio(num_heads / num_kv_heads),
        heads_per_item(std::min<int64_t>(ratio, kMaxItemQueries)),
        head_chunks(CeilDiv(ratio, heads_per_item)),
        tokens_per_item(std::max<int64_t>(1, kMaxItemQueries / ratio)) {}
};

// One call of PagedAttention.
struct Call {
  const AttentionKernels& kernels;
  const BatchView& batch;
  const KvLayer& kv;
  ConstMatrixF32 q;
  const PagedAttentionArgs& args;
  int64_t window;
  Activation& out;
  AttentionScratch& scratch;
  HeadPlan plan;
  int64_t items_per_group;  // G * head_chunks
  // When splits are units: unit (group, item, split) has its partials, partial_floats of them, at
  // (group.first_unit + item * group.num_splits + split) * unit_floats.
  int64_t unit_floats = 0;
  int64_t num_units = 0;
};

// The item `index` in [0, items_per_group) of a group.
AttentionItem MakeItem(const Call& call, const AttentionGroup& group, int64_t index, int worker) {
  const KvLayer& kv = call.kv;
  const int64_t kv_head = index / call.plan.head_chunks;
  const int64_t head_in_kv = index % call.plan.head_chunks * call.plan.heads_per_item;
  const int64_t head = kv_head * call.plan.ratio + head_in_kv;
  const int64_t value_bytes = RowBytes(kv.type, 1);
  const int64_t head_bytes = kPageTokens * kv.head_size * value_bytes;
  AttentionItem item;
  item.q = call.q.row(group.first_token) + head * kv.head_size;
  item.out = call.out.values + group.first_token * call.out.cols + head * kv.head_size;
  item.token_stride = call.q.cols;
  item.num_tokens = group.num_tokens;
  item.num_heads = std::min(call.plan.heads_per_item, call.plan.ratio - head_in_kv);
  item.first_position = call.batch.positions[group.first_token];
  item.head_size = kv.head_size;
  item.padded_head_size = call.scratch.padded_head_size;
  item.scale = call.args.scale;
  item.softcap = call.args.softcap;
  item.window = call.window;
  item.type = kv.type;
  item.k = kv.k + kv_head * head_bytes;
  item.v = kv.v + kv_head * head_bytes;
  item.page_bytes = kv.num_kv_heads * head_bytes;
  item.pages = call.batch.pages + call.batch.page_begins[group.row];
  item.work = call.scratch.worker(worker);
  return item;
}

void MakeGroups(const BatchView& batch, int64_t tokens_per_item, int64_t window,
                std::vector<AttentionGroup>& groups) {
  groups.clear();
  for (int64_t row = 0; row < batch.num_rows; ++row) {
    const int64_t end = batch.row_begins[row + 1];
    for (int64_t token = batch.row_begins[row]; token < end; token += tokens_per_item) {
      AttentionGroup group;
      group.row = static_cast<int32_t>(row);
      group.first_token = static_cast<int32_t>(token);
      group.num_tokens = static_cast<int32_t>(std::min(tokens_per_item, end - token));
      const int64_t position = batch.positions[token];
      group.first_split = FirstKey(position, window) / kSplitKeys;
      group.num_splits = CeilDiv(position + group.num_tokens, kSplitKeys) - group.first_split;
      groups.push_back(group);
    }
  }
}

// Decides whether splits become units of work: when there are too few items to keep the workers
// even, there is something to split, and the partials have room. Either way gives equal bits.
bool PlanUnits(Call& call, int num_workers) {
  const int64_t num_groups = static_cast<int64_t>(call.scratch.groups.size());
  if (num_workers == 1 || num_groups * call.items_per_group >= kItemsPerWorker * num_workers) {
    return false;
  }
  int64_t most_queries = 0;
  for (AttentionGroup& group : call.scratch.groups) {
    group.first_unit = call.num_units;
    call.num_units += call.items_per_group * group.num_splits;
    most_queries = std::max(most_queries, group.num_tokens * call.plan.heads_per_item);
  }
  call.unit_floats = most_queries * (kPartialHead + call.scratch.padded_head_size);
  return call.num_units > num_groups * call.items_per_group &&
         call.num_units * call.unit_floats <= call.scratch.partial_floats;
}

void AttendUnit(const Call& call, int64_t unit, int worker) {
  const std::vector<AttentionGroup>& groups = call.scratch.groups;
  size_t index = 0;
  while (index + 1 < groups.size() && groups[index + 1].first_unit <= unit) ++index;
  const AttentionGroup& group = groups[index];
  const int64_t in_group = unit - group.first_unit;
  const AttentionItem item = MakeItem(call, group, in_group / group.num_splits, worker);
  call.kernels.attend_split(item, group.first_split + in_group % group.num_splits,
                            call.scratch.partials + unit * call.unit_floats);
}

// Merges the splits of every head of the tokens of a group.
void MergeGroup(const Call& call, const AttentionGroup& group, int worker) {
  for (int64_t index = 0; index < call.items_per_group; ++index) {
    const AttentionItem item = MakeItem(call, group, index, worker);
    const float* partials =
        call.scratch.partials + (group.first_unit + index * group.num_splits) * call.unit_floats;
    for (int64_t i = 0; i < item.num_tokens * item.num_heads; ++i) {
      const int64_t token = i / item.num_heads;
      const int64_t position = item.first_position + token;
      const int64_t first_split = FirstKey(position, call.window) / kSplitKeys;
      call.kernels.merge(
          partials + (first_split - group.first_split) * call.unit_floats +
              i * (kPartialHead + item.padded_head_size),
          position / kSplitKeys + 1 - first_split, call.unit_floats, item.head_size, item.work,
          item.out + token * item.token_stride + i % item.num_heads * item.head_size);
    }
  }
}

void QuantizeRows(const Call& call, int64_t begin, int64_t end) {
  const Activation& out = call.out;
  if (out.quants == nullptr) return;
  for (int64_t t = begin; t < end; ++t) {
    call.kernels.quantize(out.values + t * out.cols, out.cols, out.quants + t * out.cols,
                          out.scales + t * (out.cols / 32), out.sums + t * (out.cols / 32));
  }
}

}  // namespace

absl::Status AttentionScratch::Allocate(const WorkspaceShape& shape, int num_workers) {
  SLUICE_KERNEL_CHECK(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0,
                      "query heads are a multiple of KV heads");
  const HeadPlan plan(shape.num_heads, shape.num_kv_heads);
  padded_head_size = CeilDiv(shape.head_size, 16) * 16;
  worker_floats = CeilDiv(WorkFloats(kMaxItemQueries, shape.head_size, padded_head_size), 16) * 16;
  const int64_t max_splits = CeilDiv(shape.max_pages * kPageTokens, kSplitKeys);
  partial_floats = num_workers == 1 ? 0
                                    : kItemsPerWorker * num_workers * max_splits *
                                          plan.heads_per_item * (kPartialHead + padded_head_size);
  auto storage = Buffer::Allocate(
      static_cast<size_t>(num_workers * worker_floats + partial_floats) * sizeof(float));
  if (!storage.ok()) return storage.status();
  storage_ = std::move(*storage);
  workers = storage_.as<float>();
  partials = workers + num_workers * worker_floats;
  groups.reserve(static_cast<size_t>(shape.max_tokens));
  return absl::OkStatus();
}

void PagedAttention(Exec& exec, const PagedAttentionArgs& args, ConstMatrixF32 q,
                    const BatchView& batch, const KvLayer& kv, Activation& out) {
  AttentionScratch& scratch = static_cast<CpuWorkspace*>(exec.workspace())->attention;
  const HeadPlan plan(q.cols / kv.head_size, kv.num_kv_heads);
  Call call{exec.isa() == CpuIsa::kAvx512 ? kAttentionAvx512 : kAttentionAvx2,
            batch,
            kv,
            q,
            args,
            args.window == 0 ? kNoWindow : args.window,
            out,
            scratch,
            plan,
            kv.num_kv_heads * plan.head_chunks};
  MakeGroups(batch, plan.tokens_per_item, call.window, scratch.groups);
  const int64_t num_groups = static_cast<int64_t>(scratch.groups.size());
  WorkerPool& pool = exec.pool();

  if (PlanUnits(call, pool.num_workers())) {
    pool.ParallelFor(call.num_units,
                     [&](int64_t unit, int worker) { AttendUnit(call, unit, worker); });
    const auto finish = [&](int64_t index, int worker) {
      const AttentionGroup& group = scratch.groups[static_cast<size_t>(index)];
      MergeGroup(call, group, worker);
      QuantizeRows(call, group.first_token, group.first_token + group.num_tokens);
    };
    pool.ParallelFor(num_groups, finish);
    return;
  }
  // Items of one group follow each other, so that its queries stay in the cache; late groups of a
  // long row have the most keys and would be the stragglers, so they come first.
  pool.ParallelFor(num_groups * call.items_per_group, [&](int64_t index, int worker) {
    const int64_t group = num_groups - 1 - index / call.items_per_group;
    call.kernels.attend(MakeItem(call, scratch.groups[static_cast<size_t>(group)],
                                 index % call.items_per_group, worker));
  });
  if (batch.num_tokens <= kFinishTokens) {
    QuantizeRows(call, 0, batch.num_tokens);
    return;
  }
  pool.ParallelFor(CeilDiv(batch.num_tokens, kFinishTokens), [&](int64_t chunk, int) {
    const int64_t begin = chunk * kFinishTokens;
    QuantizeRows(call, begin, std::min(batch.num_tokens, begin + kFinishTokens));
  });
}

}  // namespace sluice::kernels::cpu
