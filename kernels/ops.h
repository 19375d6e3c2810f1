#pragma once

// The operations of the model graph. Every backend implements each of them with these signatures;
// kernels/ops.cc checks shapes, switches on the backend once and feeds the observer. An op runs on
// the Exec's stream or threads, in order.
//
// clang-format off
//
// One letter a dimension, project-wide:
//   T tokens in the step    S ragged rows (sequences) in the step    R rows that want logits
//   E model width           H query heads        G key/value heads   D head size
//   F FFN width             V vocabulary         L layers            P pages
//   B tokens a page (16)
//
// How these contracts express what comes later, so that nothing above the kernels changes:
//   int16 activations     `Activation` is the backend's choice of form. The CPU writes f32 values
//                         beside int16 blocks of 32 with one f32 scale and block sum each; CUDA
//                         writes f16 operands of the tensor cores with a power of two for each row
//                         (kernels/cuda/linear.h). The producer of an activation quantises it; the
//                         residual stream stays f32.
//   three types in Q/K/V  q, k and v are three `Linear`s, each with its own type, chosen per output
//                         tile at run time.
//   tensor parallelism    A rank's Linears hold its shard (heads, FFN columns). MatMulAddResidual
//                         is the one place where partial sums meet, so its all-reduce in rank order
//                         goes between product and residual; NormLmHead computes [R, V/n] and
//                         gathers. The communicator belongs to Exec.
//   CUDA graphs           Everything that varies from step to step is reached through `BatchView`,
//                         whose arrays live at fixed addresses of the device; ops allocate nothing
//                         and never synchronise; graphs belong to DeviceRunner. Page 0 is scratch
//                         for padding rows.
//   LoRA                  `Linear::adapters` (a table by adapter id) with `BatchView::adapters`,
//                         one id a row; 0 is none.
//   speculation           `BatchView::logit_tokens` names any tokens of a row: a row verifies n
//                         draft tokens with n + 1 logit rows in the same forward; Sample takes the
//                         rows it is given.
//   prompt logprobs       Logit rows of prompt positions, scored with `SampleRow::forced_token`
//                         and never sampled.
//   masks                 `SampleArgs::mask`, R x ceil(V/32) words, applied before everything else
//                         in Sample; rows without one have mask_row -1. Forward and Sample are two
//                         launches, so a mask may be made in between.
//
// clang-format on

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/core/buffer.h"
#include "kernels/core/dtype.h"
#include "kernels/core/exec.h"
#include "kernels/core/tensor.h"

