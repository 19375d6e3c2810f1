// persistent_decode: the whole forward pass of one token (decode_program.h). Grid: one block of 256
// threads on every multiprocessor; up to 227 KB of shared memory, most of it the
// rings of weights. Reads every weight once, at most a few vectors of f32 through L2 a stage.
// Figures: docs/performance.md.

#include "kernels/cuda/decode_attention.cuh"
#include "kernels/cuda/decode_program.h"
#include "kernels/cuda/decode_shared.cuh"
#include "kernels/cuda/device.h"
#include "kernels/cuda/handoff.cuh"
#include "kernels/cuda/head_rows.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/packed_value.cuh"
#include "kernels/cuda/row_sources.cuh"
#include "kernels/cuda/decode_ring.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr int kThreads = kRowThreads;
constexpr int kGroupParts = 2 * kRingWarps * kTileRows;  // sums of a group's items

// Word `w` of the lone operand row (linear_row.cu) that holds columns k and k + 1.
__device__ __forceinline__ void write_words(uint4* row, int k, const float4& values, float scale) {
  uint32_t* words = reinterpret_cast<uint32_t*>(row + k / 32 * 4 + k % 8 / 2) + k % 32 / 8;
  const __half2 first = __floats2half2_rn(__fmul_rn(values.x, scale), __fmul_rn(values.y, scale));
  const __half2 second = __floats2half2_rn(__fmul_rn(values.z, scale), __fmul_rn(values.w, scale));
  memcpy(words, &first, 4);
  memcpy(words + 4, &second, 4);
}

__device__ __forceinline__ float4 quad_at(const float* values, int k) {
  return *reinterpret_cast<const float4*>(values + k);
}
__device__ __forceinline__ float4 times(const float4& a, const float4& b) {
  return make_float4(__fmul_rn(a.x, b.x), __fmul_rn(a.y, b.y), __fmul_rn(a.z, b.z),
                     __fmul_rn(a.w, b.w));
}
__device__ __forceinline__ float4 times(const float4& a, float b) {
  return times(a, make_float4(b, b, b, b));
}
__device__ __forceinline__ float4 norm_weights(const DecodeStage& stage, int k) {
  return __ldg(reinterpret_cast<const float4*>(stage.norm_weight + k));
}
__device__ __forceinline__ float most_of(const float4& v, float most) {
  return fmaxf(fmaxf(fmaxf(fmaxf(most, fabsf(v.x)), fabsf(v.y)), fabsf(v.z)), fabsf(v.w));
}

// The block's sum of x and maximum of y in the order of block_sum_max, with one barrier: the
// exchange takes turns between two arrays.
__device__ __forceinline__ float2 meet(float x, float y, DecodeShared& s) {
  x = warp_sum(x);
  y = warp_max(y);
  float* exchange = s.reduce + 16 * s.turn;
  s.turn ^= 1;
  if (threadIdx.x % 32 == 0) {
    exchange[threadIdx.x / 32] = x;
    exchange[8 + threadIdx.x / 32] = y;
  }
  __syncthreads();
  float total = exchange[0];
  float most = exchange[8];
#pragma unroll
  for (int i = 1; i < 8; ++i) {
    total = __fadd_rn(total, exchange[i]);
    most = fmaxf(most, exchange[8 + i]);
  }
  return make_float2(total, most);
}

// Quads of a vector that a thread asks for before it waits for the first.
constexpr int kQuadsAtOnce = 4;

