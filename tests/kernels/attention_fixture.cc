#include "tests/kernels/attention_fixture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "gtest/gtest.h"

#include "kernels/core/half.h"

namespace sluice::kernels {

float Noise(uint32_t kind, int sequence, int position, int64_t index) {
  uint64_t x = kind;
  x = x * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(sequence);
  x = x * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(position);
  x = x * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(index);
  x ^= x >> 31;
  x *= 0xBF58476D1CE4E5B9u;
  x ^= x >> 29;
  return static_cast<float>(static_cast<int64_t>(x >> 40)) * 0x1p-23f - 1.0f;
}

Cache::Cache(Heads heads, DType type, const std::vector<int>& lengths, uint32_t page_seed)
    : heads_(heads) {
  int64_t num_pages = 1;
  for (const int length : lengths) num_pages += (length + kPageTokens - 1) / kPageTokens;
  layer_.type = type;
  layer_.num_pages = num_pages + 3;
  layer_.num_kv_heads = heads.num_kv_heads;
  layer_.head_size = heads.head_size;
  const int64_t bytes = KvPageBytes(type, heads.num_kv_heads, heads.head_size) / 2;
  k_.resize(static_cast<size_t>(bytes * layer_.num_pages));
  v_.resize(k_.size());
  layer_.k = k_.data();
  layer_.v = v_.data();
  const int64_t values = layer_.num_pages * kPageTokens * heads.num_kv_heads * heads.head_size;
  for (int64_t i = 0; i < values; ++i) {
    Set(layer_.k, i, std::numeric_limits<float>::quiet_NaN());
    Set(layer_.v, i, std::numeric_limits<float>::quiet_NaN());
  }
  std::vector<int32_t> order(static_cast<size_t>(layer_.num_pages - 1));
  std::iota(order.begin(), order.end(), 1);
  std::shuffle(order.begin(), order.end(), std::mt19937(page_seed));
  size_t next = 0;
  for (size_t s = 0; s < lengths.size(); ++s) {
    std::vector<int32_t> table;
    for (int i = 0; i < lengths[s]; i += kPageTokens) table.push_back(order[next++]);
    tables_.push_back(table);
    for (int position = 0; position < lengths[s]; ++position) Fill(static_cast<int>(s), position);
  }
}

void Cache::Put(int sequence, int position, int64_t kv_head, int64_t d, bool value, float x) {
  const int64_t page = pages(sequence)[static_cast<size_t>(position / kPageTokens)];
  const int64_t begin = (page * heads_.num_kv_heads + kv_head) * heads_.head_size * kPageTokens;
  const int64_t slot = position % kPageTokens;
  const int64_t at = value ? slot * heads_.head_size + d : d * kPageTokens + slot;
  Set(value ? layer_.v : layer_.k, begin + at, x);
}

void Cache::Set(std::byte* array, int64_t index, float x) {
  if (layer_.type == DType::kF32) {
    reinterpret_cast<float*>(array)[index] = x;
  } else {
    reinterpret_cast<uint16_t*>(array)[index] = FloatToHalf(x);
  }
}

void Cache::Fill(int sequence, int position) {
  for (int64_t g = 0; g < heads_.num_kv_heads; ++g) {
    for (int64_t d = 0; d < heads_.head_size; ++d) {
      const int64_t index = g * heads_.head_size + d;
      Put(sequence, position, g, d, false, Noise(1, sequence, position, index));
      Put(sequence, position, g, d, true, Noise(2, sequence, position, index));
    }
  }
}

namespace {

// A step's arrays.
struct Step {
  std::vector<int32_t> positions, row_begins = {0}, page_begins = {0}, pages;
  std::vector<float> q;  // [T, cols]
  size_t max_pages = 0;

