#include "kernels/cpu/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/core/philox.h"
#include "kernels/core/sampler_slots.h"
#include "kernels/core/sampling_math.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/sampling_scan.h"
#include "kernels/cpu/workspace.h"

namespace sluice::kernels::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t NumBlocks(int64_t n) { return (n + kSampleBlock - 1) / kSampleBlock; }

// A row of logits in use, with its maximum and that of each block (in the worker's memory).
struct Row {
  const float* logits;
  int64_t vocab_size;
  float max;

  int64_t BlockSize(int64_t block) const {
    return std::min<int64_t>(kSampleBlock, vocab_size - block * kSampleBlock);
  }
};

bool BetterLogit(const SampleCandidate& a, const SampleCandidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}
bool BetterWeight(const SampleCandidate& a, const SampleCandidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
}

// What a run that is to hold `fraction` of `total` must reach; one token at least.
uint64_t LeastOf(float fraction, uint64_t total) {
  return std::max<uint64_t>(1, CeilFraction(fraction, total));
}

// Samples rows one at a time with one worker's memory.
class RowSampler {
 public:
  RowSampler(const SamplingKernels& kernels, const SamplingWorker& memory)
      : kernels_(kernels), memory_(memory) {}

  SampledToken Run(const float* logits, int64_t vocab_size, const uint32_t* mask,
                   const SamplerSlot& slot, const SampleRow& row);

 private:
  // The candidate set: the first num_candidates_ of memory_.candidates, ascending ids.
  bool Adjust(Row& row, const uint32_t* mask, const SamplerSlot& slot);
  int32_t Choose(const Row& row, const SamplerParams& params, uint64_t bits);
  int32_t ArgMax(const Row& row) const;
  void KeepTopK(const Row& row, int64_t k);
  void CollectAtLeast(const Row& row, float inverse_temperature, uint64_t least);
  void CollectTopP(const Row& row, float inverse_temperature, uint64_t need);
  template <typename Better>
  void KeepRun(uint64_t need, const Better& better);
  void KeepTypical(const Row& row, float inverse_temperature, float typical_p);
  int32_t DrawFromBlocks(const Row& row, float inverse_temperature, uint64_t target) const;
  int32_t DrawFromCandidates(uint64_t bits) const;
  void FillLogprobs(const Row& raw, int32_t num_top, SampledToken& out);
  uint64_t CandidateWeight() const;
  uint64_t BestWeight() const;
  void WeighCandidates(float max, float inverse_temperature);
  template <typename Keep>
  void KeepCandidates(const Keep& keep) {
    SampleCandidate* end = std::remove_if(memory_.candidates, memory_.candidates + num_candidates_,
                                          [&](const SampleCandidate& c) { return !keep(c); });
    num_candidates_ = end - memory_.candidates;
  }

  const SamplingKernels& kernels_;
  const SamplingWorker& memory_;
  int64_t num_candidates_ = 0;
};

// Writes the adjusted logits when the slot or a mask changes any, and points `row` at them. False
// when nothing is left to choose from or a logit became NaN or +infinity.
bool RowSampler::Adjust(Row& row, const uint32_t* mask, const SamplerSlot& slot) {
  const SamplerParams& params = slot.params();
  const bool banned = slot.below_min_tokens() && !params.banned_until_min.empty();
  if (mask == nullptr && !banned && params.bias.empty() && slot.counts().empty()) return true;
  float* adjusted = memory_.adjusted;
  std::copy_n(row.logits, row.vocab_size, adjusted);
  for (int64_t word = 0; mask != nullptr && word * 32 < row.vocab_size; ++word) {
    if (mask[word] == ~uint32_t{0}) continue;
    const int64_t count = std::min<int64_t>(32, row.vocab_size - word * 32);
    for (int64_t bit = 0; bit < count; ++bit) {
      if ((mask[word] >> bit & 1u) == 0) adjusted[word * 32 + bit] = -kInfinity;
    }
  }
  if (banned) {
    for (const int32_t token : params.banned_until_min) adjusted[token] = -kInfinity;
  }
  bool sound = true;
  for (const TokenBias& bias : params.bias) {
    adjusted[bias.token] += bias.bias;
    sound &= adjusted[bias.token] < kInfinity;
  }
  for (const TokenCount& count : slot.counts()) {
    float& logit = adjusted[count.token];
    logit = PenalizedLogit(logit, params, count.seen > 0, count.output);
    sound &= logit < kInfinity;  // false for NaN as well
  }
  if (!sound) return false;
  row.logits = adjusted;
  row.max = kernels_.scan(adjusted, row.vocab_size, memory_.block_max).max;
  return row.max > -kInfinity;
}

