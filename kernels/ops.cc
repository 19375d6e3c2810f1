#include "kernels/ops.h"

#include <cmath>
#include <string>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/core/status.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/ref/ref_ops.h"

namespace sluice::kernels {
namespace {

absl::Status Invalid(std::string_view op, const std::string& message) {
  return absl::InvalidArgumentError(std::string(op) + ": " + message);
}

// Appended piece by piece: GCC 12 warns about a literal put in front of a string (GCC bug 105651).
// The arrays of a step lie where the host can read them.
bool OnHost(const Exec& exec) { return exec.backend() != Backend::kCuda; }

std::string Shape(int64_t rows, int64_t cols) {
  std::string shape = "[";
  shape.append(std::to_string(rows)).append(", ").append(std::to_string(cols)).append("]");
  return shape;
}

absl::Status ExpectShape(std::string_view op, std::string_view what, int64_t rows, int64_t cols,
                         int64_t want_rows, int64_t want_cols) {
  if (rows == want_rows && cols == want_cols) return absl::OkStatus();
  return Invalid(op, std::string(what) + ": expected " + Shape(want_rows, want_cols) + ", got " +
                         Shape(rows, cols));
}

absl::Status ExpectLinear(std::string_view op, std::string_view what, const Exec& exec,
                          const Linear* linear, int64_t inputs, int64_t outputs) {
  if (linear == nullptr || linear->weight == nullptr) {
    return Invalid(op, std::string(what) + ": expected a weight, got none");
  }
  if (linear->weight->backend != exec.backend()) {
    return Invalid(op, std::string(what) + ": expected a weight packed for backend " +
                           std::string(Name(exec.backend())) + ", got one for " +
                           std::string(Name(linear->weight->backend)));
  }
  return ExpectShape(op, what, linear->outputs(), linear->inputs(), outputs, inputs);
}

// A workspace that holds the step, and arrays for as many rows as the batch says.
absl::Status ExpectStep(std::string_view op, const Exec& exec, const BatchView& batch) {
  if (exec.workspace() == nullptr) {
    return absl::FailedPreconditionError(std::string(op) + ": ReserveWorkspace must come first");
  }
  const WorkspaceShape& shape = exec.workspace_shape();
  if (batch.num_tokens < 0 || batch.num_tokens > shape.max_tokens) {
    return Invalid(op, "expected at most " + std::to_string(shape.max_tokens) +
                           " tokens a step, got " + std::to_string(batch.num_tokens));
  }
  return absl::OkStatus();
}

absl::Status ExpectRope(std::string_view op, const Exec& exec, const Rope& rope) {
  const int64_t head_size = exec.workspace_shape().head_size;
  if (rope.rotary_size < 0 || rope.rotary_size % 2 != 0 || rope.rotary_size > head_size) {
    return Invalid(op, "rotary size: expected an even number up to the head size " +
                           std::to_string(head_size) + ", got " + std::to_string(rope.rotary_size));
  }
  if (rope.rotary_size > 0 && rope.inverse_frequencies == nullptr) {
    return Invalid(op, "rope: expected " + std::to_string(rope.rotary_size / 2) +
                           " inverse frequencies, got none");
  }
  return absl::OkStatus();
}

absl::Status ExpectNorm(std::string_view op, std::string_view what, const Norm& norm) {
  const std::string name(what);
  if (!(norm.epsilon >= 0.0f) || !std::isfinite(norm.epsilon)) {
    return Invalid(
        op, name + ": expected an epsilon of at least 0, got " + std::to_string(norm.epsilon));
  }
  if (norm.bias == nullptr) return absl::OkStatus();
  if (norm.weight == nullptr) return Invalid(op, name + ": expected a weight beside the bias");
  if (norm.kind == NormKind::kRms) {
    return Invalid(op, name + ": expected no bias: an RMS norm has none");
  }
  return absl::OkStatus();
}

absl::Status ExpectScale(std::string_view op, float scale) {
  if (std::isfinite(scale)) return absl::OkStatus();
  return Invalid(op, "scale: expected a finite number, got " + std::to_string(scale));
}

absl::Status ExpectSoftcap(std::string_view op, float softcap) {
  if (softcap >= 0.0f && std::isfinite(softcap)) return absl::OkStatus();
  return Invalid(op,
                 "softcap: expected a finite number of at least 0, got " + std::to_string(softcap));
}

// Every token belongs to a row and has an entry of its row's page table; when num_pages >= 0, that
// entry is a page of the pool.
absl::Status ExpectRows(std::string_view op, const BatchView& batch, int64_t num_pages) {
  if (batch.num_tokens == 0) return absl::OkStatus();
  if (batch.num_rows < 1 || batch.row_begins[0] != 0 ||
      batch.row_begins[batch.num_rows] != batch.num_tokens) {
    return Invalid(op, "expected rows that cover all " + std::to_string(batch.num_tokens) +
                           " tokens, got " + std::to_string(batch.num_rows) + " rows");
  }
  for (int64_t row = 0; row < batch.num_rows; ++row) {
    const int64_t num_entries = batch.page_begins[row + 1] - batch.page_begins[row];
    for (int32_t t = batch.row_begins[row]; t < batch.row_begins[row + 1]; ++t) {
      const int32_t position = batch.positions[t];
      if (position < 0 || position / kPageTokens >= num_entries) {
        return Invalid(op, "token " + std::to_string(t) + ": position " + std::to_string(position) +
                               " is outside the " + std::to_string(num_entries) +
                               " pages of its row");
      }
      const int32_t page = batch.pages[batch.page_begins[row] + position / kPageTokens];
      if (page < 0 || page >= num_pages) {
        return Invalid(op, "token " + std::to_string(t) + ": expected a page below " +
                               std::to_string(num_pages) + ", got " + std::to_string(page));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ExpectKv(std::string_view op, const Exec& exec, const KvLayer& kv) {
  if (kv.type != DType::kF16 && kv.type != DType::kF32 && OnHost(exec)) {
    return absl::UnimplementedError(std::string(op) + ": a KV cache of type " +
                                    std::string(Name(kv.type)) + "; F16 and F32 are built");
  }
  const WorkspaceShape& shape = exec.workspace_shape();
  return ExpectShape(op, "KV cache [heads, head size]", kv.num_kv_heads, kv.head_size,
                     shape.num_kv_heads, shape.head_size);
}

void ObserveHost(Exec& exec, std::string_view op, const float* values, int64_t rows, int64_t cols) {
  exec.observer()->OnOp(op, exec.layer(), {values, static_cast<size_t>(rows * cols)}, rows, cols);
}

// Tells the observer, once the device is done. A device's error.
absl::Status Observe(Exec& exec, std::string_view op, const float* values, int64_t rows,
                     int64_t cols) {
  if (exec.observer() == nullptr) return absl::OkStatus();
  std::vector<float> copy;
  if (!OnHost(exec)) {
    copy.resize(static_cast<size_t>(rows * cols));
    const absl::Status status = cuda::CopyFromDevice(copy.data(), values, copy.size() * 4);
    if (!status.ok()) return status;
    values = copy.data();
  }
  ObserveHost(exec, op, values, rows, cols);
  return absl::OkStatus();
}

// The K and V that the step has just stored, read back from their pages: [T, G*D] each.
absl::Status ObserveKv(Exec& exec, const BatchView& batch, const KvLayer& kv) {
  if (exec.observer() == nullptr) return absl::OkStatus();
  const int64_t cols = kv.num_kv_heads * kv.head_size;
  std::vector<float> values(static_cast<size_t>(batch.num_tokens * cols));
  for (bool value : {false, true}) {
    if (!OnHost(exec)) {
      const absl::Status status = cuda::ReadStepKv(exec, batch, kv, value, values.data());
      if (!status.ok()) return status;
      ObserveHost(exec, value ? "v" : "k", values.data(), batch.num_tokens, cols);
      continue;
    }
    for (int64_t row = 0; row < batch.num_rows; ++row) {
      const int32_t* pages = batch.pages + batch.page_begins[row];
      const auto num_pages =
          static_cast<size_t>(batch.page_begins[row + 1] - batch.page_begins[row]);
      const int32_t begin = batch.row_begins[row];
      const auto num_tokens = static_cast<size_t>(batch.row_begins[row + 1] - begin);
      ReadKv(kv, {pages, num_pages}, {batch.positions + begin, num_tokens}, value,
             values.data() + begin * cols);
    }
    ObserveHost(exec, value ? "v" : "k", values.data(), batch.num_tokens, cols);
  }
  return absl::OkStatus();
}

// Calls the function of the Exec's backend.
template <typename CpuFn, typename RefFn, typename CudaFn>
absl::Status OnBackend(const Exec& exec, const CpuFn& cpu_fn, const RefFn& ref_fn,
                       const CudaFn& cuda_fn) {
  switch (exec.backend()) {
    case Backend::kCpu:
      cpu_fn();
      return absl::OkStatus();
    case Backend::kRef:
      ref_fn();
      return absl::OkStatus();
    case Backend::kCuda:
      return cuda_fn();
  }
  return absl::OkStatus();
}

}  // namespace

// ---------------------------------------------------------------- weights

bool SupportsWeight(Backend backend, DType type) {
  switch (backend) {
    case Backend::kCpu:
      return cpu::SupportsWeight(type);
    case Backend::kRef:
      return ref::SupportsWeight(type);
    case Backend::kCuda:
      return cuda::SupportsWeight(type);
  }
  return false;
}

int64_t PackedBytes(Backend backend, DType type, int64_t rows, int64_t cols) {
  SLUICE_KERNEL_CHECK(SupportsWeight(backend, type), "asked for supported types only");
  switch (backend) {
    case Backend::kCpu:
      return cpu::PackedBytes(type, rows, cols);
    case Backend::kRef:
      return ref::PackedBytes(type, rows, cols);
    case Backend::kCuda:
      return cuda::PackedBytes(type, rows, cols);
  }
  return 0;
}

namespace {

absl::Status ExpectWeight(Backend backend, DType type, int64_t rows, int64_t cols) {
  const std::string name(Name(type));
  if (!SupportsWeight(backend, type)) {
    return absl::UnimplementedError("backend " + std::string(Name(backend)) +
                                    " has no products for weights of type " + name);
  }
  const int block = Traits(type).block_values;
  if (rows >= 1 && cols >= 1 && cols % block == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(name + " weight: expected at least one row and columns in " +
                                    "blocks of " + std::to_string(block) + ", got " +
                                    Shape(rows, cols));
}

}  // namespace

absl::StatusOr<PackedWeight> AllocateWeight(Backend backend, DType type, int64_t rows,
                                            int64_t cols) {
  RETURN_IF_ERROR(ExpectWeight(backend, type, rows, cols));
  auto storage =
      AllocateMemory(backend, static_cast<size_t>(PackedBytes(backend, type, rows, cols)));
  if (!storage.ok()) return storage.status();
  return PackedWeight{type, backend, rows, cols, std::move(*storage)};
}

absl::StatusOr<PackedWeight> PlaceWeight(Backend backend, DType type, int64_t rows, int64_t cols,
                                         Buffer storage) {
  RETURN_IF_ERROR(ExpectWeight(backend, type, rows, cols));
  const auto needed = static_cast<size_t>(PackedBytes(backend, type, rows, cols));
  if (storage.size() < needed) {
    return absl::InvalidArgumentError(std::string(Name(type)) + " weight " + Shape(rows, cols) +
                                      ": expected storage of " + std::to_string(needed) +
                                      " bytes, got " + std::to_string(storage.size()));
  }
  return PackedWeight{type, backend, rows, cols, std::move(storage)};
}

absl::Status PackWeightRows(PackedWeight& weight, int64_t first_row, int64_t num_rows,
                            const std::byte* stored) {
  switch (weight.backend) {
    case Backend::kCpu:
      cpu::PackWeightRows(weight, first_row, num_rows, stored);
      break;
    case Backend::kRef:
      ref::PackWeightRows(weight, first_row, num_rows, stored);
      break;
    case Backend::kCuda:
      return cuda::PackWeightRows(weight, first_row, num_rows, stored);
  }
  return absl::OkStatus();
}

absl::Status UnpackWeightRow(const PackedWeight& weight, int64_t row, float* out) {
  switch (weight.backend) {
    case Backend::kCpu:
      cpu::UnpackWeightRow(weight, row, out);
      break;
    case Backend::kRef:
      ref::UnpackWeightRow(weight, row, out);
      break;
    case Backend::kCuda:
      return cuda::UnpackWeightRow(weight, row, out);
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------- ops

absl::Status ReserveWorkspace(Exec& exec, const WorkspaceShape& shape) {
  if (shape.max_tokens < 1 || shape.max_logit_rows < 1 || shape.max_rows < 1 ||
      shape.max_pages < 1 || shape.width < 1 || shape.num_heads < 1 || shape.num_kv_heads < 1 ||
      shape.head_size < 1 || shape.ffn_width < 1 || shape.vocab_size < 1) {
    return Invalid("ReserveWorkspace", "expected every size to be at least 1");
  }
  auto workspace = exec.backend() == Backend::kCpu   ? cpu::MakeWorkspace(shape, exec)
                   : exec.backend() == Backend::kRef ? ref::MakeWorkspace(shape, exec)
                                                     : cuda::MakeWorkspace(shape, exec);
  if (!workspace.ok()) return workspace.status();
  exec.set_workspace(shape, std::move(*workspace));
  return absl::OkStatus();
}

absl::Status EmbedTokens(Exec& exec, const PackedWeight& table, float scale,
                         std::span<const Rope> ropes, const BatchView& batch, MatrixF32 residual) {
  constexpr std::string_view kOp = "EmbedTokens";
  RETURN_IF_ERROR(ExpectStep(kOp, exec, batch));
  Linear as_linear;
  as_linear.weight = &table;
  RETURN_IF_ERROR(
      ExpectLinear(kOp, "table", exec, &as_linear, exec.workspace_shape().width, table.rows));
  RETURN_IF_ERROR(
      ExpectShape(kOp, "residual", residual.rows, residual.cols, batch.num_tokens, table.cols));
  RETURN_IF_ERROR(ExpectScale(kOp, scale));
  if (ropes.size() > static_cast<size_t>(kMaxRopes)) {
    return Invalid(kOp, "expected at most " + std::to_string(kMaxRopes) +
                            " tables of rotations, got " + std::to_string(ropes.size()));
  }
  for (const Rope& rope : ropes) RETURN_IF_ERROR(ExpectRope(kOp, exec, rope));
  for (int64_t t = 0; OnHost(exec) && t < batch.num_tokens; ++t) {
    int32_t token = batch.tokens[t];
    if (token < 0) {
      if (~token >= batch.num_previous) {
        return Invalid(kOp, "token " + std::to_string(t) + " refers to logit row " +
                                std::to_string(~token) + " of the previous step, which left " +
                                std::to_string(batch.num_previous) + " tokens");
      }
      token = batch.previous_tokens[~token];
    }
    if (token < 0 || token >= table.rows) {
      return Invalid(kOp, "token " + std::to_string(t) + ": expected an id below " +
                              std::to_string(table.rows) + ", got " + std::to_string(token));
    }
  }
  RETURN_IF_ERROR(OnBackend(
      exec, [&] { cpu::EmbedTokens(exec, table, scale, ropes, batch, residual); },
      [&] { ref::EmbedTokens(exec, table, scale, ropes, batch, residual); },
      [&] { return cuda::EmbedTokens(exec, table, scale, ropes, batch, residual); }));
  return Observe(exec, "embedding", residual.values, residual.rows, residual.cols);
}

absl::Status NormQkvRopeStore(Exec& exec, const NormQkvRopeStoreArgs& args, ConstMatrixF32 residual,
                              const BatchView& batch, const KvLayer& kv, MatrixF32 q_out) {
  constexpr std::string_view kOp = "NormQkvRopeStore";
  RETURN_IF_ERROR(ExpectStep(kOp, exec, batch));
  const WorkspaceShape& shape = exec.workspace_shape();
  RETURN_IF_ERROR(
      ExpectShape(kOp, "residual", residual.rows, residual.cols, batch.num_tokens, shape.width));
  const int64_t query_width = shape.num_heads * shape.head_size;
  const int64_t kv_width = shape.num_kv_heads * shape.head_size;
  if (args.head_size != shape.head_size) {
    return Invalid(kOp, "head size: expected " + std::to_string(shape.head_size) + ", got " +
                            std::to_string(args.head_size));
  }
  RETURN_IF_ERROR(ExpectLinear(kOp, "q", exec, args.q, shape.width, query_width));
  RETURN_IF_ERROR(ExpectLinear(kOp, "k", exec, args.k, shape.width, kv_width));
  RETURN_IF_ERROR(ExpectLinear(kOp, "v", exec, args.v, shape.width, kv_width));
  RETURN_IF_ERROR(ExpectNorm(kOp, "norm", args.norm));
  RETURN_IF_ERROR(ExpectNorm(kOp, "q head norm", args.q_head_norm));
  RETURN_IF_ERROR(ExpectNorm(kOp, "k head norm", args.k_head_norm));
  RETURN_IF_ERROR(ExpectRope(kOp, exec, args.rope));
  if (args.rope_index < 0 || args.rope_index >= kMaxRopes) {
    return Invalid(kOp, "rope index: expected one below " + std::to_string(kMaxRopes) + ", got " +
                            std::to_string(args.rope_index));
  }
  RETURN_IF_ERROR(ExpectKv(kOp, exec, kv));
  if (OnHost(exec)) RETURN_IF_ERROR(ExpectRows(kOp, batch, kv.num_pages));
  RETURN_IF_ERROR(ExpectShape(kOp, "q_out", q_out.rows, q_out.cols, batch.num_tokens, query_width));
  RETURN_IF_ERROR(OnBackend(
      exec, [&] { cpu::NormQkvRopeStore(exec, args, residual, batch, kv, q_out); },
      [&] { ref::NormQkvRopeStore(exec, args, residual, batch, kv, q_out); },
      [&] { return cuda::NormQkvRopeStore(exec, args, residual, batch, kv, q_out); }));
  RETURN_IF_ERROR(Observe(exec, "qkv", q_out.values, q_out.rows, q_out.cols));
  return ObserveKv(exec, batch, kv);
}

absl::Status PagedAttention(Exec& exec, const PagedAttentionArgs& args, ConstMatrixF32 q,
                            const BatchView& batch, const KvLayer& kv, Activation& out) {
  constexpr std::string_view kOp = "PagedAttention";
  RETURN_IF_ERROR(ExpectStep(kOp, exec, batch));
  RETURN_IF_ERROR(ExpectScale(kOp, args.scale));
  RETURN_IF_ERROR(ExpectSoftcap(kOp, args.softcap));
  if (args.window < 0) {
    return Invalid(kOp,
                   "window: expected at least 0 positions, got " + std::to_string(args.window));
  }
  const WorkspaceShape& shape = exec.workspace_shape();
  const int64_t width = shape.num_heads * shape.head_size;
  RETURN_IF_ERROR(ExpectShape(kOp, "q", q.rows, q.cols, batch.num_tokens, width));
  RETURN_IF_ERROR(ExpectKv(kOp, exec, kv));
  if (OnHost(exec)) RETURN_IF_ERROR(ExpectRows(kOp, batch, kv.num_pages));
  if (out.cols != width || out.max_rows < batch.num_tokens) {
    return Invalid(kOp, "out: expected room for " + Shape(batch.num_tokens, width) + ", got " +
                            Shape(out.max_rows, out.cols));
  }
  RETURN_IF_ERROR(OnBackend(
      exec, [&] { cpu::PagedAttention(exec, args, q, batch, kv, out); },
      [&] { ref::PagedAttention(exec, args, q, batch, kv, out); },
      [&] { return cuda::PagedAttention(exec, args, q, batch, kv, out); }));
  return Observe(exec, "attention", out.values, batch.num_tokens, out.cols);
}

absl::Status MatMulAddResidual(Exec& exec, const MatMulAddResidualArgs& args,
                               const Activation& input, const BatchView& batch,
                               MatrixF32 residual) {
  const bool named = args.linear != nullptr && !args.linear->name.empty();
  const std::string_view op = named ? args.linear->name : "matmul_add_residual";
  RETURN_IF_ERROR(ExpectStep(op, exec, batch));
  const int64_t width = exec.workspace_shape().width;
  RETURN_IF_ERROR(ExpectLinear(op, "weight", exec, args.linear, input.cols, width));
  RETURN_IF_ERROR(ExpectNorm(op, "post norm", args.post_norm));
  RETURN_IF_ERROR(ExpectScale(op, args.scale));
  RETURN_IF_ERROR(
      ExpectShape(op, "residual", residual.rows, residual.cols, batch.num_tokens, width));
  if (input.max_rows < batch.num_tokens) {
    return Invalid(op, "input: expected at least " + std::to_string(batch.num_tokens) +
                           " rows, got " + std::to_string(input.max_rows));
  }
  RETURN_IF_ERROR(OnBackend(
      exec, [&] { cpu::MatMulAddResidual(exec, args, input, batch, residual); },
      [&] { ref::MatMulAddResidual(exec, args, input, batch, residual); },
      [&] { return cuda::MatMulAddResidual(exec, args, input, batch, residual); }));
  return Observe(exec, op, residual.values, residual.rows, residual.cols);
}

absl::Status NormGateUpSwiglu(Exec& exec, const NormGateUpArgs& args, ConstMatrixF32 residual,
                              const BatchView& batch, Activation& out) {
  constexpr std::string_view kOp = "NormGateUpSwiglu";
  RETURN_IF_ERROR(ExpectStep(kOp, exec, batch));
  const WorkspaceShape& shape = exec.workspace_shape();
  RETURN_IF_ERROR(
      ExpectShape(kOp, "residual", residual.rows, residual.cols, batch.num_tokens, shape.width));
  RETURN_IF_ERROR(ExpectNorm(kOp, "norm", args.norm));
  if (args.gate != nullptr) {
    RETURN_IF_ERROR(ExpectLinear(kOp, "gate", exec, args.gate, shape.width, shape.ffn_width));
  }
  RETURN_IF_ERROR(ExpectLinear(kOp, "up", exec, args.up, shape.width, shape.ffn_width));
  if (out.cols != shape.ffn_width || out.max_rows < batch.num_tokens) {
    return Invalid(kOp, "out: expected room for " + Shape(batch.num_tokens, shape.ffn_width) +
                            ", got " + Shape(out.max_rows, out.cols));
  }
  RETURN_IF_ERROR(OnBackend(
      exec, [&] { cpu::NormGateUpSwiglu(exec, args, residual, batch, out); },
      [&] { ref::NormGateUpSwiglu(exec, args, residual, batch, out); },
      [&] { return cuda::NormGateUpSwiglu(exec, args, residual, batch, out); }));
  return Observe(exec, "ffn", out.values, batch.num_tokens, out.cols);
}

absl::Status NormLmHead(Exec& exec, const NormLmHeadArgs& args, ConstMatrixF32 residual,
                        const BatchView& batch, int64_t first, MatrixF32 logits) {
  constexpr std::string_view kOp = "NormLmHead";
  RETURN_IF_ERROR(ExpectStep(kOp, exec, batch));
  const WorkspaceShape& shape = exec.workspace_shape();
  RETURN_IF_ERROR(
      ExpectShape(kOp, "residual", residual.rows, residual.cols, batch.num_tokens, shape.width));
  RETURN_IF_ERROR(ExpectLinear(kOp, "head", exec, args.head, shape.width, logits.cols));
  RETURN_IF_ERROR(ExpectNorm(kOp, "norm", args.norm));
  RETURN_IF_ERROR(ExpectScale(kOp, args.scale));
  RETURN_IF_ERROR(ExpectSoftcap(kOp, args.softcap));
  if (first < 0 || logits.rows > shape.max_logit_rows ||
      first + logits.rows > batch.num_logit_rows) {
    return Invalid(kOp, "expected a slab of at most " + std::to_string(shape.max_logit_rows) +
                            " of " + std::to_string(batch.num_logit_rows) + " logit rows, got [" +
                            std::to_string(first) + ", " + std::to_string(first + logits.rows) +
                            ")");
  }
  for (int64_t i = first; OnHost(exec) && i < first + logits.rows; ++i) {
    if (batch.logit_tokens[i] < 0 || batch.logit_tokens[i] >= batch.num_tokens) {
      return Invalid(kOp, "logit row " + std::to_string(i) + ": expected a token below " +
                              std::to_string(batch.num_tokens) + ", got " +
                              std::to_string(batch.logit_tokens[i]));
    }
  }
  RETURN_IF_ERROR(OnBackend(
      exec, [&] { cpu::NormLmHead(exec, args, residual, batch, first, logits); },
      [&] { ref::NormLmHead(exec, args, residual, batch, first, logits); },
      [&] { return cuda::NormLmHead(exec, args, residual, batch, first, logits); }));
  return Observe(exec, "logits", logits.values, logits.rows, logits.cols);
}

}  // namespace sluice::kernels