namespace sluice::kernels {
namespace cuda {
class UploadRing;
}

inline constexpr int kPageTokens = 16;  // B
inline constexpr int kMaxTopLogprobs = 20;

// ---------------------------------------------------------------- memory

// Facts of a CUDA device.
struct DeviceFacts {
  std::string name;  // "NVIDIA H200"
  int major = 0;     // compute capability
  int minor = 0;
  bool own_kernels = false;  // this build has kernels for that capability beside those for all
  uint64_t total_bytes = 0;
  uint64_t free_bytes = 0;
};
// Makes CUDA device `index` the calling thread's. FAILED_PRECONDITION, one line, when there is no
// such device, no driver or one too old; UNIMPLEMENTED in a build without CUDA.
absl::StatusOr<DeviceFacts> OpenDevice(int index);
// Loads all kernels on the calling thread's CUDA device and says how many there are. One that is
// not loaded is when it is first launched, which takes memory and may wait. What is there as PTX
// alone is compiled, which can take minutes: DeviceFacts::own_kernels says that there is better.
// RESOURCE_EXHAUSTED when memory is short; UNIMPLEMENTED in a build without CUDA.
absl::StatusOr<int> LoadKernels();

// Zero-filled memory of the kind that the backend's arrays lie in: the host's, or the calling
// thread's CUDA device's. RESOURCE_EXHAUSTED with the numbers when there is not enough.
absl::StatusOr<Buffer> AllocateMemory(Backend backend, size_t bytes);
// Copies between host memory and the backend's; blocks until done.
absl::Status CopyToBackend(Backend backend, void* to, const void* from, size_t bytes);
absl::Status CopyFromBackend(Backend backend, void* to, const void* from, size_t bytes);

// ---------------------------------------------------------------- weights

// A weight matrix [N, K] (N outputs, K inputs) resident in the layout that its backend's products
// want: rows as stored for ref; panels of 16 interleaved rows for cpu; operands of the tensor cores
// for cuda. Immutable after PackWeightRows; the one copy of the tensor.
struct PackedWeight {
  DType type = DType::kF32;
  Backend backend = Backend::kRef;
  int64_t rows = 0;  // N
  int64_t cols = 0;  // K
  Buffer storage;
};

// True when `backend` has products for `type`.
bool SupportsWeight(Backend backend, DType type);

// Bytes that PackWeight's storage will take.
int64_t PackedBytes(Backend backend, DType type, int64_t rows, int64_t cols);

// Allocates the storage of a weight [rows, cols]; rows are filled in by PackWeightRows.
// UNIMPLEMENTED naming type and backend when unsupported; INVALID_ARGUMENT when cols is no multiple
// of the block.
absl::StatusOr<PackedWeight> AllocateWeight(Backend backend, DType type, int64_t rows,
                                            int64_t cols);

// The same in `storage`, zero-filled memory of at least PackedBytes: a Part of a large Buffer,
// whose huge pages matter (with matrices of a few hundred KiB in small pages a decode step
// takes 1.4 times as long).
absl::StatusOr<PackedWeight> PlaceWeight(Backend backend, DType type, int64_t rows, int64_t cols,
                                         Buffer storage);

// Repacks `num_rows` rows as stored in a file (`stored`, RowBytes each) into rows [first_row,
// first_row + num_rows) of `weight`. first_row and num_rows are multiples of 16, except that the
// last piece may be shorter. Pieces may be packed from several threads at once.
absl::Status PackWeightRows(PackedWeight& weight, int64_t first_row, int64_t num_rows,
                            const std::byte* stored);

// Brings stored rows into weights, a piece at a time: gives the memory that a piece is read into
// and repacks what was read. On CUDA that memory is page-locked, and pieces are copied to the
// device and repacked there while their lane reads the next ones. Each lane is one thread's; all
// lanes at once.
//
//   std::byte* piece = *feed.Next(lane);  // room for piece_bytes
//   file.Read(.., {piece, bytes});
//   feed.Pack(lane, weight, first_row, num_rows);
class WeightFeed {
 public:
  // Memory is the calling thread's device's. RESOURCE_EXHAUSTED with the numbers.
  static absl::StatusOr<std::unique_ptr<WeightFeed>> Create(Backend backend, int num_lanes,
                                                            size_t piece_bytes);
  ~WeightFeed();
  WeightFeed(const WeightFeed&) = delete;
  WeightFeed& operator=(const WeightFeed&) = delete;

  // Memory for the next piece of `lane`: waits until what was packed from it has left it.
  absl::StatusOr<std::byte*> Next(int lane);
  // PackWeightRows of the rows that lie in the memory Next gave last.
  absl::Status Pack(int lane, PackedWeight& weight, int64_t first_row, int64_t num_rows);
  // Waits until every piece is where it belongs. Before anything reads the weights.
  absl::Status Finish();

 private:
  WeightFeed(int num_lanes, size_t piece_bytes);
  const size_t piece_bytes_;
  std::vector<Buffer> lanes_;               // of a host backend, made by the first Next
  std::shared_ptr<cuda::UploadRing> ring_;  // of CUDA
};

// Dequantises row `row` of a packed weight: out [K] on the host. Bit-equal to the format's
// definition in f32 (one product, one sum); on cuda F32 rounded to the 11 bits of f16.
absl::Status UnpackWeightRow(const PackedWeight& weight, int64_t row, float* out);

// Dequantises blocks as stored in a file; `values` a multiple of the block. The definition every
// layout is tested against.
void DequantizeStored(DType type, const std::byte* stored, int64_t values, float* out);

struct AdapterTable;  // LoRA pairs by adapter id; none exist yet

// y = x W^T + bias. A view: weight and bias belong to the model's Weights.
struct Linear {
  const PackedWeight* weight = nullptr;    // [N, K]
  const float* bias = nullptr;             // [N] or null
  const AdapterTable* adapters = nullptr;  // null: none
  std::string_view name = {};  // what the observer calls MatMulAddResidual's outcome: "ffn_down"