int32_t RowSampler::ArgMax(const Row& row) const {
  int64_t token =
      std::find(memory_.block_max, memory_.block_max + NumBlocks(row.vocab_size), row.max) -
      memory_.block_max;
  token *= kSampleBlock;
  while (row.logits[token] != row.max) ++token;
  return static_cast<int32_t>(token);
}

// Candidates become the k best by logit, ties by lower id. Banned tokens, whose weight is 0 anyway,
// are left out.
void RowSampler::KeepTopK(const Row& row, int64_t k) {
  const int64_t num_blocks = NumBlocks(row.vocab_size);
  float least = std::numeric_limits<float>::lowest();
  if (k < num_blocks) {
    // The k best blocks hold k tokens at or above the k-th best block maximum: a lower bound that
    // leaves little to look at. The memory of the selection is free here.
    float* order = reinterpret_cast<float*>(memory_.selection);
    std::copy_n(memory_.block_max, num_blocks, order);
    std::nth_element(order, order + (k - 1), order + num_blocks,
                     [](float a, float b) { return a > b; });
    least = std::max(least, order[k - 1]);
  }
  num_candidates_ = 0;
  for (int64_t block = 0; block < num_blocks; ++block) {
    if (memory_.block_max[block] < least) continue;
    const int64_t begin = block * kSampleBlock;
    for (int64_t i = begin; i < begin + row.BlockSize(block); ++i) {
      if (row.logits[i] < least) continue;
      memory_.candidates[num_candidates_++] = {0, static_cast<int32_t>(i), row.logits[i]};
    }
  }
  if (num_candidates_ <= k) return;
  SampleCandidate* selection = memory_.selection;
  std::copy_n(memory_.candidates, num_candidates_, selection);
  std::nth_element(selection, selection + (k - 1), selection + num_candidates_, BetterLogit);
  const SampleCandidate last = selection[k - 1];
  KeepCandidates([&](const SampleCandidate& c) { return !BetterLogit(last, c); });
}

void RowSampler::WeighCandidates(float max, float inverse_temperature) {
  for (int64_t begin = 0; begin < num_candidates_; begin += kSampleBlock) {
    SampleCandidate* block = memory_.candidates + begin;
    const int64_t n = std::min<int64_t>(kSampleBlock, num_candidates_ - begin);
    float logits[kSampleBlock];
    uint64_t weights[kSampleBlock];
    for (int64_t i = 0; i < n; ++i) logits[i] = block[i].logit;
    kernels_.block_weights(logits, n, max, inverse_temperature, weights);
    for (int64_t i = 0; i < n; ++i) block[i].weight = weights[i];
  }
}

uint64_t RowSampler::CandidateWeight() const {
  uint64_t total = 0;
  for (int64_t i = 0; i < num_candidates_; ++i) total += memory_.candidates[i].weight;
  return total;
}

uint64_t RowSampler::BestWeight() const {
  uint64_t best = 0;
  for (int64_t i = 0; i < num_candidates_; ++i) best = std::max(best, memory_.candidates[i].weight);
  return best;
}

// Candidates become all tokens that weigh at least `least` >= 1; block sums are set.
void RowSampler::CollectAtLeast(const Row& row, float inverse_temperature, uint64_t least) {
  num_candidates_ = 0;
  for (int64_t block = 0; block < NumBlocks(row.vocab_size); ++block) {
    if (memory_.block_sum[block] < least) continue;
    const int64_t begin = block * kSampleBlock;
    const int64_t n = row.BlockSize(block);
    uint64_t weights[kSampleBlock];
    kernels_.block_weights(row.logits + begin, n, row.max, inverse_temperature, weights);
    for (int64_t i = 0; i < n; ++i) {
      if (weights[i] < least) continue;
      const int32_t token = static_cast<int32_t>(begin + i);
      memory_.candidates[num_candidates_++] = {weights[i], token, row.logits[begin + i]};
    }
  }
}

// Candidates become a set that holds the top-p set whole: all tokens above a weight, lowered until
// what is above it reaches `need`. Mostly the first try is enough and leaves a few hundred.
void RowSampler::CollectTopP(const Row& row, float inverse_temperature, uint64_t need) {
  for (const int shift : {30, 20, 10, 0}) {
    CollectAtLeast(row, inverse_temperature, uint64_t{1} << shift);
    if (CandidateWeight() >= need) return;
  }
}