// The operand row of the normed residual; returns its shift. All that stays in registers when the
// row has at most 4096 columns.
__device__ __forceinline__ int make_normed_row(const DecodeArgs& args, const DecodeStage& stage,
                                               DecodeShared& s) {
  constexpr int kStep = 4 * kThreads;
  const int cols = stage.cols;
  const int padded = (cols + kUnitCols - 1) / kUnitCols * kUnitCols;
  const float* from = args.handoff + stage.in;
  float4 weights[kQuadsAtOnce];
  float4 x[kQuadsAtOnce];
  float squares = 0.0f;
  float most = 0.0f;
  const auto add = [&](const float4& value, const float4& weight) {
    squares = __fmaf_rn(value.x, value.x, squares);
    squares = __fmaf_rn(value.y, value.y, squares);
    squares = __fmaf_rn(value.z, value.z, squares);
    squares = __fmaf_rn(value.w, value.w, squares);
    most = most_of(times(value, weight), most);
  };
  int k = 4 * threadIdx.x;
  for (; k < cols - kQuadsAtOnce * kStep; k += kStep) {  // what does not fit the registers
    add(stage.in < 0 ? quad_at(s.residual, k) : take_quad(from + k), norm_weights(stage, k));
  }
  const int first = k;
#pragma unroll
  for (int i = 0; i < kQuadsAtOnce; ++i) {
    if (first + i * kStep >= cols) break;
    weights[i] = norm_weights(stage, first + i * kStep);
    x[i] = stage.in < 0 ? quad_at(s.residual, first + i * kStep)
                        : as_floats(look_quad(from + first + i * kStep));
  }
#pragma unroll
  for (int i = 0; i < kQuadsAtOnce; ++i) {
    if (first + i * kStep >= cols) break;
    if (absent(x[i])) x[i] = take_quad(from + first + i * kStep);
    add(x[i], weights[i]);
  }
  const float2 both = meet(squares, most, s);
  const float variance = __fadd_rn(__fdiv_rn(both.x, static_cast<float>(cols)), stage.epsilon);
  const float inverse = rsqrtf(variance);
  const int shift = shift_of(__fmul_rn(both.y, inverse));
  const float scale = power_of_two(shift);
  const auto write = [&](int column, const float4& value, const float4& weight) {
    write_words(s.row, column, times(times(value, inverse), weight), scale);
  };
  for (k = 4 * threadIdx.x; k < first; k += kStep) {
    write(k, stage.in < 0 ? quad_at(s.residual, k) : take_quad(from + k), norm_weights(stage, k));
  }
#pragma unroll
  for (int i = 0; i < kQuadsAtOnce; ++i) {
    if (first + i * kStep >= cols) break;
    write(first + i * kStep, x[i], weights[i]);
  }
  for (k = cols + 4 * threadIdx.x; k < padded; k += kStep) {
    write_words(s.row, k, make_float4(0.0f, 0.0f, 0.0f, 0.0f), scale);
  }
  __syncthreads();
  return shift;
}

// Four columns of a query's merged attention (attention_merge.cuh).
struct MergedQuad {
  float most = kNoKeys;
  float sum = 0.0f;
  float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

  __device__ void add(float part_most, float part_sum, const float4& part) {
    if (part_most == kNoKeys) return;
    if (most == kNoKeys) {
      most = part_most;
      sum = part_sum;
      value = part;
      return;
    }
    const float2 factors = merge_factors(most, part_most);
    most = fmaxf(most, part_most);
    sum = merge_value(sum, part_sum, factors);
    value =
        make_float4(merge_value(value.x, part.x, factors), merge_value(value.y, part.y, factors),
                    merge_value(value.z, part.z, factors), merge_value(value.w, part.w, factors));
  }
  __device__ float4 outcome() const {
    return make_float4(__fdiv_rn(value.x, sum), __fdiv_rn(value.y, sum), __fdiv_rn(value.z, sum),
                       __fdiv_rn(value.w, sum));
  }
};

// Columns [k, k + 4) of the attention's outcome, merged from its parts.
__device__ __forceinline__ float4 merged_quad(const DecodeArgs& args, const DecodeStage& stage,
                                              const DecodeShared& s, int k) {
  constexpr int kAtOnce = 4;  // fragments of weights wait in registers meanwhile
  const int stride = args.head_size + kPartHeader;
  const int first_seen = stage.window > 0 ? max(0, s.position - stage.window + 1) : 0;
  const int part_keys = args.part_tiles * kTileKeys;
  const int first_part = first_seen / part_keys;
  const float* parts = args.handoff + stage.in + k / args.head_size * args.num_parts * stride;
  const int column = kPartHeader + k % args.head_size;
  MergedQuad total;
  MergedQuad split;
  for (int first = first_part; first < args.num_parts; first += kAtOnce) {
    uint4 headers[kAtOnce], quads[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i >= args.num_parts) break;
      headers[i] = look_quad(parts + (first + i) * stride);
      quads[i] = look_quad(parts + (first + i) * stride + column);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int part = first + i;
      if (part >= args.num_parts) break;
      if (absent(headers[i])) headers[i] = take_bits(parts + part * stride);
      if (absent(quads[i])) quads[i] = take_bits(parts + part * stride + column);
      const bool split_begins = part * part_keys % kSplitKeys == 0;
      if (split_begins && part > first_part) {
        total.add(split.most, split.sum, split.value);
        split = MergedQuad();
      }
      split.add(__uint_as_float(headers[i].x), __uint_as_float(headers[i].y), as_floats(quads[i]));
    }
  }
  total.add(split.most, split.sum, split.value);
  return total.outcome();
}