  int64_t outputs() const { return weight->rows; }
  int64_t inputs() const { return weight->cols; }
};

// ---------------------------------------------------------------- activations and KV cache

// Rows that flow from one op into the products of the next, in the form that the backend's products
// read. Owned by the engine's Activations; allocated once for T_max rows.
class Activation {
 public:
  // On the host backends; AllocateActivation does it for all.
  static absl::StatusOr<Activation> Allocate(Backend backend, int64_t max_rows, int64_t cols);
  Activation() = default;
  // Of `storage`, which the fields point into.
  explicit Activation(Buffer storage) : storage_(std::move(storage)) {}

  int64_t max_rows = 0;
  int64_t cols = 0;
  // Backends ref and cpu. On the cpu `quants`, `scales` and `sums` are filled as well when cols is
  // a multiple of 32.
  float* values = nullptr;    // [max_rows, cols] f32
  int16_t* quants = nullptr;  // [max_rows, cols] int16, value = quant * scale of its block of 32
  float* scales = nullptr;    // [max_rows, cols / 32]
  float* sums = nullptr;      // [max_rows, cols / 32] scale * (sum of the block's quants)
  // Backend cuda, device memory: `values`, and the rows as f16 operands of the tensor cores with a
  // power of two each (kernels/cuda/linear.h).
  std::byte* operands = nullptr;
  float* factors = nullptr;  // [max_rows]