// Keeps the shortest run of candidates from the best on whose sum reaches `need`, which is at most
// the sum of all: a binary search that orders only the half it goes on with.
template <typename Better>
void RowSampler::KeepRun(uint64_t need, const Better& better) {
  SampleCandidate* selection = memory_.selection;
  std::copy_n(memory_.candidates, num_candidates_, selection);
  int64_t begin = 0;  // the last one kept lies in [begin, end)
  int64_t end = num_candidates_;
  while (end - begin > 1) {
    const int64_t middle = begin + (end - begin) / 2;
    std::nth_element(selection + begin, selection + middle, selection + end, better);
    uint64_t before = 0;
    for (int64_t i = begin; i < middle; ++i) before += selection[i].weight;
    if (before >= need) {
      end = middle;
    } else {
      need -= before;
      begin = middle;
    }
  }
  const SampleCandidate last = selection[begin];
  KeepCandidates([&](const SampleCandidate& c) { return !better(last, c); });
}

void RowSampler::KeepTypical(const Row& row, float inverse_temperature, float typical_p) {
  KeepCandidates([](const SampleCandidate& c) { return c.weight > 0; });
  const auto surprise = [&](const SampleCandidate& c) {
    return Surprise(c.logit, row.max, inverse_temperature);
  };
  SurpriseSum sum;
  for (int64_t i = 0; i < num_candidates_; ++i)
    sum.Add(memory_.candidates[i].weight, surprise(memory_.candidates[i]));
  const int32_t mean = sum.Mean();
  KeepRun(LeastOf(typical_p, sum.weight), [&](const SampleCandidate& a, const SampleCandidate& b) {
    const int32_t distance_a = std::abs(surprise(a) - mean);
    const int32_t distance_b = std::abs(surprise(b) - mean);
    return distance_a != distance_b ? distance_a < distance_b : a.token < b.token;
  });
}

int32_t RowSampler::DrawFromBlocks(const Row& row, float inverse_temperature,
                                   uint64_t target) const {
  int64_t block = 0;
  while (target >= memory_.block_sum[block]) target -= memory_.block_sum[block++];
  uint64_t weights[kSampleBlock];
  const int64_t begin = block * kSampleBlock;
  kernels_.block_weights(row.logits + begin, row.BlockSize(block), row.max, inverse_temperature,
                         weights);
  int64_t i = 0;
  while (target >= weights[i]) target -= weights[i++];
  return static_cast<int32_t>(begin + i);
}

int32_t RowSampler::DrawFromCandidates(uint64_t bits) const {
  uint64_t target = DrawTarget(bits, CandidateWeight());
  int64_t i = 0;
  while (target >= memory_.candidates[i].weight) target -= memory_.candidates[i++].weight;
  return memory_.candidates[i].token;
}

int32_t RowSampler::Choose(const Row& row, const SamplerParams& params, uint64_t bits) {
  const float inverse_temperature = 1.0f / params.temperature;
  const bool has_typical_p = params.typical_p < 1.0f;
  const bool has_top_p = params.top_p < 1.0f;
  const float min_p = std::min(params.min_p, 1.0f);
  uint64_t total = 0;  // weight of what the stages so far have left
  if (params.top_k > 0 && params.top_k < row.vocab_size) {
    KeepTopK(row, params.top_k);
    WeighCandidates(row.max, inverse_temperature);
    total = CandidateWeight();
  } else {
    total = kernels_.sum_blocks(row.logits, row.vocab_size, row.max, inverse_temperature,
                                memory_.block_sum);
    const uint64_t least = CeilFraction(min_p, kWeightOne);
    if (has_typical_p) {
      CollectAtLeast(row, inverse_temperature, 1);
    } else if (has_top_p) {
      CollectTopP(row, inverse_temperature, LeastOf(params.top_p, total));
    } else if (least > 0) {
      CollectAtLeast(row, inverse_temperature, least);
    } else {
      return DrawFromBlocks(row, inverse_temperature, DrawTarget(bits, total));
    }
  }
  if (has_typical_p) {
    KeepTypical(row, inverse_temperature, params.typical_p);
    total = CandidateWeight();
  }
  if (has_top_p) KeepRun(LeastOf(params.top_p, total), BetterWeight);
  const uint64_t least = CeilFraction(min_p, BestWeight());
  KeepCandidates([&](const SampleCandidate& c) { return c.weight >= least; });
  return DrawFromCandidates(bits);
}