// What the stage before handed over, to shared memory when it is short enough; returns the largest
// of the thread's values.
__device__ __forceinline__ float take_values(const DecodeArgs& args, const DecodeStage& stage,
                                             DecodeShared& s, int padded) {
  float most = 0.0f;
  for (int first = 4 * threadIdx.x; first < padded; first += 4 * kThreads * kQuadsAtOnce) {
    uint4 bits[kQuadsAtOnce];
#pragma unroll
    for (int i = 0; i < kQuadsAtOnce; ++i) {
      const int k = first + 4 * kThreads * i;
      if (k < stage.cols) bits[i] = look_quad(args.handoff + stage.in + k);
    }
#pragma unroll
    for (int i = 0; i < kQuadsAtOnce; ++i) {
      const int k = first + 4 * kThreads * i;
      if (k >= padded) break;
      float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (k < stage.cols) {
        if (absent(bits[i])) bits[i] = take_bits(args.handoff + stage.in + k);
        value = as_floats(bits[i]);
      }
      most = most_of(value, most);
      if (args.max_cols <= kMaxKeptCols) *reinterpret_cast<float4*>(s.values + k) = value;
    }
  }
  return most;
}

// The same of attention, merged from its parts.
__device__ __forceinline__ float take_attention(const DecodeArgs& args, const DecodeStage& stage,
                                                DecodeShared& s, int padded) {
  float most = 0.0f;
  for (int k = 4 * threadIdx.x; k < padded; k += 4 * kThreads) {
    const float4 value =
        k < stage.cols ? merged_quad(args, stage, s, k) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    most = most_of(value, most);
    *reinterpret_cast<float4*>(s.values + k) = value;
  }
  return most;
}

// The operand row of it as it is; returns its shift.
__device__ __forceinline__ int make_taken_row(const DecodeArgs& args, const DecodeStage& stage,
                                              DecodeShared& s) {
  const int padded = (stage.cols + kUnitCols - 1) / kUnitCols * kUnitCols;
  const float most = stage.kind == DecodeStageKind::kOutput ? take_attention(args, stage, s, padded)
                                                            : take_values(args, stage, s, padded);
  const int shift = shift_of(meet(0.0f, most, s).y);
  const float scale = power_of_two(shift);
  const bool kept = stage.kind == DecodeStageKind::kOutput || args.max_cols <= kMaxKeptCols;
  for (int k = 4 * threadIdx.x; k < padded; k += 4 * kThreads) {
    const float4 value = kept             ? quad_at(s.values, k)
                         : k < stage.cols ? take_quad(args.handoff + stage.in + k)
                                          : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    write_words(s.row, k, value, scale);
  }
  __syncthreads();
  return shift;
}

__device__ __forceinline__ int make_row(const DecodeArgs& args, const DecodeStage& stage,
                                        DecodeShared& s) {
  const bool taken = stage.kind == DecodeStageKind::kOutput || stage.kind == DecodeStageKind::kDown;
  return taken ? make_taken_row(args, stage, s) : make_normed_row(args, stage, s);
}

// The operands of one chunk of an item, dequantised: up to four units of four steps.
struct Fragments {
  uint32_t a[4][4][4];
  int units = 0;
};

