#include "kernels/cpu/linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/core/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/pack.h"

namespace sluice::kernels::cpu {
namespace {

// Up to so many tokens the norms are done by worker 0 alone: cheaper than one more barrier.
constexpr int64_t kInlineTokens = 4;
// A chunk reads at most about this much of the weights, a few microseconds' worth.
constexpr int64_t kChunkBytes = 64 << 10;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool Quantized(const Linear& linear) { return Traits(linear.weight->type).quantized; }

// Calls fn(t, worker) for every token: inline when they are few.
template <typename Fn>
void ForTokens(Exec& exec, int64_t num_tokens, const Fn& fn) {
  if (num_tokens <= kInlineTokens) {
    for (int64_t t = 0; t < num_tokens; ++t) fn(t, 0);
  } else {
    exec.pool().ParallelFor(num_tokens, fn);
  }
}

void QuantizeRow(const LinearKernels& kernels, Activation& activation, int64_t row) {
  const int64_t blocks = activation.cols / 32;
  kernels.quantize(activation.values + row * activation.cols, activation.cols,
                   activation.quants + row * activation.cols, activation.scales + row * blocks,
                   activation.sums + row * blocks);
}

// out = norm(x), n values; out may be x.
void NormRow(const LinearKernels& kernels, const Norm& norm, const float* x, int64_t n,
             float* out) {
  if (norm.weight == nullptr) {
    if (out != x) std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
  } else if (norm.kind == NormKind::kLayer) {
    kernels.layer_norm(x, norm.weight, norm.bias, norm.epsilon, n, out);
  } else {
    kernels.rms_norm(x, norm.weight, norm.epsilon, n, out);
  }
}

// workspace.normed[t] = norm(source(t)) for num_tokens rows; quantised as well when `quantize`.
template <typename Source>
void NormRows(Exec& exec, const Norm& norm, int64_t num_tokens, bool quantize,
              const Source& source) {
  CpuWorkspace& workspace = WorkspaceOf(exec);
  const LinearKernels& kernels = KernelsFor(exec);
  Activation& normed = workspace.normed;
  ForTokens(exec, num_tokens, [&](int64_t t, int) {
    NormRow(kernels, norm, source(t), normed.cols, normed.values + t * normed.cols);
    if (quantize) QuantizeRow(kernels, normed, t);
  });
}

// The product of `linear` with the first num_tokens rows of `input`, bias included, in pieces:
// calls fn(t, col, num_cols, values) for outcomes [col, col + num_cols) of each row, each once, on
// any worker.
template <typename Fn>
void ForProduct(Exec& exec, const Linear& linear, const Activation& input, int64_t num_tokens,
                const Fn& fn) {
  CpuWorkspace& workspace = WorkspaceOf(exec);
  const LinearKernels& kernels = KernelsFor(exec);
  const int64_t num_panels = CeilDiv(linear.outputs(), kPanelRows);
  const int64_t panels_a_chunk = ChunkPanels(
      num_panels, PanelBytes(linear.weight->type, linear.inputs()), exec.pool().num_workers());
  const int64_t num_blocks = CeilDiv(num_tokens, kTokenBlock);
  const auto chunk_fn = [&](int64_t chunk, int worker) {
    const int64_t first_panel = chunk / num_blocks * panels_a_chunk;
    const int64_t count = std::min(panels_a_chunk, num_panels - first_panel);
    const int64_t first_token = chunk % num_blocks * kTokenBlock;
    const int64_t end_token = std::min(first_token + kTokenBlock, num_tokens);
    float* values = workspace.tile(worker);
    const int64_t stride = count * kPanelRows;
    ProductOfPanels(kernels, linear, first_panel, count, RowsFrom(input, first_token),
                    end_token - first_token, values, stride);
    const int64_t col = first_panel * kPanelRows;
    const int64_t num_cols = std::min(stride, linear.outputs() - col);
    for (int64_t t = first_token; t < end_token; ++t, values += stride) {
      if (linear.bias != nullptr) kernels.add(linear.bias + col, num_cols, values);
      fn(t, col, num_cols, values);
    }
  };
  exec.pool().ParallelFor(CeilDiv(num_panels, panels_a_chunk) * num_blocks, chunk_fn);
}

// The bug of a stride of K + 1: token i of its row reads i values too far (round the end, so that
// it stays inside the row).
void PlantPrefillStride(Exec& exec, bool quantize, int64_t num_tokens) {
  CpuWorkspace& workspace = WorkspaceOf(exec);
  Activation& normed = workspace.normed;
  for (int64_t t = 0; t < num_tokens; ++t) {
    float* row = normed.values + t * normed.cols;
    std::rotate(row, row + workspace.places[t].row_offset % normed.cols, row + normed.cols);
    if (quantize) QuantizeRow(KernelsFor(exec), normed, t);
  }
}

// Finds where each token's K and V go.
void FindPlaces(const BatchView& batch, std::vector<TokenPlace>& places) {
  for (int64_t row = 0; row < batch.num_rows; ++row) {
    const int32_t* pages = batch.pages + batch.page_begins[row];
    for (int32_t t = batch.row_begins[row]; t < batch.row_begins[row + 1]; ++t) {
      const int32_t position = batch.positions[t];
      places[t] = {pages[position / kPageTokens], position % kPageTokens,
                   t - batch.row_begins[row]};
    }
  }
}

// One head of q, k or v: where its rows lie in the weight.
struct HeadRows {
  const Linear* linear = nullptr;
  int64_t first_row = 0;
  int64_t first_panel = 0;
  int64_t num_panels = 0;
  int64_t lane = 0;  // of first_row in first_panel