void RowSampler::FillLogprobs(const Row& raw, int32_t num_top, SampledToken& out) {
  const uint64_t total =
      kernels_.sum_blocks(raw.logits, raw.vocab_size, raw.max, 1.0f, memory_.block_sum);
  out.logprob = LogprobOf(raw.logits[out.token], raw.max, total);
  if (num_top == 0) return;
  KeepTopK(raw, std::min<int64_t>(num_top, raw.vocab_size));
  std::sort(memory_.candidates, memory_.candidates + num_candidates_, BetterLogit);
  out.top.reserve(static_cast<size_t>(num_candidates_));
  for (int64_t i = 0; i < num_candidates_; ++i) {
    const SampleCandidate& c = memory_.candidates[i];
    out.top.push_back({c.token, LogprobOf(c.logit, raw.max, total)});
  }
}

SampledToken RowSampler::Run(const float* logits, int64_t vocab_size, const uint32_t* mask,
                             const SamplerSlot& slot, const SampleRow& row) {
  SampledToken out;
  const LogitScan scan = kernels_.scan(logits, vocab_size, memory_.block_max);
  out.finite = scan.finite;
  if (!out.finite) return out;
  const Row raw = {logits, vocab_size, scan.max};
  Row adjusted = raw;
  if (row.forced_token >= 0) {
    out.token = row.forced_token;
  } else {
    out.finite = Adjust(adjusted, mask, slot);
    if (!out.finite) return out;
    const SamplerParams& params = slot.params();
    out.token = slot.greedy()
                    ? ArgMax(adjusted)
                    : Choose(adjusted, params,
                             SampleBits(params.seed, params.sequence_index, row.position, 0));
  }
  if (row.num_top < 0) return out;
  if (adjusted.logits != raw.logits) kernels_.scan(logits, vocab_size, memory_.block_max);
  FillLogprobs(raw, row.num_top, out);
  return out;
}

}  // namespace

absl::Status SamplingScratch::Allocate(const WorkspaceShape& shape, int num_workers) {
  vocab_size = shape.vocab_size;
  const int64_t blocks = NumBlocks(vocab_size);
  worker_bytes_ = 2 * vocab_size * static_cast<int64_t>(sizeof(SampleCandidate)) +
                  blocks * static_cast<int64_t>(sizeof(uint64_t) + sizeof(float)) +
                  vocab_size * static_cast<int64_t>(sizeof(float));
  worker_bytes_ = (worker_bytes_ + 63) / 64 * 64;
  auto storage = Buffer::Allocate(static_cast<size_t>(worker_bytes_ * num_workers));
  if (!storage.ok()) return storage.status();
  storage_ = std::move(*storage);
  return absl::OkStatus();
}

SamplingWorker SamplingScratch::worker(int index) const {
  const int64_t blocks = NumBlocks(vocab_size);
  std::byte* at = storage_.bytes() + index * worker_bytes_;
  SamplingWorker worker;
  // Falling alignment: candidates and sums 8, floats 4.
  worker.candidates = reinterpret_cast<SampleCandidate*>(at);
  worker.selection = worker.candidates + vocab_size;
  worker.block_sum = reinterpret_cast<uint64_t*>(worker.selection + vocab_size);
  worker.block_max = reinterpret_cast<float*>(worker.block_sum + blocks);
  worker.adjusted = worker.block_max + blocks;
  return worker;
}

void Sample(Exec& exec, ConstMatrixF32 logits, const SampleArgs& args, SamplerSlots::Table& table,
            std::span<SampledToken> out) {
  const SamplingScratch& scratch = static_cast<CpuWorkspace*>(exec.workspace())->sampling;
  SLUICE_KERNEL_CHECK(logits.cols <= scratch.vocab_size, "the vocabulary fits the workspace");
  const SamplingKernels& kernels = exec.isa() == CpuIsa::kAvx512 ? kSamplingAvx512 : kSamplingAvx2;
  const int64_t mask_words = (logits.cols + 31) / 32;
  exec.pool().ParallelFor(static_cast<int64_t>(args.rows.size()), [&](int64_t i, int worker) {
    const SampleRow& row = args.rows[static_cast<size_t>(i)];
    const uint32_t* mask = row.mask_row < 0 ? nullptr : args.mask + row.mask_row * mask_words;
    const SamplingWorker memory = scratch.worker(worker);
    out[static_cast<size_t>(i)] = RowSampler(kernels, memory)
                                      .Run(logits.row(row.logit_row), logits.cols, mask,
                                           table.slots[static_cast<size_t>(row.slot)], row);
  });
  // All rows see the state from before the step, whatever their order.
  for (size_t i = 0; i < args.rows.size(); ++i) {
    const SampleRow& row = args.rows[i];
    if (row.forced_token < 0 && out[i].finite) {
      table.slots[static_cast<size_t>(row.slot)].Advance(out[i].token);
    }
  }
}

}  // namespace sluice::kernels::cpu
