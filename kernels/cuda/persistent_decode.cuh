#pragma once

// persistent_decode: the whole forward pass of one token (decode_program.h). Grid: one block on
// every multiprocessor, of the warps of its form and those that fill their rings; up to 227 KB of
// shared memory, most of it those rings. Reads every weight once, at most a few vectors of f32
// through L2 a stage. Compiled for each form by itself. Figures: docs/performance.md.

#include "kernels/cuda/decode_attention.cuh"
#include "kernels/cuda/decode_items.cuh"
#include "kernels/cuda/decode_merge.cuh"
#include "kernels/cuda/decode_program.h"
#include "kernels/cuda/decode_ring.cuh"
#include "kernels/cuda/decode_row.cuh"
#include "kernels/cuda/decode_shared.cuh"
#include "kernels/cuda/device.h"
#include "kernels/cuda/handoff.cuh"
#include "kernels/cuda/head_rows.cuh"
#include "kernels/cuda/packed_value.cuh"
#include "kernels/cuda/row_sources.cuh"

namespace sluice::kernels::cuda {

using DecodeKernel = void (*)(DecodeArgs, DecodeStep);
// The kernel for heads of so many values.
DecodeKernel PreparedDecodeKernel(int head_size);
DecodeKernel DirectDecodeKernel(int head_size);

namespace {

constexpr int block_threads(DecodeForm form) { return 32 * form.all_warps(); }
// Registers of each thread as a block of a form is launched.
constexpr int launch_registers(DecodeForm form) { return 65536 / block_threads(form) / 8 * 8; }
// Whether a form shares those out among whole warpgroups, as setmaxnreg would have it.
constexpr bool shares_registers_out(DecodeForm form) {
  const int launched = launch_registers(form);
  return form.warps() % 4 == 0 && form.fill_warps % 4 == 0 && form.registers % 8 == 0 &&
         form.fill_registers % 8 == 0 && 24 <= form.fill_registers &&
         form.fill_registers <= launched && launched <= form.registers && form.registers <= 256 &&
         form.warps() * form.registers + form.fill_warps * form.fill_registers <=
             form.all_warps() * launched;
}
static_assert(shares_registers_out(kPreparedForm) && shares_registers_out(kDirectForm));

// Changes how many registers the threads of a warpgroup have; all of them.
template <int kCount>
__device__ __forceinline__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Barriers of the threads that multiply: of all, and of one team.
template <DecodeForm kForm>
__device__ __forceinline__ void meet_all() {
  static_assert(kForm.warps() * 32 >= kRowThreads);
  if constexpr (kForm.warps() * 32 == kRowThreads) {
    meet_rows();
  } else {
    asm volatile("bar.sync 2, %0;" ::"n"(kForm.warps() * 32) : "memory");
  }
}
template <DecodeForm kForm>
__device__ __forceinline__ void meet_team(int team) {
  if constexpr (kForm.teams == 1) {
    meet_all<kForm>();
  } else {
    asm volatile("bar.sync %0, %1;" ::"r"(3 + team), "n"(kForm.team_threads()) : "memory");
  }
}

// Threads beside those that work on a row have as many barriers of their own. Nothing needs them
// but compute-sanitizer: its racecheck reported values that went from threads which had come to
// more barriers to ones which had come to fewer, whatever barrier lay in between, and reports none
// now.
template <DecodeForm kForm>
__device__ __forceinline__ void meet_beside(int times) {
  constexpr int kBeside = kForm.warps() * 32 - kRowThreads;
  static_assert(kBeside > 0);
  for (int i = 0; i < times; ++i) asm volatile("bar.sync 6, %0;" ::"n"(kBeside) : "memory");
}

// Asks for the biases of a group, which lie in no cache yet, where RowEnd comes after the products.
template <DecodeForm kForm>
__device__ __forceinline__ void request_biases(const DecodeStage& stage,
                                               const TeamWork<kForm>& work, int group) {
  if (threadIdx.x % kForm.team_threads() != 0) return;
  const DecodeTask* task = work.task_of(stage, group);
  if (task->bias == nullptr) return;
  const DecodeShape& shape = work.shape(*task);
  const int tiles_log2 = work.items_log2(stage, shape) - shape.slices_log2;
  const float* from = task->bias + ((group - shape.first_group) * kTileRows << tiles_log2);
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

// What the thread that finishes a row of a group needs besides its sums, asked for ahead.
struct RowEnd {
  int row = -1;       // in the group's tiles; -1: the thread has none
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
template <DecodeForm kForm>
__device__ __forceinline__ RowEnd row_end(const DecodeArgs& args, const DecodeStage& stage,
                                          const TeamWork<kForm>& work, int group, int turn) {
  RowEnd end;
  const DecodeTask* task = work.task_of(stage, group);
  const bool pair = stage.kind == DecodeStageKind::kGateUp;
  const DecodeShape& shape = work.shape(*task);
  const int items_log2 = work.items_log2(stage, shape);
  const int tiles_log2 = items_log2 - shape.slices_log2;
  const int row = (static_cast<int>(threadIdx.x) + 32 * turn) % kForm.team_threads();
  if (row >= kTileRows << tiles_log2) return end;
  const int n = ((group - shape.first_group) * kTileRows << tiles_log2) + row;
  if (n >= shape.rows) return end;
  end.row = row;
  end.part = (row / kTileRows << shape.slices_log2) * kTileRows + row % kTileRows;
  end.gate_part = end.part + (kTileRows << items_log2);
  end.num_slices = shape.num_slices;
  end.out = stage.kind == DecodeStageKind::kHead ? args.logits + n : args.handoff + task->out + n;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    if (m == 1 && !pair) break;
    const uint32_t factors_at = work.shape(task[m]).row_factors_at;
    end.has_factors[m] = factors_at != 0;
    end.has_biases[m] = task[m].bias != nullptr;
    if (end.has_factors[m]) {
      end.factors[m] = __ldg(reinterpret_cast<const float*>(task[m].units + factors_at) + n);
    }
    if (end.has_biases[m]) end.biases[m] = __ldg(task[m].bias + n);
  }
  if (stage.kind == DecodeStageKind::kOutput || stage.kind == DecodeStageKind::kDown) {
    end.before = args.handoff + stage.residual + n;
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

// What finishing a group needs of its stage, in registers.
struct StageEnd {
  DecodeStageKind kind;
  GateActivation activation;
  float scale;
};

__device__ __forceinline__ float gated(GateActivation activation, float gate, float up) {
  const float value =
      activation == GateActivation::kGeluTanh ? gelu_tanh_f32(gate) : silu_f32(gate);
  return __fmul_rn(value, up);
}

// Hands the outcome of one group over.
__device__ __forceinline__ void finish_group(const StageEnd& stage, const float* parts,
                                             float row_scale, const RowEnd& end) {
  if (end.row < 0) return;
  if (stage.kind == DecodeStageKind::kGateUp) {
    const float up = finished(parts + end.part, end, 0, row_scale);
    const float gate = finished(parts + end.gate_part, end, 1, row_scale);
    hand_over(end.out, gated(stage.activation, gate, up));
    return;
  }
  float sum = finished(parts + end.part, end, 0, row_scale);
  if (stage.kind == DecodeStageKind::kHead) {
    *end.out = sum;
    return;
  }
  if (stage.kind != DecodeStageKind::kQkv) {
    const bool absent = __float_as_uint(end.before_value) == kAbsent;
    sum = __fadd_rn(absent ? take(end.before) : end.before_value, __fmul_rn(stage.scale, sum));
  }
  hand_over(end.out, sum);
}

// The row of a stage without a norm, each thread's columns in registers, for kDirectForm: whoever
// takes them keeps no order. All threads that multiply.
template <DecodeForm kForm>
__device__ __noinline__ int make_plain_row(const float* vector, int num_cols, uint4* row,
                                           float* maxima) {
  constexpr int kStep = 4 * 32 * kForm.warps();
  constexpr int kQuads = kForm.row_quads();
  const float* from = vector + 4 * threadIdx.x;
  const int cols = num_cols - 4 * static_cast<int>(threadIdx.x);  // from the thread's first on
  uint4 bits[kQuads];
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const uint32_t word = i * kStep < cols ? kAbsent : 0;
    bits[i] = make_uint4(word, word, word, word);
  }
  const long long begin = clock64();
  for (bool missing = true; missing; give_up_after(begin)) {
    missing = false;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      if (absent(bits[i])) bits[i] = look_quad(from + i * kStep);
    }
#pragma unroll
    for (int i = 0; i < kQuads; ++i) missing = missing || absent(bits[i]);
  }
  float most = 0.0f;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const float4 value = as_floats(bits[i]);
    most = fmaxf(fmaxf(fmaxf(fmaxf(most, fabsf(value.x)), fabsf(value.y)), fabsf(value.z)),
                 fabsf(value.w));
  }
  const uint32_t most_bits = __reduce_max_sync(~0u, __float_as_uint(most));
  if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = __uint_as_float(most_bits);
  meet_all<kForm>();
  most = maxima[0];
#pragma unroll
  for (int i = 1; i < kForm.warps(); ++i) most = fmaxf(most, maxima[i]);
  const int shift = shift_of(most);
  const float scale = power_of_two(shift);
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    if (i * kStep >= cols) continue;
    write_words(row, i * kStep + 4 * static_cast<int>(threadIdx.x), as_floats(bits[i]), scale);
  }
  clear_tail(num_cols, row);
  return shift;
}

// The products of one stage. Whatever does not depend on the row is asked for before the block
// waits for it.
template <DecodeForm kForm>
__device__ __forceinline__ void run_product(const DecodeArgs& args, const DecodeStage& stage,
                                            DecodeShared& s, const TeamWork<kForm>& work,
                                            DecodeRing<kForm>& ring, HeldChunk& held) {
  constexpr int kGroupParts = kMaxGroupItems * kTileRows;
  int least = work.least_group(stage);
  const int num_groups = stage.num_groups;
  if (least >= num_groups) return;
  const StageEnd stage_end = {stage.kind, stage.activation, stage.scale};
  const int warp = static_cast<int>(threadIdx.x) / 32 % TeamWork<kForm>::kWarps;
  const int team = kForm.teams == 1 ? 0 : static_cast<int>(threadIdx.x) / kForm.team_threads();
  int group = work.first_group(stage, team);
  RowEnd end;
  DecodeItem item;
  int rounds = 0;
  const auto begin_group = [&](int turn) {
    if (group >= num_groups) return;
    // Groups of matrices of one shape differ in their rows only, but for the last.
    if (!kForm.prepares || turn == 0 || stage_end.kind == DecodeStageKind::kQkv ||
        group + 1 == num_groups) {
      rounds = work.num_rounds(stage, group);
      item = work.item(stage, group, 0, warp);
    }
    if constexpr (kForm.prepares) {
      end = row_end(args, stage, work, group, turn);
    } else {
      request_biases(stage, work, group);
    }
  };
  begin_group(0);
  if constexpr (kForm.prepares) hold_next(ring, held);
  int shift = 0;
  if (!kForm.prepares && stage.norm_weight == nullptr && stage.cols <= kForm.most_row_cols()) {
    shift = make_plain_row<kForm>(args.handoff + stage.in, stage.cols, s.row(), s.maxima());
  } else if (threadIdx.x < kRowThreads) {
    shift = make_row<kForm>(args, stage, s);
  } else if constexpr (!kForm.prepares) {
    meet_beside<kForm>(1);
  }
  if (!kForm.prepares && threadIdx.x == 0) *s.shift() = shift;
  meet_all<kForm>();
  if (!kForm.prepares) shift = *s.shift();
  const float row_scale = power_of_two(-shift);  // of the products
#pragma unroll 1
  for (int turn = 0; least < num_groups; least += work.stride()) {
    float* parts = s.parts() + (2 * team + s.parts_turn) * kGroupParts;
    s.parts_turn ^= 1;
    const int next = group + work.stride();
    if constexpr (kForm.prepares) {
      run_prepared_items(item, rounds, next < num_groups, s, ring, held, parts + warp * kTileRows);
    } else {
      const bool has_group = group < num_groups;  // teams without one meet, too (meet_beside)
#pragma unroll 1
      for (int round = 0; has_group;) {
        run_direct_item(item, s, ring,
                        parts + (round * TeamWork<kForm>::kWarps + warp) * kTileRows);
        if (++round == rounds) break;
        item = work.item(stage, group, round, warp);
      }
      // Where registers are few not before the products.
      end.row = -1;
      if (has_group) end = row_end(args, stage, work, group, turn);
    }
    meet_team<kForm>(team);
    finish_group(stage_end, parts, row_scale, end);
    if constexpr (kForm.prepares) hold_next(ring, held);
    group = next;
    begin_group(++turn);
  }
  // Others of the block may still multiply by the row, where attention puts what it works on.
  if constexpr (kForm.teams > 1) meet_all<kForm>();
}

// The token's row of the embedding, each block its share, and the rotations of its position.
__device__ __forceinline__ void embed(const DecodeArgs& args, int token, DecodeShared& s) {
  if (token < 0) token = __ldcg(args.embed.previous_tokens + ~token);
  token = max(0, min(args.embed.table.rows - 1, token));
  for (int k = blockIdx.x * kRowThreads + threadIdx.x; k < args.width;
       k += gridDim.x * kRowThreads) {
    hand_over(args.handoff + args.embedding + k,
              __fmul_rn(args.embed.scale, packed_value(args.embed.table, token, k)));
  }
  const float position = static_cast<float>(s.position);
  if (args.embed.num_ropes > 0) {
    const EmbedArgs::RopeTable& rope = args.embed.ropes[0];
    for (int i = threadIdx.x; i < rope.half; i += kRowThreads) {
      s.rotations()[i] = rotation_of(position, rope.inverse_frequencies[i], rope.magnitude);
    }
  }
}

// One of the warps that fill the rings of those that multiply.
template <DecodeForm kForm>
__device__ __forceinline__ void fill_rings(const DecodeArgs& args, const DecodeShared& s,
                                           const TeamWork<kForm>& work, int fill_warp) {
  if constexpr (kForm.prepares) {
    static_assert(kForm.fill_warps == kForm.warps());
    serve_ring(work, fill_warp, s.ring_of(args, fill_warp), args.has_quants);
  } else {
    static_assert(kForm.warps() % kForm.fill_warps == 0);
    constexpr int kEach = kForm.warps() / kForm.fill_warps;
    const int lane = threadIdx.x % 32;
    if (lane >= kEach) return;
    const int warp = fill_warp * kEach + lane;
    const int number = static_cast<int>(blockIdx.x) * kForm.warps() + warp;
    ChunkList chunks(args.chunks + static_cast<int64_t>(number) * args.chunks_each);
    keep_full<kEach>(chunks, s.ring_of(args, warp));
  }
}

// kHead: the head size padded to 64, 128 or 256.
template <int kHead, int kFormIndex>
__global__ void __launch_bounds__(block_threads(kForms[kFormIndex]), 1)
    persistent_decode(const __grid_constant__ DecodeArgs args,
                      const __grid_constant__ DecodeStep step) {
  constexpr DecodeForm kForm = kForms[kFormIndex];
  extern __shared__ __align__(128) std::byte memory[];
  DecodeShared s(memory, args);
  const TeamWork<kForm> work = {s.work(args.tables)};
  const int warp = threadIdx.x / 32;
  for (int i = threadIdx.x; i <= kForm.ring_barriers(); i += blockDim.x) {
    init_barrier(s.barriers() + i, s.arrivals(args, i));
  }
  if (threadIdx.x < 8) s.zeros()[threadIdx.x] = make_uint4(0, 0, 0, 0);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncthreads();
  s.request_tables(args.tables);
  s.pages = step.pages;
  s.position = step.position;
  wait_phase(s.table_barrier(), 0);
  __syncthreads();
  if (warp >= kForm.warps()) {
    keep_registers<kForm.fill_registers>();
    fill_rings(args, s, work, warp - kForm.warps());
    return;
  }
  take_registers<kForm.registers>();
  DecodeRing<kForm> ring(s.ring_of(args, warp), memory);
  HeldChunk held;
  // So far weights and the program, which no kernel writes.
  wait_for_previous();
  const bool makes_rows = threadIdx.x < kRowThreads;
  if (makes_rows) {
    // The handoff set of the next step; nobody uses it now.
    const uint4 nothing = make_uint4(kAbsent, kAbsent, kAbsent, kAbsent);
    for (int i = blockIdx.x * kRowThreads + threadIdx.x; i < args.handoff_floats / 4;
         i += gridDim.x * kRowThreads) {
      reinterpret_cast<uint4*>(args.next_handoff)[i] = nothing;
    }
    embed(args, step.token, s);
    meet_rows();
  } else if constexpr (!kForm.prepares) {
    meet_beside<kForm>(1);
  }
#pragma unroll 1
  for (int i = 0; i < args.tables.num_stages; ++i) {
    const DecodeStage& stage = work.stages[i];
    if (stage.kind == DecodeStageKind::kAttention) {
      if (makes_rows) {
        attend_stage<kHead>(args, stage, s);
      } else if constexpr (!kForm.prepares) {
        meet_beside<kForm>(meetings_of_attention(args, stage, s));
      }
    } else if (stage.kind == DecodeStageKind::kMerge) {
      if (makes_rows) {
        merge_stage(args, stage, s);
      } else if constexpr (!kForm.prepares) {
        meet_beside<kForm>(meetings_of_merging(args, stage));
      }
    } else {
      // What follows finds no room before blocks end; it need not wait for its launch then.
      if (stage.kind == DecodeStageKind::kHead) let_next_start();
      run_product(args, stage, s, work, ring, held);
    }
  }
}

template <int kFormIndex>
DecodeKernel DecodeKernelOf(int head_size) {
  return head_size <= 64    ? persistent_decode<64, kFormIndex>
         : head_size <= 128 ? persistent_decode<128, kFormIndex>
                            : persistent_decode<256, kFormIndex>;
}

}  // namespace
}  // namespace sluice::kernels::cuda