// From unit `kAt` of the fragments on.
template <typename Unit, int kAt>
__device__ __forceinline__ void take_fragments(const DecodeItem& item, int begin, DecodeRing& ring,
                                               Fragments& fragments) {
  constexpr int kMost = kAt == 0 ? kChunkUnits<Unit> : 4 - kAt;
  const int lane = threadIdx.x % 32;
  const std::byte* slot = ring.chunk();
  fragments.units = min(kMost, item.end - begin);
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i >= fragments.units) break;
    Unit unit;
    take_unit(unit, slot, begin, i, lane);
    unit.template fragment<0>(lane, fragments.a[kAt + i][0]);
    unit.template fragment<1>(lane, fragments.a[kAt + i][1]);
    unit.template fragment<2>(lane, fragments.a[kAt + i][2]);
    unit.template fragment<3>(lane, fragments.a[kAt + i][3]);
  }
  ring.release(begin + fragments.units >= item.end);
}

template <int kAt>
__device__ __forceinline__ void take_chunk(const DecodeItem& item, int begin, DecodeRing& ring,
                                           Fragments& fragments) {
  fragments.units = 0;
  if (begin >= item.end) return;
  with_unit(item.task->type,
            [&]<typename Unit>() { take_fragments<Unit, kAt>(item, begin, ring, fragments); });
}

// acc += the product of `units` units, from kAt of the fragments and from `begin` of the tile on,
// with the row.
template <int kAt>
__device__ __forceinline__ void multiply(const Fragments& fragments, int units, const uint4* row,
                                         int begin, float (&acc)[4]) {
  const int lane = threadIdx.x % 32;
  const uint4 zero = make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int i = 0; i < 4 - kAt; ++i) {
    if (i >= units) break;
    // Only column 0 of the eight is a token: the four lanes that hold it.
    const uint4* operands = row + (begin + i) * 8;
    const uint4 low = lane < 4 ? operands[lane] : zero;
    const uint4 high = lane < 4 ? operands[4 + lane] : zero;
    mma_step(acc, fragments.a[kAt + i][0], low.x, low.y);
    mma_step(acc, fragments.a[kAt + i][1], low.z, low.w);
    mma_step(acc, fragments.a[kAt + i][2], high.x, high.y);
    mma_step(acc, fragments.a[kAt + i][3], high.z, high.w);
  }
}

__device__ __forceinline__ void write_part(float* parts, int item, const float (&acc)[4]) {
  const int lane = threadIdx.x % 32;
  if (lane % 4 != 0) return;
  parts[item * kTileRows + lane / 4] = acc[0];
  parts[item * kTileRows + lane / 4 + 8] = acc[2];
}

// What the thread that finishes a row of a group needs besides its sums, asked for ahead.
struct RowEnd {
  int row = -1;       // in the group's tiles; -1: the thread has none
  int n = 0;          // of the matrix
  int part = 0;       // its first sum among the group's, the others 16 apart
  int gate_part = 0;  // the same of gate
  int num_slices = 0;
  bool has_factors[2] = {};  // of the one matrix, or of up and gate
  bool has_biases[2] = {};
  float factors[2] = {1.0f, 1.0f};
  float biases[2] = {};
  float before = 0.0f;  // what the outcome is added to
  float* out = nullptr;
};

// `turn` shifts the rows to other warps: each of a stage's groups holds up another one.
__device__ __forceinline__ RowEnd row_end(const DecodeArgs& args, const DecodeStage& stage,
                                          const DecodeShared& s, int group, int turn) {
  RowEnd end;
  const DecodeTask* task = s.work.task_of(stage, group);
  const bool pair = stage.kind == DecodeStageKind::kGateUp;
  const int items_log2 = s.work.items_log2(stage, *task);
  const int tiles_log2 = items_log2 - task->slices_log2;
  const int row = (static_cast<int>(threadIdx.x) + 32 * turn) % kThreads;
  if (row >= kTileRows << tiles_log2) return end;
  const int n = ((group - task->first_group) * kTileRows << tiles_log2) + row;
  if (n >= task->rows) return end;
  end.row = row;
  end.n = n;
  end.part = (row / kTileRows << task->slices_log2) * kTileRows + row % kTileRows;
  end.gate_part = end.part + (kTileRows << items_log2);
  end.num_slices = task->num_slices;
  end.out = stage.kind == DecodeStageKind::kHead ? args.logits + n : args.handoff + task->out + n;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    if (m == 1 && !pair) break;
    end.has_factors[m] = task[m].row_factors != nullptr;
    end.has_biases[m] = task[m].bias != nullptr;
    if (end.has_factors[m]) end.factors[m] = __ldg(task[m].row_factors + n);
    if (end.has_biases[m]) end.biases[m] = __ldg(task[m].bias + n);
  }
  if (stage.kind == DecodeStageKind::kOutput || stage.kind == DecodeStageKind::kDown) {
    end.before = stage.residual < 0 ? s.residual[n] : take(args.handoff + stage.residual + n);
  }
  return end;
}

