// persistent_decode: the whole forward pass of one token (decode_program.h). Grid: one block of 384
// threads on every multiprocessor; up to 227 KB of shared memory, most of it the
// rings of weights. Reads every weight once, at most a few vectors of f32 through L2 a stage.
// Figures: docs/performance.md.

#include "kernels/cuda/decode_attention.cuh"
#include "kernels/cuda/decode_merge.cuh"
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

// The threads that compute, and the warps that fill their rings.
constexpr int kThreads = kRowThreads;
constexpr int kBlockThreads = kThreads + 32 * kFillWarps;

// acc += the product of a chunk's units with the row's.
__device__ __forceinline__ void multiply(const std::byte* chunk, int units, const uint4* row,
                                         float (&acc)[4]) {
  const int lane = threadIdx.x % 32;
  const uint4 zero = make_uint4(0, 0, 0, 0);
  UnitHalf weights[kChunkUnits];
  uint4 low[kChunkUnits], high[kChunkUnits];
#pragma unroll
  for (int i = 0; i < kChunkUnits; ++i) {
    if (i >= units) break;
    weights[i].take<SharedWords>(chunk + i * UnitHalf::kBytes, nullptr, nullptr, lane);
    // Only column 0 of the eight is a token: the four lanes that hold it.
    low[i] = lane < 4 ? row[i * 8 + lane] : zero;
    high[i] = lane < 4 ? row[i * 8 + 4 + lane] : zero;
  }
#pragma unroll
  for (int i = 0; i < kChunkUnits; ++i) {
    if (i >= units) break;
    uint32_t a[4][4];
    weights[i].fragment<0>(lane, a[0]);
    weights[i].fragment<1>(lane, a[1]);
    weights[i].fragment<2>(lane, a[2]);
    weights[i].fragment<3>(lane, a[3]);
    mma_step(acc, a[0], low[i].x, low[i].y);
    mma_step(acc, a[1], low[i].z, low[i].w);
    mma_step(acc, a[2], high[i].x, high[i].y);
    mma_step(acc, a[3], high[i].z, high[i].w);
  }
}

// The sums of one item, to parts [16].
__device__ __forceinline__ void run_item(const DecodeItem& item, const uint4* row, DecodeRing& ring,
                                         float* parts) {
  float acc[4] = {};
#pragma unroll 1
  for (int begin = item.begin; begin < item.end; begin += kChunkUnits) {
    multiply(ring.chunk(), min(kChunkUnits, item.end - begin), row + begin * 8, acc);
    ring.release();
  }
  const int lane = threadIdx.x % 32;
  if (lane % 4 != 0) return;
  parts[lane / 4] = acc[0];
  parts[lane / 4 + 8] = acc[2];
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
  const float* before = nullptr;  // what the outcome is added to
  float before_value = 0.0f;      // kAbsent when it was not there yet
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
    end.before = (stage.residual < 0 ? s.residual : args.handoff + stage.residual) + n;
    end.before_value = __uint_as_float(look(end.before));
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
    const bool absent = __float_as_uint(end.before_value) == kAbsent;
    sum = __fadd_rn(absent ? take(end.before) : end.before_value, __fmul_rn(stage.scale, sum));
  }
  hand_over(end.out, sum);
}

// Makes operands of the item's weights, and of others as long as the row is not there.
__device__ __forceinline__ void prepare(const DecodeArgs& args, const DecodeStage& stage,
                                        const DecodeItem& item, DecodeRing& ring) {
  const float* last = args.handoff + stage.in + stage.cols - 1;
  uint32_t there = stage.in < 0 ? 0 : look(last);
  ring.prepare((item.end - item.begin + kChunkUnits - 1) / kChunkUnits);
  while (__shfl_sync(~0u, there, 0) == kAbsent && ring.can_prepare()) {
    there = look(last);
    ring.prepare_one();
  }
}

// The products of one stage. Whatever does not depend on the row is asked for, and the weights that
// are there made operands, before the block waits for it.
__device__ __forceinline__ void run_product(const DecodeArgs& args, const DecodeStage& stage,
                                            DecodeShared& s, DecodeRing& ring) {
  int group = s.work.first_group(stage);
  if (group >= stage.num_groups) return;
  const int rounds = s.work.num_rounds(stage);
  const int warp = threadIdx.x / 32;
  RowEnd end = row_end(args, stage, s, group, 0);
  DecodeItem item = s.work.item(stage, group, 0, warp);
  request_norm(stage, s);
  prepare(args, stage, item, ring);
  const float row_scale = power_of_two(-make_row(args, stage, s));  // of the products
#pragma unroll 1
  for (int turn = 0;;) {
    float* parts = s.parts + s.parts_turn * kGroupParts;
    s.parts_turn ^= 1;
#pragma unroll 1
    for (int round = 0;;) {
      run_item(item, s.row, ring, parts + (round * kRingWarps + warp) * kTileRows);
      if (++round == rounds) break;
      item = s.work.item(stage, group, round, warp);
    }
    meet_rows();
    finish_group(stage, parts, row_scale, end);
    group += static_cast<int>(gridDim.x);
    if (group >= stage.num_groups) break;
    item = s.work.item(stage, group, 0, warp);
    end = row_end(args, stage, s, group, ++turn);
  }
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
__global__ void __launch_bounds__(kBlockThreads, 1)
    persistent_decode(const __grid_constant__ DecodeArgs args,
                      const __grid_constant__ DecodeStep step) {
  extern __shared__ __align__(128) std::byte memory[];
  DecodeShared s = DecodeShared::In(memory, args);
  const int warp = threadIdx.x / 32;
  for (int i = threadIdx.x; i < kNumBarriers; i += kBlockThreads) init_barrier(s.barriers + i);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncthreads();
  s.request_tables(args);
  for (int i = threadIdx.x; i <= step.position / kPageTokens; i += kBlockThreads) {
    s.pages[i] = step.pages[i];
  }
  s.position = step.position;
  wait_phase(s.table_barrier(), 0);
  __syncthreads();
  if (warp >= kRingWarps) {
    fill_rings(s.work, warp - kRingWarps, [&](int ring) { return s.ring_of(args, ring); });
    return;
  }
  DecodeRing ring(s.ring_of(args, warp));
  // So far weights and the program, which no kernel writes.
  wait_for_previous();
  // The handoff set of the next step; nobody uses it now.
  const uint4 nothing = make_uint4(kAbsent, kAbsent, kAbsent, kAbsent);
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < args.handoff_floats / 4;
       i += gridDim.x * kThreads) {
    reinterpret_cast<uint4*>(args.next_handoff)[i] = nothing;
  }
  embed(args, step.token, s);
  meet_rows();
#pragma unroll 1
  for (int i = 0; i < args.num_stages; ++i) {
    const DecodeStage& stage = s.work.stages[i];
    if (stage.kind == DecodeStageKind::kAttention) {
      attend_stage<kHead>(args, stage, s);
    } else if (stage.kind == DecodeStageKind::kMerge) {
      merge_stage(args, stage, s);
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
                             .block = dim3(kBlockThreads),
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
