#include "kernels/cuda/cuda_ops.h"

#include <algorithm>
#include <string>

#include "kernels/core/check.h"
#include "kernels/core/status.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_row.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/workspace.h"

namespace sluice::kernels::cuda {
namespace {

PackedView ViewOf(const PackedWeight& weight) {
  return cuda::ViewOf(PackedLayout::Of(weight.type, weight.rows, weight.cols),
                      weight.storage.bytes());
}

DeviceNorm ToDevice(const Norm& norm) { return {norm.weight, norm.bias, norm.epsilon, norm.kind}; }

OperandRows RowsOf(const Activation& activation, int64_t num_tokens) {
  return {reinterpret_cast<uint4*>(activation.operands), activation.factors,
          static_cast<int32_t>((activation.cols + kUnitCols - 1) / kUnitCols),
          OperandGroups(num_tokens)};
}
OperandRows NormedRows(const CudaWorkspace& workspace, int64_t num_rows) {
  OperandRows rows = workspace.normed;
  rows.groups = OperandGroups(num_rows);
  return rows;
}

// A lone token's rows are made by the product that reads them, unless somebody watches. On Hopper
// cards only short ones: wide products are quicker on the path of several tokens (H200, Q4_K
// [37888 x 3584] as gate and up 54 us instead of 94), their rows not worth making in every block.
bool Lone(Exec& exec, int64_t num_tokens, int64_t cols) {
  const int64_t most =
      WorkspaceOf(exec).linear_device.has_wgmma ? 2048 : kMaxLoneRowUnits * kUnitCols;
  return num_tokens == 1 && exec.observer() == nullptr && cols <= most;
}

LinearTask TaskOf(const Linear& linear, float* out, int64_t stride) {
  LinearTask task;
  task.weight = ViewOf(*linear.weight);
  task.bias = linear.bias;
  task.out = out;
  task.out_stride = static_cast<int32_t>(stride);
  return task;
}

LinearRowArgs LoneProduct(const LinearArgs& product, RowSource source, int64_t cols) {
  LinearRowArgs row;
  std::copy(std::begin(product.tasks), std::end(product.tasks), std::begin(row.tasks));
  row.num_tasks = product.num_tasks;
  row.scale = product.scale;
  row.add_to_out = product.add_to_out;
  row.source = source;
  row.units = static_cast<int32_t>((cols + kUnitCols - 1) / kUnitCols);
  return row;
}

// The product of normed rows with the tasks of `product`.
absl::Status NormedProduct(Exec& exec, const NormRowsArgs& norm, LinearArgs product) {
  CudaWorkspace& workspace = WorkspaceOf(exec);
  if (Lone(exec, norm.num_rows, norm.cols)) {
    LinearRowArgs row = LoneProduct(product, RowSource::kNorm, norm.cols);
    row.norm = norm;
    return LaunchLinearRow(row, workspace.stream);
  }
  RETURN_IF_ERROR(LaunchNormRows(norm, workspace.stream));
  product.input = norm.out;
  product.num_tokens = norm.num_rows;
  return workspace.tuner.Launch(product, workspace.linear_device, workspace.stream);
}

}  // namespace

absl::Status EmbedTokens(Exec& exec, const PackedWeight& table, float scale,
                         std::span<const Rope> ropes, const BatchView& batch, MatrixF32 residual) {
  CudaWorkspace& workspace = WorkspaceOf(exec);
  EmbedArgs args;
  args.table = ViewOf(table);
  args.scale = scale;
  args.tokens = batch.tokens;
  args.positions = batch.positions;
  args.previous_tokens = batch.previous_tokens;
  args.num_tokens = static_cast<int32_t>(batch.num_tokens);
  args.residual = residual.values;
  args.num_ropes = static_cast<int32_t>(ropes.size());
  for (size_t i = 0; i < ropes.size(); ++i) {
    const Rope& rope = ropes[i];
    CudaWorkspace::RopeTable& kept = workspace.ropes[i];
    const int64_t half = rope.rotary_size / 2;
    if (kept.source != rope.inverse_frequencies) {
      RETURN_IF_ERROR(CopyToDevice(kept.frequencies, rope.inverse_frequencies,
                                   static_cast<size_t>(half) * sizeof(float)));
      kept.source = rope.inverse_frequencies;
    }
    args.ropes[i] = {kept.frequencies, static_cast<int32_t>(half), rope.magnitude, kept.rotations};
  }
  if (workspace.recorder != nullptr) return workspace.recorder->Embed(args);
  return LaunchEmbed(args, workspace.stream);
}

absl::Status NormQkvRopeStore(Exec& exec, const NormQkvRopeStoreArgs& args, ConstMatrixF32 residual,
                              const BatchView& batch, const KvLayer& kv, MatrixF32 q_out) {
  CudaWorkspace& workspace = WorkspaceOf(exec);
  if (workspace.recorder != nullptr) return workspace.recorder->Qkv(args, kv);
  const auto num_tokens = static_cast<int32_t>(batch.num_tokens);
  const NormRowsArgs norm = {.source = residual.values,
                             .num_rows = num_tokens,
                             .cols = static_cast<int32_t>(residual.cols),
                             .norm = ToDevice(args.norm),
                             .out = NormedRows(workspace, num_tokens)};
  const int64_t q_width = args.q->outputs();
  const int64_t kv_width = args.k->outputs();
  const int64_t width = q_width + 2 * kv_width;
  LinearArgs product;
  product.tasks[0] = TaskOf(*args.q, workspace.qkv, width);
  product.tasks[1] = TaskOf(*args.k, workspace.qkv + q_width, width);
  product.tasks[2] = TaskOf(*args.v, workspace.qkv + q_width + kv_width, width);
  product.num_tasks = 3;
  RETURN_IF_ERROR(NormedProduct(exec, norm, product));
  RopeStoreArgs rope;
  rope.qkv = workspace.qkv;
  rope.num_tokens = num_tokens;
  rope.num_heads = static_cast<int32_t>(q_width / args.head_size);
  rope.num_kv_heads = static_cast<int32_t>(kv_width / args.head_size);
  rope.head_size = static_cast<int32_t>(args.head_size);
  rope.q_norm = ToDevice(args.q_head_norm);
  rope.k_norm = ToDevice(args.k_head_norm);
  rope.style = args.rope.style;
  rope.half = static_cast<int32_t>(args.rope.rotary_size / 2);
  rope.rotations = workspace.ropes[static_cast<size_t>(args.rope_index)].rotations;
  rope.positions = batch.positions;
  rope.token_rows = workspace.device.token_rows;
  rope.page_begins = batch.page_begins;
  rope.pages = batch.pages;
  rope.kv = kv;
  rope.q_out = q_out.values;
  return LaunchRopeStore(rope, workspace.stream);
}

absl::Status PagedAttention(Exec& exec, const PagedAttentionArgs& args, ConstMatrixF32 q,
                            const BatchView& batch, const KvLayer& kv, Activation& out) {
  if (kv.head_size > kMaxHeadSize) {
    return absl::UnimplementedError("attention: expected heads of at most " +
                                    std::to_string(kMaxHeadSize) + " values, got " +
                                    std::to_string(kv.head_size));
  }
  CudaWorkspace& workspace = WorkspaceOf(exec);
  if (workspace.recorder != nullptr) return workspace.recorder->Attention(args);
  AttentionArgs attention;
  attention.q = q.values;
  attention.num_heads = static_cast<int32_t>(q.cols / kv.head_size);
  attention.op = args;
  attention.kv = kv;
  attention.items = workspace.device.items;
  attention.num_items = workspace.device.num_items;
  attention.max_parts = workspace.max_parts;
  attention.num_multiprocessors =
      static_cast<int32_t>(workspace.attention_shape.num_multiprocessors);
  attention.has_wgmma = workspace.linear_device.has_wgmma;
  attention.blocks = workspace.device.blocks;
  attention.num_blocks = workspace.plan.num_blocks;
  attention.block_queries = workspace.plan.block_queries;
  attention.num_tokens = static_cast<int32_t>(batch.num_tokens);
  attention.positions = batch.positions;
  attention.pages = batch.pages;
  attention.slots = workspace.device.slots;
  attention.partials = workspace.partials;
  attention.values = out.values;
  attention.out = RowsOf(out, batch.num_tokens);
  RETURN_IF_ERROR(LaunchAttention(attention, workspace.stream));
  if (Lone(exec, batch.num_tokens, q.cols)) {
    workspace.deferred = RowSource::kAttention;
    workspace.deferred_attention = attention;
    return absl::OkStatus();
  }
  workspace.deferred.reset();
  return LaunchAttentionRows(attention, workspace.stream);
}

absl::Status MatMulAddResidual(Exec& exec, const MatMulAddResidualArgs& args,
                               const Activation& input, const BatchView& batch,
                               MatrixF32 residual) {
  CudaWorkspace& workspace = WorkspaceOf(exec);
  if (workspace.recorder != nullptr) return workspace.recorder->AddResidual(args);
  const bool normed = args.post_norm.weight != nullptr;
  LinearArgs product;
  product.tasks[0] =
      TaskOf(*args.linear, normed ? workspace.product : residual.values, residual.cols);
  product.num_tasks = 1;
  product.input = RowsOf(input, batch.num_tokens);
  product.num_tokens = static_cast<int32_t>(batch.num_tokens);
  product.scale = args.scale;
  product.add_to_out = !normed;
  if (workspace.deferred.has_value()) {
    LinearRowArgs row = LoneProduct(product, *workspace.deferred, input.cols);
    row.gate = workspace.deferred_gate;
    row.attention = workspace.deferred_attention;
    workspace.deferred.reset();
    RETURN_IF_ERROR(LaunchLinearRow(row, workspace.stream));
  } else {
    RETURN_IF_ERROR(workspace.tuner.Launch(product, workspace.linear_device, workspace.stream));
  }
  if (!normed) return absl::OkStatus();
  return LaunchAddNorm({.source = workspace.product,
                        .residual = residual.values,
                        .num_rows = static_cast<int32_t>(batch.num_tokens),
                        .cols = static_cast<int32_t>(residual.cols),
                        .scale = args.scale,
                        .norm = ToDevice(args.post_norm)},
                       workspace.stream);
}

absl::Status NormGateUpSwiglu(Exec& exec, const NormGateUpArgs& args, ConstMatrixF32 residual,
                              const BatchView& batch, Activation& out) {
  CudaWorkspace& workspace = WorkspaceOf(exec);
  if (workspace.recorder != nullptr) return workspace.recorder->GateUp(args);
  const auto num_tokens = static_cast<int32_t>(batch.num_tokens);
  const NormRowsArgs norm = {.source = residual.values,
                             .num_rows = num_tokens,
                             .cols = static_cast<int32_t>(residual.cols),
                             .norm = ToDevice(args.norm),
                             .out = NormedRows(workspace, num_tokens)};
  LinearArgs product;
  // One kernel makes act(gate) * up of both products, a second only operands of them.
  product.gated = args.gate != nullptr && args.gate->weight->type == args.up->weight->type &&
                  !Lone(exec, num_tokens, residual.cols) && FusesGate(workspace.linear_device);
  product.activation = args.activation;
  product.tasks[product.num_tasks++] =
      TaskOf(*args.up, product.gated ? out.values : workspace.up, out.cols);
  if (args.gate != nullptr) {
    product.tasks[product.num_tasks++] = TaskOf(*args.gate, workspace.gate, out.cols);
  }
  RETURN_IF_ERROR(NormedProduct(exec, norm, product));
  if (product.gated) {
    workspace.deferred.reset();
    return LaunchNormRows({.source = out.values,
                           .num_rows = num_tokens,
                           .cols = static_cast<int32_t>(out.cols),
                           .out = RowsOf(out, num_tokens)},
                          workspace.stream);
  }
  const GateRowsArgs gate = {.gate = args.gate == nullptr ? nullptr : workspace.gate,
                             .up = workspace.up,
                             .num_rows = num_tokens,
                             .cols = static_cast<int32_t>(out.cols),
                             .activation = args.activation,
                             .values = out.values,
                             .out = RowsOf(out, num_tokens)};
  if (Lone(exec, num_tokens, out.cols)) {
    workspace.deferred = RowSource::kGate;
    workspace.deferred_gate = gate;
    return absl::OkStatus();
  }
  workspace.deferred.reset();
  return LaunchGateRows(gate, workspace.stream);
}

absl::Status NormLmHead(Exec& exec, const NormLmHeadArgs& args, ConstMatrixF32 residual,
                        const BatchView& batch, int64_t first, MatrixF32 logits) {
  CudaWorkspace& workspace = WorkspaceOf(exec);
  if (workspace.recorder != nullptr) return workspace.recorder->Head(args, logits);
  const auto num_rows = static_cast<int32_t>(logits.rows);
  const NormRowsArgs norm = {.source = residual.values,
                             .indices = batch.logit_tokens + first,
                             .num_rows = num_rows,
                             .cols = static_cast<int32_t>(residual.cols),
                             .norm = ToDevice(args.norm),
                             .out = NormedRows(workspace, num_rows)};
  LinearArgs product;
  product.tasks[0] = TaskOf(*args.head, logits.values, logits.cols);
  product.num_tasks = 1;
  RETURN_IF_ERROR(NormedProduct(exec, norm, product));
  if (args.scale == 1.0f && args.softcap == 0.0f) return absl::OkStatus();
  return LaunchCapLogits(logits.values, logits.rows * logits.cols, args.scale, args.softcap,
                         workspace.stream);
}

}  // namespace sluice::kernels::cuda
