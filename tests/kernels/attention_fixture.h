#pragma once

// Paged caches and steps of attention, for the tests of attention and of the KV pages.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/ops.h"

namespace sluice::kernels {

struct Heads {
  int64_t num_heads = 1;
  int64_t num_kv_heads = 1;
  int64_t head_size = 64;
};

// A run of `count` tokens that follow `before` tokens of the same sequence.
struct Piece {
  int sequence = 0;
  int before = 0;
  int count = 1;
};

// A value in [-1, 1) that depends on its arguments alone, so that however a prompt is cut into
// steps it means the same numbers. K is kind 1, V kind 2, q four times kind 3.
float Noise(uint32_t kind, int sequence, int position, int64_t index);

// K and V of some sequences in randomly chosen pages. Whatever no token wrote, page 0 included, is
// NaN: a kernel that looks at it gives itself away.
class Cache {
 public:
  Cache(Heads heads, DType type, const std::vector<int>& lengths, uint32_t page_seed);

  void Put(int sequence, int position, int64_t kv_head, int64_t d, bool value, float x);

  // The same values in pages of another type, rounded to nearest even.
  Cache As(DType type) const;

  const KvLayer& layer() const { return layer_; }
  const std::vector<int32_t>& pages(int sequence) const {
    return tables_[static_cast<size_t>(sequence)];
  }

 private:
  void Allocate(DType type);
  float Get(const std::byte* array, int64_t index) const;
  void Set(std::byte* array, int64_t index, float x);
  void Fill(int sequence, int position);

  Heads heads_;
  KvLayer layer_;
  std::vector<std::byte> k_, v_;
  std::vector<std::vector<int32_t>> tables_;
};

struct Machine {
  Backend backend = Backend::kCpu;
  CpuIsa isa = CpuIsa::kAvx2;
  int num_threads = 1;
};

// The CPU backend with 1, 2 and 3 threads and every instruction set of this machine.
std::vector<Machine> CpuMachines();
std::string Name(const Machine& machine);

struct Poke {
  int sequence = 0;
  int position = 0;
  int64_t index = 0;  // in [0, H * D)
  float value = 0.0f;
};

// What came out, by token of the step.
struct Outcome {
  int64_t cols = 0;
  std::vector<float> values;
  std::vector<int16_t> quants;
  std::vector<float> scales, sums;

  const float* row(int64_t t) const { return values.data() + t * cols; }
};

// What differs from plain attention.
struct Variant {
  float softcap = 0.0f;
  int32_t window = 0;
};

// One step of attention over `pieces` on a machine of its own, with scale 1 / sqrt(D). A step of
// single tokens asks for the logits of all of them, which on CUDA pads it to a bucket's rows.
Outcome Attend(const Machine& machine, Heads heads, const Cache& cache,
               const std::vector<Piece>& pieces, const std::vector<Poke>& pokes = {},
               Variant variant = {});

// Lengths of all sequences named in `pieces`, after them.
std::vector<int> LengthsOf(const std::vector<Piece>& pieces);

// Bitwise, so that -0 differs from 0.
::testing::AssertionResult SameBits(const std::vector<float>& a, const std::vector<float>& b);

// Error of a softmax average in f32: each score is off by some ulps of the sum of |q k| (and of the
// cap), which tilts the weights; the chains over keys add ulps of the largest V, here 1.
double Tolerance(Heads heads, Variant variant = {});

// Names the worst value.
void ExpectClose(const Outcome& got, const Outcome& want, double tolerance);

}  // namespace sluice::kernels
