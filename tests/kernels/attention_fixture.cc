#include "tests/kernels/attention_fixture.h"

#include <algorithm>
#include <bit>
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

namespace {

// Round to nearest even; for finite values and NaN.
uint16_t FloatToBFloat16(float value) {
  if (std::isnan(value)) return 0x7fc0;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace

Cache::Cache(Heads heads, DType type, const std::vector<int>& lengths, uint32_t page_seed)
    : heads_(heads) {
  int64_t num_pages = 1;
  for (const int length : lengths) num_pages += (length + kPageTokens - 1) / kPageTokens;
  layer_.num_pages = num_pages + 3;
  layer_.num_kv_heads = heads.num_kv_heads;
  layer_.head_size = heads.head_size;
  Allocate(type);
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

void Cache::Allocate(DType type) {
  layer_.type = type;
  const int64_t bytes = KvPageBytes(type, heads_.num_kv_heads, heads_.head_size) / 2;
  k_ = std::vector<std::byte>(static_cast<size_t>(bytes * layer_.num_pages));
  v_ = k_;
  layer_.k = k_.data();
  layer_.v = v_.data();
}

Cache Cache::As(DType type) const {
  Cache other = *this;
  other.Allocate(type);
  const int64_t values = layer_.num_pages * kPageTokens * heads_.num_kv_heads * heads_.head_size;
  for (int64_t i = 0; i < values; ++i) {
    other.Set(other.layer_.k, i, Get(layer_.k, i));
    other.Set(other.layer_.v, i, Get(layer_.v, i));
  }
  return other;
}

void Cache::Put(int sequence, int position, int64_t kv_head, int64_t d, bool value, float x) {
  const int64_t page = pages(sequence)[static_cast<size_t>(position / kPageTokens)];
  const int64_t begin = (page * heads_.num_kv_heads + kv_head) * heads_.head_size * kPageTokens;
  const int64_t slot = position % kPageTokens;
  const int64_t at = value ? slot * heads_.head_size + d : d * kPageTokens + slot;
  Set(value ? layer_.v : layer_.k, begin + at, x);
}

float Cache::Get(const std::byte* array, int64_t index) const {
  if (layer_.type == DType::kF32) return reinterpret_cast<const float*>(array)[index];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(array)[index];
  return layer_.type == DType::kBF16 ? BFloat16ToFloat(bits) : HalfToFloat(bits);
}

void Cache::Set(std::byte* array, int64_t index, float x) {
  if (layer_.type == DType::kF32) {
    reinterpret_cast<float*>(array)[index] = x;
  } else if (layer_.type == DType::kBF16) {
    reinterpret_cast<uint16_t*>(array)[index] = FloatToBFloat16(x);
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
  std::vector<int32_t> tokens, positions, row_begins = {0}, page_begins = {0}, pages, logit_tokens;
  std::vector<float> q;  // [T, cols]
  size_t max_pages = 0;

  BatchView View() const {
    BatchView batch;
    batch.num_tokens = static_cast<int64_t>(positions.size());
    batch.num_rows = static_cast<int64_t>(row_begins.size()) - 1;
    batch.num_logit_rows = static_cast<int64_t>(logit_tokens.size());
    batch.tokens = tokens.data();
    batch.logit_tokens = logit_tokens.data();
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
  step.tokens.resize(step.positions.size());
  if (step.positions.size() + 1 == step.row_begins.size()) {
    step.logit_tokens.resize(step.positions.size());
    std::iota(step.logit_tokens.begin(), step.logit_tokens.end(), 0);
  }
  return step;
}

// Keeps what came out last.
class Watcher : public OpObserver {
 public:
  void OnOp(std::string_view, int, std::span<const float> values, int64_t, int64_t) override {
    values_.assign(values.begin(), values.end());
  }
  const std::vector<float>& values() const { return values_; }

 private:
  std::vector<float> values_;
};

// A copy of an array in the memory of `backend`.
Buffer Uploaded(Backend backend, const void* from, size_t bytes, size_t room) {
  auto buffer = AllocateMemory(backend, room);
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  const absl::Status status = CopyToBackend(backend, buffer->bytes(), from, bytes);
  EXPECT_TRUE(status.ok()) << status;
  return std::move(*buffer);
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
  constexpr int64_t kPadding = 64;  // rows that a bucket may add
  WorkspaceShape shape;
  shape.max_tokens = batch.num_tokens + kPadding;
  shape.max_logit_rows = batch.num_logit_rows + kPadding;
  shape.max_rows = batch.num_rows + kPadding;
  shape.max_pages = static_cast<int64_t>(step.max_pages);
  shape.width = cols;
  shape.num_heads = heads.num_heads;
  shape.num_kv_heads = heads.num_kv_heads;
  shape.head_size = heads.head_size;
  shape.ffn_width = 32;
  shape.vocab_size = 32;
  absl::Status status = ReserveWorkspace(exec, shape);
  EXPECT_TRUE(status.ok()) << status;
  auto out = AllocateActivation(machine.backend, shape.max_tokens, cols);
  EXPECT_TRUE(out.ok()) << out.status();
  const size_t q_row = static_cast<size_t>(cols) * sizeof(float);
  const Buffer q = Uploaded(machine.backend, step.q.data(), step.q.size() * sizeof(float),
                            static_cast<size_t>(shape.max_tokens) * q_row);
  KvLayer layer = cache.layer();
  Buffer k, v;
  if (machine.backend == Backend::kCuda) {
    const auto bytes = static_cast<size_t>(
        layer.num_pages * KvPageBytes(layer.type, layer.num_kv_heads, layer.head_size) / 2);
    k = Uploaded(machine.backend, layer.k, bytes, bytes);
    v = Uploaded(machine.backend, layer.v, bytes, bytes);
    layer.k = k.bytes();
    layer.v = v.bytes();
  }
  const auto uploaded = UploadBatch(exec, batch);
  EXPECT_TRUE(uploaded.ok()) << uploaded.status();
  Watcher watcher;
  exec.set_observer(&watcher);
  const PagedAttentionArgs args = {.scale = 1.0f / std::sqrt(static_cast<float>(heads.head_size)),
                                   .softcap = variant.softcap,
                                   .window = variant.window};
  status = PagedAttention(exec, args, {q.as<float>(), uploaded->num_tokens, cols}, *uploaded, layer,
                          *out);
  EXPECT_TRUE(status.ok()) << status;

  Outcome outcome;
  outcome.cols = cols;
  const int64_t count = batch.num_tokens * cols;
  outcome.values = watcher.values();
  outcome.values.resize(static_cast<size_t>(count));
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