  HeadRows(const Linear* weight, int64_t head, int64_t head_size)
      : linear(weight),
        first_row(head * head_size),
        first_panel(first_row / kPanelRows),
        num_panels(CeilDiv(first_row + head_size, kPanelRows) - first_panel),
        lane(first_row % kPanelRows) {}
};

// K as [D, 16] and V as [16, D] inside a page of a head.
template <typename T>
void StoreHead(const T* values, int64_t head_size, bool is_key, int32_t slot, T* page) {
  if (is_key) {
    for (int64_t d = 0; d < head_size; ++d) page[d * kPageTokens + slot] = values[d];
  } else {
    std::memcpy(page + slot * head_size, values, static_cast<size_t>(head_size) * sizeof(T));
  }
}

void StoreKv(const LinearKernels& kernels, const KvLayer& kv, bool is_key, int64_t head,
             const TokenPlace& place, float* values) {
  const int64_t page_values = kv.head_size * kPageTokens;
  const int64_t offset = (place.page * kv.num_kv_heads + head) * page_values;
  std::byte* base = is_key ? kv.k : kv.v;
  if (kv.type == DType::kF32) {
    StoreHead(values, kv.head_size, is_key, place.slot, reinterpret_cast<float*>(base) + offset);
    return;
  }
  // Converted in place: a half never overtakes the floats still to be read.
  uint16_t* halves = reinterpret_cast<uint16_t*>(values);
  kernels.to_f16(values, kv.head_size, halves);
  StoreHead(halves, kv.head_size, is_key, place.slot, reinterpret_cast<uint16_t*>(base) + offset);
}

}  // namespace

const LinearKernels& KernelsFor(const Exec& exec) {
  return exec.isa() == CpuIsa::kAvx512 ? kLinearAvx512 : kLinearAvx2;
}

ActivationRows RowsFrom(const Activation& activation, int64_t first_row) {
  ActivationRows rows;
  rows.cols = activation.cols;
  rows.values = activation.values + first_row * activation.cols;
  if (activation.quants != nullptr) {
    rows.quants = activation.quants + first_row * activation.cols;
    rows.scales = activation.scales + first_row * (activation.cols / 32);
    rows.sums = activation.sums + first_row * (activation.cols / 32);
  }
  return rows;
}

void ProductOfPanels(const LinearKernels& kernels, const Linear& linear, int64_t first_panel,
                     int64_t num_panels, const ActivationRows& input, int64_t num_tokens,
                     float* out, int64_t out_stride) {
  const PackedWeight& weight = *linear.weight;
  PanelProduct args;
  args.type = weight.type;
  args.panel_bytes = PanelBytes(weight.type, weight.cols);
  args.panels = weight.storage.bytes() + first_panel * args.panel_bytes;
  args.num_panels = num_panels;
  args.input = input;
  args.num_tokens = num_tokens;
  args.out = out;
  args.out_stride = out_stride;
  kernels.product(args);
}

int64_t ChunkPanels(int64_t num_panels, int64_t panel_bytes, int num_workers) {
  const int64_t for_balance = num_panels / (8 * num_workers);
  const int64_t for_bytes = kChunkBytes / panel_bytes;
  return std::clamp<int64_t>(std::min(for_balance, for_bytes), 1, kMaxChunkPanels);
}

absl::StatusOr<std::unique_ptr<Exec::Workspace>> MakeWorkspace(const WorkspaceShape& shape,
                                                               const Exec& exec) {
  auto workspace = std::make_unique<CpuWorkspace>();
  const int num_workers = exec.num_threads();
  const int64_t max_rows = std::max(shape.max_tokens, shape.max_logit_rows);
  auto normed = Activation::Allocate(Backend::kCpu, max_rows, shape.width);
  if (!normed.ok()) return normed.status();
  workspace->normed = std::move(*normed);

  // A chunk is one head (with the panels it shares at both ends), or panels of gate and of up.
  const int64_t head_rows = shape.head_size + 2 * kPanelRows;
  const int64_t chunk_rows = std::max(head_rows, 2 * kMaxChunkPanels * kPanelRows);
  workspace->tile_floats = std::min(max_rows, kTokenBlock) * CeilDiv(chunk_rows, 16) * 16;
  const int64_t rotation_floats = CeilDiv(shape.max_tokens * (shape.head_size / 2), 16) * 16;
  const int64_t floats = num_workers * workspace->tile_floats + 2 * kMaxRopes * rotation_floats;
  auto storage = Buffer::Allocate(static_cast<size_t>(floats) * sizeof(float));
  if (!storage.ok()) return storage.status();
  workspace->storage = std::move(*storage);
  workspace->tiles = workspace->storage.as<float>();
  float* next = workspace->tiles + num_workers * workspace->tile_floats;
  for (Rotations& rotations : workspace->rotations) {
    rotations.cosines = next;
    rotations.sines = next + rotation_floats;
    next += 2 * rotation_floats;
  }
  workspace->places.resize(static_cast<size_t>(shape.max_tokens));

  absl::Status status = workspace->attention.Allocate(shape, num_workers);
  if (!status.ok()) return status;
  status = workspace->sampling.Allocate(shape, num_workers);
  if (!status.ok()) return status;
  return std::unique_ptr<Exec::Workspace>(std::move(workspace));
}

void EmbedTokens(Exec& exec, const PackedWeight& table, float scale, std::span<const Rope> ropes,
                 const BatchView& batch, MatrixF32 residual) {
  CpuWorkspace& workspace = WorkspaceOf(exec);
  for (size_t i = 0; i < ropes.size(); ++i) {
    workspace.rotations[i].num_tokens = batch.num_tokens;
    workspace.rotations[i].rotary_size = ropes[i].rotary_size;
  }
  ForTokens(exec, batch.num_tokens, [&](int64_t t, int) {
    const int32_t token = batch.tokens[t];
    cpu::UnpackWeightRow(table, token >= 0 ? token : batch.previous_tokens[~token],
                         residual.row(t));
    if (scale != 1.0f) KernelsFor(exec).scale(scale, residual.cols, residual.row(t));
    const float position = static_cast<float>(batch.positions[t]);
    for (size_t i = 0; i < ropes.size(); ++i) {
      const Rope& rope = ropes[i];
      const int64_t half = rope.rotary_size / 2;
      float* cosines = workspace.rotations[i].cosines + t * half;
      float* sines = workspace.rotations[i].sines + t * half;
      for (int64_t pair = 0; pair < half; ++pair) {
        const double angle = position * rope.inverse_frequencies[pair];
        cosines[pair] = static_cast<float>(std::cos(angle) * rope.magnitude);
        sines[pair] = static_cast<float>(std::sin(angle) * rope.magnitude);
      }
    }
  });
}

void NormQkvRopeStore(Exec& exec, const NormQkvRopeStoreArgs& args, ConstMatrixF32 residual,
                      const BatchView& batch, const KvLayer& kv, MatrixF32 q_out) {
  CpuWorkspace& workspace = WorkspaceOf(exec);
  const LinearKernels& kernels = KernelsFor(exec);
  const int64_t head_size = args.head_size;
  const int64_t half = args.rope.rotary_size / 2;
  const Rotations& rotations = workspace.rotations[static_cast<size_t>(args.rope_index)];
  SLUICE_KERNEL_CHECK(half == 0 || (rotations.num_tokens == batch.num_tokens &&
                                    rotations.rotary_size == args.rope.rotary_size),
                      "EmbedTokens of the same step, with this rope, comes first");
  const int64_t num_heads = args.q->outputs() / head_size;
  const int64_t num_kv_heads = args.k->outputs() / head_size;
  const bool quantize = Quantized(*args.q) || Quantized(*args.k) || Quantized(*args.v);
  FindPlaces(batch, workspace.places);
  NormRows(exec, args.norm, batch.num_tokens, quantize, [&](int64_t t) { return residual.row(t); });
  if (exec.planted(PlantedBug::kPrefillStride)) {
    PlantPrefillStride(exec, quantize, batch.num_tokens);
  }

  // A chunk is one head of some tokens: norm, rotation and store follow its product at once.
  const int64_t num_blocks = CeilDiv(batch.num_tokens, kTokenBlock);
  const auto chunk_fn = [&](int64_t chunk, int worker) {
    const int64_t any_head = chunk / num_blocks;
    const int64_t first_token = chunk % num_blocks * kTokenBlock;
    const int64_t num_tokens = std::min(kTokenBlock, batch.num_tokens - first_token);
    const bool is_query = any_head < num_heads;
    const bool is_key = !is_query && any_head < num_heads + num_kv_heads;
    const int64_t head = is_query ? any_head : any_head - num_heads - (is_key ? 0 : num_kv_heads);
    const HeadRows rows(is_query ? args.q : is_key ? args.k : args.v, head, head_size);
    const Norm head_norm = is_query ? args.q_head_norm : is_key ? args.k_head_norm : Norm{};
    float* tile = workspace.tile(worker);
    const int64_t stride = rows.num_panels * kPanelRows;
    ProductOfPanels(kernels, *rows.linear, rows.first_panel, rows.num_panels,
                    RowsFrom(workspace.normed, first_token), num_tokens, tile, stride);
    for (int64_t i = 0; i < num_tokens; ++i) {
      const int64_t t = first_token + i;
      float* values = tile + i * stride + rows.lane;
      if (rows.linear->bias != nullptr) {
        kernels.add(rows.linear->bias + rows.first_row, head_size, values);
      }
      NormRow(kernels, head_norm, values, head_size, values);
      if (is_query || is_key) {
        kernels.rotate(rotations.cosines + t * half, rotations.sines + t * half, half,
                       args.rope.style == RopeStyle::kInterleaved, values);
      }
      if (is_query) {
        std::memcpy(q_out.row(t) + head * head_size, values,
                    static_cast<size_t>(head_size) * sizeof(float));
      } else if (head == 0 || !exec.planted(PlantedBug::kKvHeadZeroOnly)) {
        StoreKv(kernels, kv, is_key, head, workspace.places[t], values);
      }
    }
  };
  exec.pool().ParallelFor((num_heads + 2 * num_kv_heads) * num_blocks, chunk_fn);
}

void MatMulAddResidual(Exec& exec, const MatMulAddResidualArgs& args, const Activation& input,
                       const BatchView& batch, MatrixF32 residual) {
  const LinearKernels& kernels = KernelsFor(exec);
  const auto add = [&](int64_t t, int64_t col, int64_t num_cols, float* values) {
    if (args.scale != 1.0f) kernels.scale(args.scale, num_cols, values);
    kernels.add(values, num_cols, residual.row(t) + col);
  };
  if (args.post_norm.weight == nullptr) {
    ForProduct(exec, *args.linear, input, batch.num_tokens, add);
    return;
  }
  // The norm needs the whole row.
  float* rows = WorkspaceOf(exec).normed.values;
  const int64_t width = residual.cols;
  ForProduct(exec, *args.linear, input, batch.num_tokens,
             [&](int64_t t, int64_t col, int64_t num_cols, const float* values) {
               std::memcpy(rows + t * width + col, values,
                           static_cast<size_t>(num_cols) * sizeof(float));
             });
  ForTokens(exec, batch.num_tokens, [&](int64_t t, int) {
    float* row = rows + t * width;
    NormRow(kernels, args.post_norm, row, width, row);
    add(t, 0, width, row);
  });
}

void NormGateUpSwiglu(Exec& exec, const NormGateUpArgs& args, ConstMatrixF32 residual,
                      const BatchView& batch, Activation& out) {
  CpuWorkspace& workspace = WorkspaceOf(exec);
  const LinearKernels& kernels = KernelsFor(exec);
  const bool gated = args.gate != nullptr;
  const bool quantize = Quantized(*args.up) || (gated && Quantized(*args.gate));
  NormRows(exec, args.norm, batch.num_tokens, quantize, [&](int64_t t) { return residual.row(t); });
  if (exec.planted(PlantedBug::kPrefillStride)) {
    FindPlaces(batch, workspace.places);
    PlantPrefillStride(exec, quantize, batch.num_tokens);
  }

  // Two panels are one block of 32 outcomes, which the chunk that makes them quantises.
  const int64_t width = args.up->outputs();
  const int64_t num_pairs = CeilDiv(width, 2 * kPanelRows);
  const int64_t num_panels = CeilDiv(width, kPanelRows);
  const int64_t gate_bytes = gated ? PanelBytes(args.gate->weight->type, args.gate->inputs()) : 0;
  const int64_t pair_bytes =
      2 * (gate_bytes + PanelBytes(args.up->weight->type, args.up->inputs()));
  const int64_t pairs_a_chunk = std::min<int64_t>(
      ChunkPanels(num_pairs, pair_bytes, exec.pool().num_workers()), kMaxChunkPanels / 2);
  const int64_t num_blocks = CeilDiv(batch.num_tokens, kTokenBlock);
  const bool gelu = args.activation == GateActivation::kGeluTanh;
  const auto chunk_fn = [&](int64_t chunk, int worker) {
    const int64_t first_panel = chunk / num_blocks * pairs_a_chunk * 2;
    const int64_t count = std::min(pairs_a_chunk * 2, num_panels - first_panel);
    const int64_t first_token = chunk % num_blocks * kTokenBlock;
    const int64_t num_tokens = std::min(kTokenBlock, batch.num_tokens - first_token);
    const int64_t stride = count * kPanelRows;
    float* up = workspace.tile(worker);
    float* gate = up + num_tokens * stride;
    const ActivationRows input = RowsFrom(workspace.normed, first_token);
    if (gated) {
      ProductOfPanels(kernels, *args.gate, first_panel, count, input, num_tokens, gate, stride);
    }
    ProductOfPanels(kernels, *args.up, first_panel, count, input, num_tokens, up, stride);
    const int64_t col = first_panel * kPanelRows;
    const int64_t num_cols = std::min(stride, width - col);
    for (int64_t i = 0; i < num_tokens; ++i, gate += stride, up += stride) {
      if (args.up->bias != nullptr) kernels.add(args.up->bias + col, num_cols, up);
      const int64_t t = first_token + i;
      float* values = out.values + t * width + col;
      if (gated) {
        if (args.gate->bias != nullptr) kernels.add(args.gate->bias + col, num_cols, gate);
        kernels.gate_up(gate, up, num_cols, gelu, values);
      } else {
        kernels.activate(up, num_cols, gelu, values);
      }
      if (out.quants == nullptr) continue;
      const int64_t block = t * (width / 32) + col / 32;
      kernels.quantize(values, num_cols, out.quants + t * width + col, out.scales + block,
                       out.sums + block);
    }
  };
  exec.pool().ParallelFor(CeilDiv(num_pairs, pairs_a_chunk) * num_blocks, chunk_fn);
}

void NormLmHead(Exec& exec, const NormLmHeadArgs& args, ConstMatrixF32 residual,
                const BatchView& batch, int64_t first, MatrixF32 logits) {
  const LinearKernels& kernels = KernelsFor(exec);
  NormRows(exec, args.norm, logits.rows, Quantized(*args.head),
           [&](int64_t i) { return residual.row(batch.logit_tokens[first + i]); });
  ForProduct(exec, *args.head, WorkspaceOf(exec).normed, logits.rows,
             [&](int64_t i, int64_t col, int64_t num_cols, float* values) {
               if (args.scale != 1.0f) kernels.scale(args.scale, num_cols, values);
               if (args.softcap > 0.0f) kernels.softcap(args.softcap, num_cols, values);
               std::memcpy(logits.row(i) + col, values,
                           static_cast<size_t>(num_cols) * sizeof(float));
             });
}

}  // namespace sluice::kernels::cpu
