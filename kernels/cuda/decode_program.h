#pragma once

// The forward pass of one token as one kernel: a program of stages that every block of a persistent
// grid runs through, recorded from the ops like a CUDA graph. A step of one token is a chain of
// dependent products so small that starting kernels and meeting at barriers takes longer than
// reading the weights; here blocks meet through the values they hand over (handoff.cuh), and the
// weights of later stages are on their way all the while (decode_ring.cuh).
//
// The embedding [E] is handed over at first. Stages of a layer, with what a block waits for and
// hands over:
//   qkv        residual [E]            -> q, k, v [(H + 2 G) D]
//   attention  q, k, v of one KV head  -> parts [H][parts][4 + D]; stores K and V
//   merge      parts of one head       -> its outcome [D]
//   output     [H D]                   -> residual [E]
//   gate, up   residual [E]            -> act(gate) * up [F]
//   down       [F]                     -> residual [E]
// and at the end the head, logits [V]. The arithmetic is that of the ops' own kernels, bit by bit.

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"

#include "kernels/core/buffer.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/packed_weight.h"
#include "kernels/cuda/rows.h"
#include "kernels/ops.h"

namespace sluice::kernels::cuda {

// What matrices of several layers have in common.
struct alignas(8) DecodeShape {
  uint32_t row_factors_at = 0;  // bytes from the units on; 0 where there are none
  int32_t rows = 0;
  int32_t tiles = 0;
  int32_t units = 0;
  int32_t slice_units = 0;
  int32_t first_group = 0;  // of the stage's groups of work
  DType type = DType::kF32;
  uint8_t slices_log2 = 0;
  uint8_t num_slices = 0;   // that have units
  uint8_t chunk_units = 0;  // that one request brings at most
  uint8_t super_bytes = 0;
  uint16_t unit_bytes = 0;  // of one tile and unit

  bool operator==(const DecodeShape&) const = default;
};

// A copy of a chunk of weights to a slot of a ring.
struct alignas(16) ChunkCopy {
  const std::byte* from = nullptr;
  uint32_t bytes = 0;      // 0: the warp needs no more
  uint32_t supers_at = 0;  // bytes to the super words of a block that goes on behind it; 0: none
};

// One matrix of a stage.
struct alignas(8) DecodeTask {
  const std::byte* units = nullptr;
  const float* bias = nullptr;
  int32_t out = 0;  // where its outcome begins, floats into the handoff set or the logits
  int32_t shape = 0;
};

enum class DecodeStageKind : uint8_t { kQkv, kAttention, kMerge, kOutput, kGateUp, kDown, kHead };

inline constexpr int kMaxRingSlots = 8;  // of a warp

// How the warps of a block share its work. A team of them takes groups of work each for itself.
struct DecodeForm {
  int32_t teams = 1;
  int32_t team_log2 = 3;   // of its warps
  int32_t fill_warps = 4;  // beside those that multiply: they bring the weights of all
  // Whether those also make quants operands, in shared memory, each for one warp that multiplies;
  // or quants become operands in registers when they are multiplied.
  bool prepares = false;
  // Of a thread of each kind once the kernel runs (PTX ISA, setmaxnreg), together no more than it
  // was launched with, which all have alike.
  int32_t registers = 0;
  int32_t fill_registers = 0;