  BatchView View() const {
    BatchView batch;
    batch.num_tokens = static_cast<int64_t>(positions.size());
    batch.num_rows = static_cast<int64_t>(row_begins.size()) - 1;
    batch.positions = positions.data();
    batch.row_begins = row_begins.data();
    batch.page_begins = page_begins.data();
    batch.pages = pages.data();
    return batch;
  }
};

Step MakeStep(int64_t cols, const Cache& cache, const std::vector<Piece>& pieces,
              const std::vector<Poke>& pokes) {
  Step step;
  for (const Piece& piece : pieces) {
    for (int position = piece.before; position < piece.before + piece.count; ++position) {
      step.positions.push_back(position);
      for (int64_t i = 0; i < cols; ++i) {
        step.q.push_back(4.0f * Noise(3, piece.sequence, position, i));
      }
      for (const Poke& poke : pokes) {
        if (poke.sequence != piece.sequence || poke.position != position) continue;
        step.q[step.q.size() - static_cast<size_t>(cols - poke.index)] = poke.value;
      }
    }
    const std::vector<int32_t>& table = cache.pages(piece.sequence);
    step.pages.insert(step.pages.end(), table.begin(), table.end());
    step.max_pages = std::max(step.max_pages, table.size());
    step.row_begins.push_back(static_cast<int32_t>(step.positions.size()));
    step.page_begins.push_back(static_cast<int32_t>(step.pages.size()));
  }
  return step;
}

}  // namespace

Outcome Attend(const Machine& machine, Heads heads, const Cache& cache,
               const std::vector<Piece>& pieces, const std::vector<Poke>& pokes, Variant variant) {
  const int64_t cols = heads.num_heads * heads.head_size;
  const Step step = MakeStep(cols, cache, pieces, pokes);
  const BatchView batch = step.View();

  Exec::Options options;
  options.backend = machine.backend;
  options.isa = machine.isa;
  options.num_threads = machine.num_threads;
  Exec exec(options);
  WorkspaceShape shape;
  shape.max_tokens = batch.num_tokens;
  shape.max_logit_rows = 1;
  shape.max_rows = batch.num_rows;
  shape.max_pages = static_cast<int64_t>(step.max_pages);
  shape.width = cols;
  shape.num_heads = heads.num_heads;
  shape.num_kv_heads = heads.num_kv_heads;
  shape.head_size = heads.head_size;
  shape.ffn_width = 32;
  shape.vocab_size = 32;
  absl::Status status = ReserveWorkspace(exec, shape);
  EXPECT_TRUE(status.ok()) << status;
  auto out = Activation::Allocate(machine.backend, batch.num_tokens, cols);
  EXPECT_TRUE(out.ok()) << out.status();
  const PagedAttentionArgs args = {.scale = 1.0f / std::sqrt(static_cast<float>(heads.head_size)),
                                   .softcap = variant.softcap,
                                   .window = variant.window};
  status = PagedAttention(exec, args, {step.q.data(), batch.num_tokens, cols}, batch, cache.layer(),
                          *out);
  EXPECT_TRUE(status.ok()) << status;

  Outcome outcome;
  outcome.cols = cols;
  const int64_t count = batch.num_tokens * cols;
  outcome.values.assign(out->values, out->values + count);
  if (out->quants != nullptr) {
    outcome.quants.assign(out->quants, out->quants + count);
    outcome.scales.assign(out->scales, out->scales + count / 32);
    outcome.sums.assign(out->sums, out->sums + count / 32);
  }
  return outcome;
}

std::vector<Machine> CpuMachines() {
  std::vector<Machine> machines;
  for (const int num_threads : {1, 2, 3}) {
    machines.push_back({Backend::kCpu, CpuIsa::kAvx2, num_threads});
    const auto best = DetectCpuIsa();
    if (best.ok() && *best == CpuIsa::kAvx512) {
      machines.push_back({Backend::kCpu, CpuIsa::kAvx512, num_threads});
    }
  }
  return machines;
}

std::string Name(const Machine& machine) {
  return std::string(Name(machine.isa)) + ", threads " + std::to_string(machine.num_threads);
}

std::vector<int> LengthsOf(const std::vector<Piece>& pieces) {
  std::vector<int> lengths;
  for (const Piece& piece : pieces) {
    lengths.resize(std::max(lengths.size(), static_cast<size_t>(piece.sequence) + 1));
    int& length = lengths[static_cast<size_t>(piece.sequence)];
    length = std::max(length, piece.before + piece.count);
  }
  return lengths;
}

::testing::AssertionResult SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) {
      return ::testing::AssertionFailure() << "at " << i << ": " << a[i] << " and " << b[i];
    }
  }
  return ::testing::AssertionSuccess();
}

double Tolerance(Heads heads, Variant variant) {
  const double epsilon = 0x1p-24;
  const double largest_score = 4.0 * std::sqrt(static_cast<double>(heads.head_size));
  return epsilon * (32.0 + 4.0 * largest_score + 8.0 * variant.softcap);
}

void ExpectClose(const Outcome& got, const Outcome& want, double tolerance) {
  ASSERT_EQ(got.values.size(), want.values.size());
  double worst = -1.0;
  size_t at = 0;
  for (size_t i = 0; i < got.values.size(); ++i) {
    double error = std::abs(static_cast<double>(got.values[i]) - want.values[i]);
    if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
    if (error > worst) {
      worst = error;
      at = i;
    }
  }
  EXPECT_LE(worst, tolerance) << "token " << static_cast<int64_t>(at) / got.cols << " column "
                              << static_cast<int64_t>(at) % got.cols << ": got " << got.values[at]
                              << ", expected " << want.values[at];
}

}  // namespace sluice::kernels