// Slices added ascending, factors, bias.
__device__ __forceinline__ float finished(const float* part, const RowEnd& end, int m,
                                          float row_scale) {
  float each[kMaxSlices];
#pragma unroll
  for (int i = 0; i < kMaxSlices; ++i) each[i] = part[i * kTileRows];  // beyond the slices: unused
  float sum = each[0];
#pragma unroll
  for (int i = 1; i < kMaxSlices; ++i) {
    if (i < end.num_slices) sum = __fadd_rn(sum, each[i]);
  }
  sum = __fmul_rn(sum, row_scale);
  if (end.has_factors[m]) sum = __fmul_rn(sum, end.factors[m]);
  if (end.has_biases[m]) sum = __fadd_rn(sum, end.biases[m]);
  return sum;
}

__device__ __forceinline__ float gated(const DecodeStage& stage, float gate, float up) {
  const float value =
      stage.activation == GateActivation::kGeluTanh ? gelu_tanh_f32(gate) : silu_f32(gate);
  return __fmul_rn(value, up);
}

// Hands the outcome of one group over.
__device__ __forceinline__ void finish_group(const DecodeStage& stage, const float* parts,
                                             float row_scale, const RowEnd& end) {
  if (end.row < 0) return;
  float sum = finished(parts + end.part, end, 0, row_scale);
  if (stage.kind == DecodeStageKind::kHead) {
    *end.out = sum;
    return;
  }
  if (stage.kind == DecodeStageKind::kGateUp) {
    sum = gated(stage, finished(parts + end.gate_part, end, 1, row_scale), sum);
  } else if (stage.kind != DecodeStageKind::kQkv) {
    sum = __fadd_rn(end.before, __fmul_rn(stage.scale, sum));
  }
  hand_over(end.out, sum);
}

// The products of one stage. Whatever does not depend on the row is asked for, and the first
// chunk's weights dequantised, before the block waits for it; and a chunk of the next group before
// the block meets at the end of this one.
__device__ __forceinline__ void run_product(const DecodeArgs& args, const DecodeStage& stage,
                                            DecodeShared& s, DecodeRing& ring) {
  int group = s.work.first_group(stage);
  if (group >= stage.num_groups) return;
  const int rounds = s.work.num_rounds(stage);
  const int warp = threadIdx.x / 32;
  DecodeItem item = s.work.item(stage, group, 0);
  int turn = 0;
  RowEnd end = row_end(args, stage, s, group, turn);
  int round = 0;
  int begin = item.begin;
  bool complete = false;   // a group's items are done and not yet handed over
  float row_scale = 0.0f;  // of the products: the power of two's inverse
  bool has_row = false;
  float acc[4] = {};
  for (;;) {
    Fragments fragments;
    take_chunk<0>(item, begin, ring, fragments);
    const int units = fragments.units;
    // Short slices of up leave room for those of gate.
    const bool both =
        rounds == 2 && round == 0 && group < stage.num_groups && item.task->slice_units <= 2;
    DecodeItem second;
    if (both) {
      second = s.work.item(stage, group, 1);
      take_chunk<2>(second, second.begin, ring, fragments);
    }
    if (!has_row) {
      row_scale = power_of_two(-make_row(args, stage, s));
      has_row = true;
    }
    if (complete) {
      __syncthreads();
      finish_group(stage, s.parts + s.parts_turn * kGroupParts, row_scale, end);
      s.parts_turn ^= 1;
      if (group >= stage.num_groups) break;
      end = row_end(args, stage, s, group, ++turn);
      complete = false;
    }
    multiply<0>(fragments, units, s.row, begin, acc);
    begin += units;
    if (begin < item.end) continue;
    float* parts = s.parts + s.parts_turn * kGroupParts;
    write_part(parts, round * kRingWarps + warp, acc);
    clear(acc);
    if (both) {
      multiply<2>(fragments, fragments.units, s.row, second.begin, acc);
      write_part(parts, kRingWarps + warp, acc);
      clear(acc);
      round = 1;
    }
    if (++round == rounds) {
      round = 0;
      complete = true;
      group += static_cast<int>(gridDim.x);
    }
    item = group < stage.num_groups ? s.work.item(stage, group, round) : DecodeItem();
    begin = item.begin;
  }
  ring.refill();
}