  __host__ __device__ constexpr int32_t warps() const { return teams << team_log2; }
  __host__ __device__ constexpr int32_t all_warps() const { return warps() + fill_warps; }
  __host__ __device__ constexpr int32_t team_threads() const { return 32 << team_log2; }
  // Of all rings: a slot can be multiplied by, is free, and where quants are made operands in it,
  // holds what a copy brought.
  __host__ __device__ constexpr int32_t ring_barriers() const {
    return (prepares ? 3 : 2) * warps() * kMaxRingSlots;
  }
  // Where quants are multiplied as they are: quads of columns that a thread of all warps keeps in
  // registers of a row without a norm, and how many columns that makes at most.
  __host__ __device__ constexpr int32_t row_quads() const { return (160 + warps() - 1) / warps(); }
  __host__ __device__ constexpr int32_t most_row_cols() const {
    return prepares ? 0 : row_quads() * 4 * 32 * warps();
  }
};
// (tile, slice) pairs of a group, at most: gate and up of eight slices each.
inline constexpr int32_t kMaxGroupItems = 16;
// For models whose stages wait for each other, and for those whose quants are most of the work.
inline constexpr DecodeForm kPreparedForm = {1, 3, 8, true, 168, 88};
inline constexpr DecodeForm kDirectForm = {3, 2, 4, false, 152, 40};
inline constexpr DecodeForm kForms[] = {kPreparedForm, kDirectForm};

// Work of products comes in groups: what the warps of a team do between two barriers, a warp a
// (tile, slice), in several rounds where slices are more than warps. A group of W warps has
// W / slices tiles of one matrix, or W / 2 / slices of both gate and up, at least one.
struct alignas(8) DecodeStage {
  DecodeStageKind kind = DecodeStageKind::kQkv;
  uint8_t num_tasks = 0;
  GateActivation activation = GateActivation::kSilu;
  int32_t first_task = 0;  // of attention: its entry of DecodeProgram's caches
  int32_t num_groups = 0;
  // That group 0 falls to, the others in turn: block b's team t counts as t * blocks + b. Of
  // attention and merging: blocks.
  int32_t first_team = 0;
  int32_t in = 0;        // floats into the handoff set
  int32_t residual = 0;  // what the outcome is added to, as `in`
  int32_t cols = 0;
  float scale = 1.0f;    // of what is added to the residual
  float epsilon = 0.0f;  // of the norm in front
  // Attention and its merging.
  int32_t out = 0;  // of parts, or of what they are merged to
  int32_t window = 0;
  const float* norm_weight = nullptr;  // [cols]
};

// A layer's KV cache and the RMS norms of its heads, null where there are none.
struct alignas(8) DecodeCache {
  const std::byte* keys = nullptr;  // pages
  const std::byte* values = nullptr;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float q_epsilon = 0.0f;
  float k_epsilon = 0.0f;
};

// In front of a part's weighted values: their maximum, their sum, two zeros.
inline constexpr int kPartHeader = 4;
// Beyond so many parts the merging of attention would be what a step waits for.
inline constexpr int kMaxDecodeParts = 32;
inline constexpr int kSplitTilesLog2 = 2;
static_assert(kSplitKeys == kTileKeys << kSplitTilesLog2);
inline constexpr int kMaxDecodeHeadSize = 256;
inline constexpr int kMaxDecodePages = kMaxDecodeParts * kSplitKeys / kPageTokens;

// The one token of a step; travels as an argument of the kernel, so that a step copies nothing.
struct DecodeStep {
  int32_t token = 0;  // negative: ~token indexes the previous step's tokens
  int32_t position = 0;
  int32_t pages[kMaxDecodePages];  // of positions up to its own
};

struct DecodeArgs;
// Byte offsets of a block's arrays in shared memory (decode_shared.cuh). A pure function.
struct DecodeLayout {
  int32_t tables = 0, row = 0, values = 0, norm = 0, rotations = 0, parts = 0, reduce = 0,
          zeros = 0, barriers = 0, contents = 0, slots = 0, bytes = 0;
  static DecodeLayout Of(const DecodeArgs& args);
};

// The program's tables, one after another.
struct DecodeTables {
  const std::byte* at = nullptr;
  int32_t num_stages = 0;
  // Bytes from `at` on: after the stages tasks, shapes and caches, then the end, a multiple of 16.
  int32_t tasks_at = 0, shapes_at = 0, caches_at = 0, bytes = 0;
};

struct DecodeArgs {
  DecodeTables tables;
  // Where quants are multiplied as they are: [blocks * warps][chunks_each] copies in the order in
  // which a warp needs them.
  const ChunkCopy* chunks = nullptr;
  int32_t chunks_each = 0;
  EmbedArgs embed;
  // The model.
  int32_t width = 0;      // E
  int32_t max_cols = 0;   // longest row that a product reads
  int32_t kept_cols = 0;  // most columns whose f32 values a block holds at once
  int32_t num_heads = 0;  // H
  int32_t num_kv_heads = 0;
  int32_t heads_each = 1;  // H / G
  int32_t head_size = 0;
  RopeStyle style = RopeStyle::kHalfSplit;
  float attention_scale = 1.0f;
  float softcap = 0.0f;
  // The step.
  float* logits = nullptr;        // [V]
  float* handoff = nullptr;       // of this step, kAbsent throughout
  float* next_handoff = nullptr;  // of the next, made kAbsent
  int32_t handoff_floats = 0;
  int32_t embedding = 0;  // of the token, floats into the handoff set
  int32_t num_parts = 0;  // of attention, at this step's position
  int32_t part_log2 = 0;  // log2 of the tiles of 64 keys in one part: 0, or 2, a whole split
  // The launch.
  DecodeForm form;
  int32_t ring_slots = 0;  // of each warp
  int32_t slot_bytes = 0;
  bool has_quants = false;  // that are made operands in slots
  DecodeLayout layout;
};

// Of rows that a thread's registers do not hold (decode_row.cuh), those of at most so many columns
// are kept in f32 until their power of two is known; longer ones are taken twice, in pieces.
inline constexpr int kMaxKeptCols = 8192;

// One of the rings' slots, a chunk of weights (decode_ring.cuh), where quants are made operands.
inline constexpr int kPreparedSlotBytes = 4096;
inline constexpr int kPreparedUnits = 2;
// Where quants are multiplied as they are: units that a warp has in registers at once.
__host__ __device__ constexpr int UnitsAtOnce(int unit_bytes, bool supers) {
  return supers ? kBlockUnits : unit_bytes > 896 ? 1 : 2880 / unit_bytes;
}
// Units of a chunk from `first` on are [first, ChunkEnd); of types with super words it ends with a
// half of a block of 256, or with the item, so that few units are taken one by one.
__host__ __device__ constexpr int32_t ChunkEnd(int32_t first, int32_t end, int32_t chunk_units,
                                               bool supers) {
  const int32_t most = first + chunk_units;
  const int32_t next = supers ? most / 2 * 2 : most;
  return next < end ? next : end;
}
// Bytes of the largest such chunk, with the super words of every block that it lies in. It begins
// with a half of a block, or is a unit shorter.
__host__ __device__ constexpr int32_t ChunkBytes(int32_t units, int32_t unit_bytes,
                                                 int32_t super_bytes) {
  return units * unit_bytes + (units + 2 + kBlockUnits - 1) / kBlockUnits * super_bytes;
}

// Scratch of attention, for heads padded to 64, 128 or 256 values: DecodeAttention of
// decode_attention.cuh, which asserts it.
__host__ __device__ constexpr int32_t DecodeAttentionBytes(int32_t head_size) {
  const int32_t head = head_size <= 64 ? 64 : head_size <= 128 ? 128 : 256;
  return head * (64 + 128 + 128 + 8) + 512 + 192 + 1024 + 6656;
}
// Behind it, floats: queries of one KV head, or a tile's part, and what parts are merged to.
__host__ __device__ constexpr int32_t DecodeHeadFloats(int32_t head_size, int32_t ratio) {
  return (ratio * (head_size + 2) + 3) / 4 * 4;
}

inline DecodeLayout DecodeLayout::Of(const DecodeArgs& args) {
  DecodeLayout layout;
  const auto take = [&](int32_t bytes) {
    const int32_t at = layout.bytes;
    layout.bytes += (bytes + 127) / 128 * 128;
    return at;
  };
  const auto padded = [](int32_t cols) { return (cols + kUnitCols - 1) / kUnitCols * kUnitCols; };
  layout.tables = take(args.tables.bytes);
  const int32_t row = padded(args.max_cols) * 2;
  const int32_t row_bytes = (row + 127) / 128 * 128;
  const int32_t values_bytes = padded(args.kept_cols) * 4;
  // Where only rows with a norm, of E columns, need values and norm, these lie behind so short a
  // row: a longer one lies over them.
  const bool normed = args.max_cols <= args.form.most_row_cols();
  const int32_t before = normed ? (padded(args.width) * 2 + 127) / 128 * 128 : row_bytes;
  const int32_t all = before + values_bytes + padded(args.width) * 4;
  const int32_t both = all > row_bytes ? all : row_bytes;
  const int32_t attention = DecodeAttentionBytes(args.head_size) +
                            2 * 4 * DecodeHeadFloats(args.head_size, args.heads_each);
  layout.row = take(both > attention ? both : attention);
  layout.values = layout.row + before;
  layout.norm = layout.values + values_bytes;
  layout.rotations = take(args.head_size / 2 * 8);
  const int32_t warps = args.form.warps();
  layout.parts = take(2 * args.form.teams * kMaxGroupItems * kTileRows * 4);
  layout.reduce = take((2 * 16 + 32 + 1) * 4);
  layout.zeros = take(128);
  layout.barriers = take((args.form.ring_barriers() + 1) * 8);
  layout.contents = take(args.form.prepares ? warps * kMaxRingSlots : 0);
  layout.slots = take(warps * args.ring_slots * args.slot_bytes);
  return layout;
}

// Writes the lists of args.chunks. Or only counts, where `most` is not null: raises it, on the
// device, to the length of the longest, with two entries without bytes at its end. Asynchronous.
absl::Status ListChunks(const DecodeArgs& args, int blocks, int32_t* most, cudaStream_t stream);
absl::Status PreparePersistentDecode(const DecodeArgs& args, size_t shared_bytes);
absl::Status LaunchPersistentDecode(const DecodeArgs& args, const DecodeStep& step, int blocks,
                                    size_t shared_bytes, cudaStream_t stream);

// A recorded program on a device, made by DecodeRecorder. Engine thread only.
class DecodeProgram {
 public:
  // False when the context up to `position` is too long for it.
  bool Takes(int32_t position) const;
  // Runs one step. Asynchronous.
  absl::Status Launch(const DecodeStep& step, cudaStream_t stream);

 private:
  friend class DecodeRecorder;
  DecodeProgram() = default;

  DecodeArgs args_;
  Buffer memory_;  // stages, tasks, two handoff sets
  Buffer chunks_;  // args_.chunks
  float* handoffs_[2] = {};
  uint64_t steps_ = 0;
  int32_t blocks_ = 0;
  size_t shared_bytes_ = 0;
};

}  // namespace sluice::kernels::cuda