 private:
  Buffer storage_;
};

absl::StatusOr<Activation> AllocateActivation(Backend backend, int64_t max_rows, int64_t cols);

// K and V of one layer for all pages. The layout inside a page is the backend's: page p of head g
// starts at element (p * G + g) * D * 16 in both; cpu and ref keep K as [D, 16] (one lane a
// position) and V as [16, D].
struct KvLayer {
  DType type = DType::kF16;  // kF16 or kF32 (kBF16 later)
  int64_t num_pages = 0;     // P, page 0 is scratch
  int64_t num_kv_heads = 0;  // G
  int64_t head_size = 0;     // D
  std::byte* k = nullptr;
  std::byte* v = nullptr;
};
// Bytes of one page of one layer, K and V together.
int64_t KvPageBytes(DType type, int64_t num_kv_heads, int64_t head_size);

// Copies K and V of `positions` of the row `row` back to f32 (tests, verify): out [n, G, D].
void ReadKv(const KvLayer& layer, std::span<const int32_t> pages,
            std::span<const int32_t> positions, bool value, float* out);

// Copies whole pages from -> to, pairwise, in every layer given. No page is a source and a target.
absl::Status CopyPages(Exec& exec, std::span<const KvLayer> layers, std::span<const int32_t> from,
                       std::span<const int32_t> to);

// ---------------------------------------------------------------- the batch

// The ragged step as ops see it: arrays at fixed addresses on the Exec's device, written by one
// upload a step. A row is a run of consecutive positions of one sequence; there is no prefill flag.
struct BatchView {
  int64_t num_tokens = 0;                // T
  int64_t num_rows = 0;                  // S
  int64_t num_logit_rows = 0;            // R
  const int32_t* tokens = nullptr;       // [T]; negative: ~tokens[i] indexes previous_tokens
  const int32_t* positions = nullptr;    // [T]
  const int32_t* row_begins = nullptr;   // [S + 1], first token of each row
  const int32_t* page_begins = nullptr;  // [S + 1], first entry of each row in `pages`
  const int32_t* pages =
      nullptr;  // flattened page tables; entry i of a row holds positions [16 i, 16 i + 16)
  const int32_t* logit_tokens = nullptr;     // [R], token indices in [0, T), ascending
  const int32_t* adapters = nullptr;         // [S], 0 is none
  const int32_t* previous_tokens = nullptr;  // sampled by the previous step, by its logit row
  int64_t num_previous = 0;                  // entries of previous_tokens
};

// The view of a step for the ops of `exec`: `host` itself on host backends; on CUDA its arrays
// are copied to their addresses on the device by one asynchronous copy, `previous_tokens` is the
// device's own, and the attention's work is planned. Before the step's first op.
absl::StatusOr<BatchView> UploadBatch(Exec& exec, const BatchView& host);

// Runs `ops`, the forward pass of the step last uploaded. On CUDA a step of single tokens that
// comes for the kStepsToGraph-th time has ways to run its products timed, which is waited for, and
// its launches recorded as a graph, which is replayed from then on. Not while an observer watches.
absl::Status RunStep(Exec& exec, const BatchView& batch, const std::function<absl::Status()>& ops);
inline constexpr int kStepsToGraph = 2;
// How many rows the graphs have that RunStep may make, ascending; none on host backends. A step of
// another number of rows is padded to the next of them, if there is one. Workspace reserved.
std::vector<int64_t> RowsOfGraphs(const Exec& exec);

// ---------------------------------------------------------------- ops

enum class RopeStyle : uint8_t {
  kInterleaved,  // pairs (2i, 2i + 1): llama files
  kHalfSplit,    // pairs (i, i + rotary_size / 2): qwen files
};

// Rotary embedding (RoFormer, arXiv 2104.09864). Angle of pair i at position p: float(p) *
// inverse_frequencies[i].
struct Rope {
  RopeStyle style = RopeStyle::kHalfSplit;
  int64_t rotary_size = 0;  // values rotated of each head, even, <= D
  const float* inverse_frequencies =
      nullptr;             // [rotary_size / 2] host, f32, frequency factors already applied
  float magnitude = 1.0f;  // multiplies cos and sin (yarn)
};

// Reserves the scratch memory of every op below for steps within `shape`. Once, before the first
// op.
absl::Status ReserveWorkspace(Exec& exec, const WorkspaceShape& shape);

// Tables of rotations that a model may have: one, or one for layers that see everything and one for
// layers with a window (Gemma 3).
inline constexpr int kMaxRopes = 2;

enum class NormKind : uint8_t {
  kRms,    // x / sqrt(mean(x^2) + epsilon) * weight (arXiv 1910.07467)
  kLayer,  // (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias (arXiv 1607.06450)
};
// A normalisation of rows of n values. No weight: none takes place, rows stay as they are.
struct Norm {
  const float* weight = nullptr;  // [n] f32
  const float* bias = nullptr;    // [n] or null; kLayer only
  float epsilon = 0.0f;
  NormKind kind = NormKind::kRms;
};

// residual[t] = scale * row tokens[t] of the table [V, E], f32; and the cosines and sines of the
// step's positions for each of `ropes` (at most kMaxRopes, none for models without rotations), kept
// in the workspace for the rotations of all layers. residual [T, E]. INVALID_ARGUMENT for a token
// outside [0, V).
absl::Status EmbedTokens(Exec& exec, const PackedWeight& table, float scale,
                         std::span<const Rope> ropes, const BatchView& batch, MatrixF32 residual);

struct NormQkvRopeStoreArgs {
  Norm norm = {};             // [E]
  const Linear* q = nullptr;  // [H*D, E]
  const Linear* k = nullptr;  // [G*D, E]
  const Linear* v = nullptr;  // [G*D, E]
  Norm q_head_norm = {};      // [D], of each head before the rotation, or none
  Norm k_head_norm = {};      // [D] or none
  Rope rope = {};             // rotary_size 0: Q and K are not rotated
  int rope_index = 0;         // of `rope` among those that EmbedTokens was given
  int64_t head_size = 0;      // D
};
// h = norm(residual); q, k, v = projections of h (+ bias, + per-head norm); q and k rotated; k
// and v stored at their positions' pages in the KV type (round to nearest even). residual [T, E]
// in, q_out [T, H*D] f32 out. K or V beyond the range of an f16 cache becomes infinite and makes
// the row's logits non-finite; never silently clipped.
absl::Status NormQkvRopeStore(Exec& exec, const NormQkvRopeStoreArgs& args, ConstMatrixF32 residual,
                              const BatchView& batch, const KvLayer& kv, MatrixF32 q_out);

struct PagedAttentionArgs {
  float scale = 1.0f;
  // Scaled scores s become softcap * tanh(s / softcap) (Gemma 2, arXiv 2408.00118); 0: as they are.
  float softcap = 0.0f;
  // A token sees itself and the `window` - 1 positions before it (arXiv 2004.05150); 0: all.
  int32_t window = 0;
};
// out[t, h] = softmax(scale * q[t, h] . K[first..pos(t), g]) V[.., g] with g = h / (H / G), causal,
// over the row's pages; first is 0, or pos(t) - window + 1. One tile order whatever the batch:
// tiles of 64 keys inside splits of 256 positions counted from position 0, rescaling decided per
// (token, head), splits merged ascending; tiles that lie wholly before the window are passed over.
// A score that is not finite makes out[t, h] NaN, capped or not. q [T, H*D]; out [T, H*D] written
// as an Activation for the next product.
absl::Status PagedAttention(Exec& exec, const PagedAttentionArgs& args, ConstMatrixF32 q,
                            const BatchView& batch, const KvLayer& kv, Activation& out);

struct MatMulAddResidualArgs {
  const Linear* linear = nullptr;  // [E, K]
  Norm post_norm = {};             // [E], of the product before it is added, or none (Gemma)
  float scale = 1.0f;              // of what is added (Granite)
};
// residual[t] += scale * post_norm(input[t] W^T (+ bias)). input [T, K], residual [T, E].
absl::Status MatMulAddResidual(Exec& exec, const MatMulAddResidualArgs& args,
                               const Activation& input, const BatchView& batch, MatrixF32 residual);

enum class GateActivation : uint8_t { kSilu, kGeluTanh };
struct NormGateUpArgs {
  Norm norm = {};                // [E]
  const Linear* gate = nullptr;  // [F, E]; null: no gate (StarCoder 2)
  const Linear* up = nullptr;    // [F, E]
  GateActivation activation = GateActivation::kSilu;
};
// h = norm(residual); out = act(h gate^T) * (h up^T), or act(h up^T) without a gate. residual
// [T, E]; out [T, F].
absl::Status NormGateUpSwiglu(Exec& exec, const NormGateUpArgs& args, ConstMatrixF32 residual,
                              const BatchView& batch, Activation& out);

struct NormLmHeadArgs {
  Norm norm = {};                // [E]
  const Linear* head = nullptr;  // [V, E]
  float scale = 1.0f;            // of the logits (Granite)
  // Logits l become softcap * tanh(l / softcap), after `scale`; 0: as they are. One that is not
  // finite becomes NaN: a cap must not hide it.
  float softcap = 0.0f;
};
// logits[i] = norm(residual[logit_tokens[first + i]]) head^T for i in [0, logits.rows): one slab
// of at most WorkspaceShape::max_logit_rows rows. logits [r, V] f32.
absl::Status NormLmHead(Exec& exec, const NormLmHeadArgs& args, ConstMatrixF32 residual,
                        const BatchView& batch, int64_t first, MatrixF32 logits);

// ---------------------------------------------------------------- sampling

struct TokenBias {
  int32_t token = 0;
  float bias = 0.0f;
};

// Parameters of one sampler slot, plain values. Neutral values switch a stage off.
struct SamplerParams {
  float temperature = 1.0f;  // below 1e-5: arg-max, ties by lower id
  int32_t top_k = 0;         // 0: all
  float typical_p = 1.0f;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;  // over prompt and output: l > 0 ? l / p : l * p
  float presence_penalty = 0.0f;    // over output
  float frequency_penalty = 0.0f;   // over output, times count
  int32_t penalty_last_n = 0;       // the window of tokens that penalties see; 0: all
  uint64_t seed = 0;
  uint32_t sequence_index = 0;  // of n sequences of one request
  std::vector<TokenBias> bias;  // ascending ids, no duplicates
  int32_t min_tokens = 0;       // until so many tokens are out, `banned_until_min` are -inf
  std::vector<int32_t> banned_until_min;  // end-of-generation and stop ids
};

// Per-sequence state of the sampler, resident on the device: parameters and the tokens that
// penalties count. The slot of a sequence is reset when the sequence enters a slot (also after
// preemption) and advanced by Sample itself.
class SamplerSlots {
 public:
  static absl::StatusOr<SamplerSlots> Create(Exec& exec, int num_slots, int64_t vocab_size);
  SamplerSlots(SamplerSlots&&) noexcept;
  SamplerSlots& operator=(SamplerSlots&&) noexcept;
  ~SamplerSlots();

