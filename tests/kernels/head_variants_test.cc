// Ropes and norms of heads, and what the observer is told of K and V. Weights are multiples of the
// identity, so that heads have formulas of their own.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/ops.h"
#include "tests/kernels/op_variants_fixture.h"

namespace sluice::kernels {
namespace {

struct QkvCase {
  int64_t head_size = 0;
  Norm norm, head_norm;
  std::vector<Rope> ropes;
  int layer = -1;  // index in ropes, -1: none
  DType kv_type = DType::kF32;

  Rope rope() const { return layer < 0 ? Rope{} : ropes[static_cast<size_t>(layer)]; }
};

constexpr int64_t kHeads = 2;

// What one step leaves behind: [T, H * D] each.
struct Qkv {
  std::vector<float> q, k, v;
};

// q and k are the heads of the norm, v twice the norm.
Qkv RunQkv(const QkvCase& c, const Exec::Options& machine, const std::vector<float>& rows,
           OpObserver* observer = nullptr) {
  const int64_t width = kHeads * c.head_size;
  const int64_t tokens = static_cast<int64_t>(rows.size()) / width;
  Step step(machine, tokens, width, kHeads);
  const PackedWeight once = Pack(machine.backend, width, width, Diagonal(width, 1.0f));
  const PackedWeight twice = Pack(machine.backend, width, width, Diagonal(width, 2.0f));
  Linear qk, v;
  qk.weight = &once;
  v.weight = &twice;
  std::vector<float> embedding(rows.size());
  absl::Status status =
      EmbedTokens(step.exec, once, 1.0f, c.ropes, step.batch, {embedding.data(), tokens, width});
  EXPECT_TRUE(status.ok()) << status;
  const int64_t num_pages = static_cast<int64_t>(step.pages.size()) + 1;
  std::vector<std::byte> pages(
      static_cast<size_t>(num_pages * KvPageBytes(c.kv_type, kHeads, c.head_size)));
  const KvLayer kv{c.kv_type,   num_pages,    kHeads,
                   c.head_size, pages.data(), pages.data() + pages.size() / 2};
  const NormQkvRopeStoreArgs args = {.norm = c.norm,
                                     .q = &qk,
                                     .k = &qk,
                                     .v = &v,
                                     .q_head_norm = c.head_norm,
                                     .k_head_norm = c.head_norm,
                                     .rope = c.rope(),
                                     .rope_index = std::max(c.layer, 0),
                                     .head_size = c.head_size};
  Qkv out;
  out.q.resize(rows.size());
  out.k.resize(rows.size());
  out.v.resize(rows.size());
  step.exec.set_observer(observer);
  step.exec.set_layer(7);
  status = NormQkvRopeStore(step.exec, args, {rows.data(), tokens, width}, step.batch, kv,
                            {out.q.data(), tokens, width});
  EXPECT_TRUE(status.ok()) << status;
  ReadKv(kv, step.pages, step.positions, false, out.k.data());
  ReadKv(kv, step.pages, step.positions, true, out.v.data());
  return out;
}

// The pairs of a head turned by their angles.
void Rotate(const Rope& rope, int32_t position, double* head) {
  const int64_t half = rope.rotary_size / 2;
  for (int64_t i = 0; i < half; ++i) {
    const bool interleaved = rope.style == RopeStyle::kInterleaved;
    double& a = head[interleaved ? 2 * i : i];
    double& b = head[interleaved ? 2 * i + 1 : i + half];
    const double angle = static_cast<float>(position) * rope.inverse_frequencies[i];
    const double c = std::cos(angle) * rope.magnitude;
    const double s = std::sin(angle) * rope.magnitude;
    const double first = a * c - b * s;
    b = b * c + a * s;
    a = first;
  }
}

// q of the token with `row` at `position`.
Expected QueryOf(const QkvCase& c, const float* row, int32_t position) {
  const Expected normed = NormOf(c.norm, row, kHeads * c.head_size);
  const std::vector<float> input(normed.values.begin(), normed.values.end());
  Expected want;
  for (int64_t h = 0; h < kHeads; ++h) {
    const float* values = input.data() + h * c.head_size;
    std::vector<double> head(values, values + c.head_size);
    if (c.head_norm.weight != nullptr) head = NormOf(c.head_norm, values, c.head_size).values;
    double largest = 0.0;
    for (const double value : head) largest = std::max(largest, std::abs(value));
    Rotate(c.rope(), position, head.data());
    want.values.insert(want.values.end(), head.begin(), head.end());
    // Roundings of the values themselves; then those of a head's mean, of values up to 4 and
    // weights up to 3, over a root of at least 0.7.
    want.bounds.insert(want.bounds.end(), head.size(), kUlp * (16.0 * largest + 32.0));
  }
  return want;
}

void ExpectNear(const char* what, const float* got, const Expected& want) {
  for (size_t i = 0; i < want.values.size(); ++i) {
    ASSERT_LE(std::abs(got[i] - want.values[i]), want.bounds[i])
        << what << " " << i << ": got " << got[i] << ", want " << want.values[i];
  }
}

void ExpectQkv(const QkvCase& c) {
  const int64_t width = kHeads * c.head_size;
  const int32_t tokens = 70;
  const std::vector<float> rows = Random(tokens * width, 16);
  Qkv first;
  for (const Exec::Options& machine : Machines()) {
    SCOPED_TRACE(Exec(machine).Describe());
    const Qkv got = RunQkv(c, machine, rows);
    for (int32_t t = 0; t < tokens; ++t) {
      SCOPED_TRACE("token " + std::to_string(t));
      const float* row = rows.data() + t * width;
      ExpectNear("q", got.q.data() + t * width, QueryOf(c, row, 11 + t));
      Expected v = NormOf(c.norm, row, width);
      for (double& value : v.values) value *= 2.0;
      for (double& bound : v.bounds) bound *= 2.0;
      ExpectNear("v", got.v.data() + t * width, v);
    }
    EXPECT_EQ(got.k, got.q);
    if (machine.backend == Backend::kRef) continue;
    if (first.q.empty()) first = got;
    ASSERT_EQ(got.q, first.q);
    ASSERT_EQ(got.v, first.v);
    const std::vector<float> some(rows.begin(), rows.begin() + 2 * width);
    const Qkv two = RunQkv(c, machine, some);
    ASSERT_EQ(two.q, std::vector<float>(got.q.begin(), got.q.begin() + 2 * width));
    ASSERT_EQ(two.v, std::vector<float>(got.v.begin(), got.v.begin() + 2 * width));
  }
}

std::vector<float> Frequencies(int64_t rotary_size, double base) {
  std::vector<float> frequencies;
  for (int64_t i = 0; i < rotary_size / 2; ++i) {
    frequencies.push_back(static_cast<float>(
        std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(rotary_size))));
  }
  return frequencies;
}

// Layers of one step use one rope, the other, or none, with no norm of heads, or one with an
// epsilon of its own.
TEST(HeadVariantsTest, LayersChooseAmongRopesAndHeadNorms) {
  for (const int64_t head_size : {1, 2, 33, 34, 64, 80, 256}) {
    const std::vector<float> weight = Random(kHeads * head_size, 13);
    const std::vector<float> head_weight = Random(head_size, 14);
    const std::vector<float> head_bias = Random(head_size, 15);
    const std::vector<float> fast = Frequencies(head_size / 2 * 2, 1e4);
    const std::vector<float> slow = Frequencies(head_size / 4 * 2, 1e6);
    QkvCase c;
    c.head_size = head_size;
    c.norm = {.weight = weight.data(), .epsilon = 1e-6f};
    c.ropes = {{RopeStyle::kInterleaved, head_size / 2 * 2, fast.data(), 1.0f},
               {RopeStyle::kHalfSplit, head_size / 4 * 2, slow.data(), 1.25f}};
    const Norm head_norms[] = {{},
                               {.weight = head_weight.data(), .epsilon = 0.5f},
                               {head_weight.data(), head_bias.data(), 0.5f, NormKind::kLayer}};
    for (c.layer = -1; c.layer < 2; ++c.layer) {
      for (const Norm& head_norm : head_norms) {
        SCOPED_TRACE("D " + std::to_string(head_size) + " layer " + std::to_string(c.layer) +
                     " head norm " + std::to_string(&head_norm - head_norms));
        c.head_norm = head_norm;
        ExpectQkv(c);
      }
    }
  }
}

// The observer sees q, then the K and V of the step's tokens as the cache holds them.
TEST(HeadVariantsTest, TheObserverSeesKAndV) {
  struct Recorder : OpObserver {
    void OnOp(std::string_view op, int layer, std::span<const float> values, int64_t rows,
              int64_t cols) override {
      seen.push_back(std::string(op) + " " + std::to_string(layer) + " " + std::to_string(rows) +
                     "x" + std::to_string(cols));
      outcomes.emplace_back(values.begin(), values.end());
    }
    std::vector<std::string> seen;
    std::vector<std::vector<float>> outcomes;
  };
  for (const DType type : {DType::kF32, DType::kF16}) {
    for (const Exec::Options& machine : Machines()) {
      SCOPED_TRACE(Exec(machine).Describe() + " " + std::string(Name(type)));
      QkvCase c;
      c.head_size = 24;
      c.kv_type = type;
      // Halves hold these exactly; 9 tokens from position 11 on lie in two pages.
      std::vector<float> rows;
      for (int i = 0; i < 9 * 48; ++i) rows.push_back(static_cast<float>(i - 200) / 4.0f);
      Recorder recorder;
      RunQkv(c, machine, rows, &recorder);
      ASSERT_EQ(recorder.seen, (std::vector<std::string>{"qkv 7 9x48", "k 7 9x48", "v 7 9x48"}));
      EXPECT_EQ(recorder.outcomes[0], rows);
      EXPECT_EQ(recorder.outcomes[1], rows);
      std::vector<float> twice = rows;
      for (float& value : twice) value *= 2.0f;
      EXPECT_EQ(recorder.outcomes[2], twice);
    }
  }
}

}  // namespace
}  // namespace sluice::kernels