// The token's row of the embedding and the rotations of its position, each block for itself.
__device__ __forceinline__ void embed(const DecodeArgs& args, int token, DecodeShared& s) {
  if (token < 0) token = __ldcg(args.embed.previous_tokens + ~token);
  token = max(0, min(args.embed.table.rows - 1, token));
  for (int k = threadIdx.x; k < args.width; k += kThreads) {
    s.residual[k] = __fmul_rn(args.embed.scale, packed_value(args.embed.table, token, k));
  }
  const float position = static_cast<float>(s.position);
  if (args.embed.num_ropes > 0) {
    const EmbedArgs::RopeTable& rope = args.embed.ropes[0];
    for (int i = threadIdx.x; i < rope.half; i += kThreads) {
      s.rotations[i] = rotation_of(position, rope.inverse_frequencies[i], rope.magnitude);
    }
  }
}

// kHead: the head size padded to 64, 128 or 256.
template <int kHead>
__global__ void __launch_bounds__(kThreads, 1)
    persistent_decode(const __grid_constant__ DecodeArgs args,
                      const __grid_constant__ DecodeStep step) {
  extern __shared__ __align__(128) std::byte memory[];
  DecodeShared s = DecodeShared::In(memory, args);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 < args.ring_slots) {
    init_barrier(s.barriers + warp * kMaxRingSlots + threadIdx.x % 32);
  }
  if (threadIdx.x == 0) init_barrier(s.table_barrier());
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncthreads();
  s.request_tables(args);
  for (int i = threadIdx.x; i <= step.position / kPageTokens; i += kThreads) {
    s.pages[i] = step.pages[i];
  }
  s.position = step.position;
  wait_phase(s.table_barrier(), 0);
  __syncthreads();
  DecodeRing ring(s.work, s.slots + warp * args.ring_slots * kSlotBytes,
                  s.barriers + warp * kMaxRingSlots, args.ring_slots);
  // So far weights and the program, which no kernel writes.
  wait_for_previous();
  // The handoff set of the next step; nobody uses it now.
  const uint4 nothing = make_uint4(kAbsent, kAbsent, kAbsent, kAbsent);
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < args.handoff_floats / 4;
       i += gridDim.x * kThreads) {
    reinterpret_cast<uint4*>(args.next_handoff)[i] = nothing;
  }
  embed(args, step.token, s);
  __syncthreads();
  for (int i = 0; i < args.num_stages; ++i) {
    const DecodeStage& stage = s.work.stages[i];
    if (stage.kind == DecodeStageKind::kAttention) {
      attend_stage<kHead>(args, stage, s);
    } else {
      // What follows finds no room before blocks end; it need not wait for its launch then.
      if (stage.kind == DecodeStageKind::kHead) let_next_start();
      run_product(args, stage, s, ring);
    }
  }
}

using Kernel = void (*)(DecodeArgs, DecodeStep);
Kernel KernelFor(int head_size) {
  return head_size <= 64    ? persistent_decode<64>
         : head_size <= 128 ? persistent_decode<128>
                            : persistent_decode<256>;
}

}  // namespace

absl::Status LaunchPersistentDecode(const DecodeArgs& args, const DecodeStep& step, int blocks,
                                    size_t shared_bytes, cudaStream_t stream) {
  // All blocks wait for each other: every one has a multiprocessor of its own, and no other kernel
  // of this kind shares the device (engine/load_model.cc).
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(blocks)),
                             .block = dim3(kThreads),
                             .shared_bytes = shared_bytes};
  return ToStatus(Launch(stream, shape, KernelFor(args.head_size), args, step),
                  "persistent_decode");
}

absl::Status PreparePersistentDecode(int head_size, size_t shared_bytes) {
  return ToStatus(
      cudaFuncSetAttribute(KernelFor(head_size), cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(shared_bytes)),
      "persistent_decode");
}

}  // namespace sluice::kernels::cuda