  // Puts a sequence into `slot`: its parameters, its prompt and the output so far.
  // Errors are a device's.
  absl::Status Reset(int slot, const SamplerParams& params, std::span<const int32_t> prompt,
                     std::span<const int32_t> output);

  struct Table;
  Table& table() const { return *table_; }

 private:
  explicit SamplerSlots(std::unique_ptr<Table> table);
  std::unique_ptr<Table> table_;
};

// One logit row to sample or to score.
struct SampleRow {
  int32_t logit_row = 0;  // row of `logits`
  int32_t slot = 0;
  int32_t position = 0;       // position that the sampled token will take: the generator's key
  int32_t num_top = -1;       // -1: no logprobs; n >= 0: the token's and the n best
  int32_t forced_token = -1;  // >= 0: score this token instead of sampling (prompt logprobs)
  int32_t mask_row = -1;      // row of SampleArgs::mask, -1: none
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0.0f;
};

struct SampledToken {
  int32_t token = -1;
  bool finite = true;             // false: a logit was NaN or +-Inf, token is meaningless
  float logprob = 0.0f;           // of the raw logits, before bias; set when num_top >= 0
  std::vector<TokenLogprob> top;  // descending, ties by lower id
};

struct SampleArgs {
  std::span<const SampleRow> rows;
  const uint32_t* mask = nullptr;  // [rows with a mask, ceil(V / 32)], bit set: allowed
};

// Samples one token a row in the order of numerics.md: mask, min_tokens bans, bias, penalties,
// temperature, top-k, typical-p, top-p, min-p, draw. Probabilities are integers, w_i = floor(2^40
// exp(l_i - max)) by one FMA-only polynomial; partition sum, top-p cut (ties by lower id) and
// inverse-CDF draw are uint64 sums; Philox4x32-10 (Salmon et al., SC'11) with counter (seed,
// sequence index, position, draw): equal logits give equal tokens on every backend. Advances the
// slots. `out` has rows.size() entries; previous_tokens [R], when not null, receives the token of
// each row for the next step's FromPrevious inputs.
absl::Status Sample(Exec& exec, ConstMatrixF32 logits, const SampleArgs& args, SamplerSlots& slots,
                    std::span<SampledToken> out, int32_t* previous_tokens);

// Sample on CUDA in two halves, so that the next step may be launched in between: the tokens go to
// the device's previous_tokens at once. At most two launches wait to be collected; Collect takes
// the oldest and waits for it.
absl::Status LaunchSample(Exec& exec, ConstMatrixF32 logits, const SampleArgs& args,
                          SamplerSlots& slots);
absl::Status CollectSample(Exec& exec, SamplerSlots& slots, std::span<SampledToken> out);

// Marks in a device's queue that a step begins; it ends when its LaunchSample's tokens have reached
// the host. Nothing on the host backends.
absl::Status MarkStep(SamplerSlots& slots);
// By the device's clock, the seconds from the end of the step before to the begin of the step last
// collected: how long the device had nothing to do. None where that is not known: no device, or the
// step before sampled nothing.
std::optional<double> IdleBeforeStep(const SamplerSlots& slots);

}  // namespace sluice::kernels
