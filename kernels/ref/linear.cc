// The linear ops done naively: weights dequantised row by row to f32, sums in double.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/half.h"
#include "kernels/ref/ref_ops.h"

namespace sluice::kernels::ref {
namespace {

// Of the step's positions for one rope.
struct Rotations {
  std::vector<float> cosines;  // [T, rotary_size / 2]
  std::vector<float> sines;
  int64_t num_tokens = 0;
  int64_t rotary_size = 0;
};

struct RefWorkspace : Exec::Workspace {
  std::array<Rotations, kMaxRopes> rotations;
  std::vector<float> normed;            // [max(T, R), E]
  std::vector<float> first, second;     // outcomes of products, [T, widest]
  std::vector<std::vector<float>> row;  // one dequantised row a worker
};

RefWorkspace& WorkspaceOf(Exec& exec) { return *static_cast<RefWorkspace*>(exec.workspace()); }

// Eight partial sums: not for the result, which double makes exact enough, but for the time.
double Dot(const float* a, const float* b, int64_t n) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] += static_cast<double>(a[i + j]) * b[i + j];
  }
  for (; i < n; ++i) sums[0] += static_cast<double>(a[i]) * b[i];
  double total = 0.0;
  for (double sum : sums) total += sum;
  return total;
}

// out[t, n] = input[t] . W[n] + bias[n], rounded once. out [T, N].
void Product(Exec& exec, const Linear& linear, const float* input, int64_t num_tokens, float* out) {
  RefWorkspace& workspace = WorkspaceOf(exec);
  const int64_t cols = linear.inputs();
  const int64_t rows = linear.outputs();
  exec.pool().ParallelFor(rows, [&](int64_t n, int worker) {
    float* weight = workspace.row[static_cast<size_t>(worker)].data();
    ref::UnpackWeightRow(*linear.weight, n, weight);
    for (int64_t t = 0; t < num_tokens; ++t) {
      const double bias = linear.bias != nullptr ? linear.bias[n] : 0.0;
      out[t * rows + n] = static_cast<float>(Dot(input + t * cols, weight, cols) + bias);
    }
  });
}

// out = norm(x), n values; out may be x.
void NormRow(const Norm& norm, const float* x, int64_t n, float* out) {
  if (norm.weight == nullptr) {
    std::copy(x, x + n, out);
    return;
  }
  double mean = 0.0;
  if (norm.kind == NormKind::kLayer) {
    for (int64_t i = 0; i < n; ++i) mean += x[i];
    mean /= static_cast<double>(n);
  }
  double squares = 0.0;
  for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(n) + norm.epsilon);
  for (int64_t i = 0; i < n; ++i) {
    const double bias = norm.bias != nullptr ? norm.bias[i] : 0.0;
    out[i] = static_cast<float>((x[i] - mean) * inverse * norm.weight[i] + bias);
  }
}

void Rotate(const Rope& rope, const float* cosines, const float* sines, float* head) {
  const int64_t half = rope.rotary_size / 2;
  for (int64_t i = 0; i < half; ++i) {
    const bool interleaved = rope.style == RopeStyle::kInterleaved;
    float& first = head[interleaved ? 2 * i : i];
    float& second = head[interleaved ? 2 * i + 1 : i + half];
    const double a = first;
    const double b = second;
    first = static_cast<float>(a * cosines[i] - b * sines[i]);
    second = static_cast<float>(b * cosines[i] + a * sines[i]);
  }
}

// heads [T, num_heads * D]: norms each head when there is a `norm`, then rotates it.
void NormAndRotate(const RefWorkspace& workspace, const NormQkvRopeStoreArgs& args,
                   const Norm& norm, int64_t num_tokens, int64_t num_heads, float* heads) {
  const Rotations& rotations = workspace.rotations[static_cast<size_t>(args.rope_index)];
  const int64_t half = args.rope.rotary_size / 2;
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t h = 0; h < num_heads; ++h) {
      float* head = heads + (t * num_heads + h) * args.head_size;
      NormRow(norm, head, args.head_size, head);
      Rotate(args.rope, rotations.cosines.data() + t * half, rotations.sines.data() + t * half,
             head);
    }
  }
}

void StoreValue(const KvLayer& kv, std::byte* base, int64_t index, float value) {
  if (kv.type == DType::kF32) {
    reinterpret_cast<float*>(base)[index] = value;
  } else {
    reinterpret_cast<uint16_t*>(base)[index] = FloatToHalf(value);
  }
}

// heads [T, G * D] into the pages: K as [D, 16], V as [16, D].
void StoreHeads(const BatchView& batch, const KvLayer& kv, bool is_key, const float* heads) {
  const int64_t head_size = kv.head_size;
  for (int64_t row = 0; row < batch.num_rows; ++row) {
    for (int64_t t = batch.row_begins[row]; t < batch.row_begins[row + 1]; ++t) {
      const int64_t slot = batch.positions[t] % kPageTokens;
      const int64_t page = batch.pages[batch.page_begins[row] + batch.positions[t] / kPageTokens];
      for (int64_t g = 0; g < kv.num_kv_heads; ++g) {
        const int64_t begin = (page * kv.num_kv_heads + g) * head_size * kPageTokens;
        for (int64_t d = 0; d < head_size; ++d) {
          const float value = heads[(t * kv.num_kv_heads + g) * head_size + d];
          const int64_t inside = is_key ? d * kPageTokens + slot : slot * head_size + d;
          StoreValue(kv, is_key ? kv.k : kv.v, begin + inside, value);
        }
      }
    }
  }
}

double Activate(GateActivation activation, double x) {
  if (activation == GateActivation::kSilu) return x / (1.0 + std::exp(-x));
  constexpr double kRootTwoOverPi = 0.79788456080286535588;
  return 0.5 * x * (1.0 + std::tanh(kRootTwoOverPi * (x + 0.044715 * x * x * x)));
}

}  // namespace

bool SupportsWeight(DType) { return true; }

int64_t PackedBytes(DType type, int64_t rows, int64_t cols) { return rows * RowBytes(type, cols); }

void PackWeightRows(PackedWeight& weight, int64_t first_row, int64_t num_rows,
                    const std::byte* stored) {
  SLUICE_KERNEL_CHECK(first_row + num_rows <= weight.rows, "a piece ends inside the weight");
  const int64_t row_bytes = RowBytes(weight.type, weight.cols);
  std::memcpy(weight.storage.bytes() + first_row * row_bytes, stored,
              static_cast<size_t>(num_rows * row_bytes));
}

void UnpackWeightRow(const PackedWeight& weight, int64_t row, float* out) {
  SLUICE_KERNEL_CHECK(row >= 0 && row < weight.rows, "the row is one of the weight's");
  const int64_t row_bytes = RowBytes(weight.type, weight.cols);
  DequantizeStored(weight.type, weight.storage.bytes() + row * row_bytes, weight.cols, out);
}

absl::StatusOr<std::unique_ptr<Exec::Workspace>> MakeWorkspace(const WorkspaceShape& shape,
                                                               const Exec& exec) {
  auto workspace = std::make_unique<RefWorkspace>();
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  const int64_t max_rows = std::max(shape.max_tokens, shape.max_logit_rows);
  const int64_t heads_width = std::max(shape.num_heads, shape.num_kv_heads) * shape.head_size;
  const int64_t widest = std::max({shape.width, shape.ffn_width, heads_width});
  for (Rotations& rotations : workspace->rotations) {
    rotations.cosines.resize(size(shape.max_tokens * (shape.head_size / 2)));
    rotations.sines.resize(rotations.cosines.size());
  }
  workspace->normed.resize(size(max_rows * shape.width));
  workspace->first.resize(size(shape.max_tokens * widest));
  workspace->second.resize(size(shape.max_tokens * widest));
  const int num_workers = exec.num_threads();
  workspace->row.assign(size(num_workers), std::vector<float>(size(widest)));
  return std::unique_ptr<Exec::Workspace>(std::move(workspace));
}

void EmbedTokens(Exec& exec, const PackedWeight& table, float scale, std::span<const Rope> ropes,
                 const BatchView& batch, MatrixF32 residual) {
  RefWorkspace& workspace = WorkspaceOf(exec);
  for (int64_t t = 0; t < batch.num_tokens; ++t) {
    const int32_t token = batch.tokens[t];
    float* row = residual.row(t);
    ref::UnpackWeightRow(table, token >= 0 ? token : batch.previous_tokens[~token], row);
    for (int64_t i = 0; i < residual.cols; ++i) row[i] *= scale;
  }
  for (size_t r = 0; r < ropes.size(); ++r) {
    const Rope& rope = ropes[r];
    Rotations& rotations = workspace.rotations[r];
    rotations.num_tokens = batch.num_tokens;
    rotations.rotary_size = rope.rotary_size;
    const int64_t half = rope.rotary_size / 2;
    for (int64_t at = 0; at < batch.num_tokens * half; ++at) {
      const float position = static_cast<float>(batch.positions[at / half]);
      const double angle = position * rope.inverse_frequencies[at % half];
      const size_t index = static_cast<size_t>(at);
      rotations.cosines[index] = static_cast<float>(std::cos(angle) * rope.magnitude);
      rotations.sines[index] = static_cast<float>(std::sin(angle) * rope.magnitude);
    }
  }
}

void NormQkvRopeStore(Exec& exec, const NormQkvRopeStoreArgs& args, ConstMatrixF32 residual,
                      const BatchView& batch, const KvLayer& kv, MatrixF32 q_out) {
  RefWorkspace& workspace = WorkspaceOf(exec);
  const Rotations& rotations = workspace.rotations[static_cast<size_t>(args.rope_index)];
  SLUICE_KERNEL_CHECK(
      args.rope.rotary_size == 0 || (rotations.num_tokens == batch.num_tokens &&
                                     rotations.rotary_size == args.rope.rotary_size),
      "EmbedTokens of the same step, with this rope, comes first");
  const int64_t num_tokens = batch.num_tokens;
  float* normed = workspace.normed.data();
  for (int64_t t = 0; t < num_tokens; ++t) {
    NormRow(args.norm, residual.row(t), residual.cols, normed + t * residual.cols);
  }
  Product(exec, *args.q, normed, num_tokens, q_out.values);
  NormAndRotate(workspace, args, args.q_head_norm, num_tokens, q_out.cols / args.head_size,
                q_out.values);
  float* heads = workspace.first.data();
  Product(exec, *args.k, normed, num_tokens, heads);
  NormAndRotate(workspace, args, args.k_head_norm, num_tokens, kv.num_kv_heads, heads);
  StoreHeads(batch, kv, /*is_key=*/true, heads);
  Product(exec, *args.v, normed, num_tokens, heads);
  StoreHeads(batch, kv, /*is_key=*/false, heads);
}

void MatMulAddResidual(Exec& exec, const MatMulAddResidualArgs& args, const Activation& input,
                       const BatchView& batch, MatrixF32 residual) {
  float* added = WorkspaceOf(exec).first.data();
  Product(exec, *args.linear, input.values, batch.num_tokens, added);
  for (int64_t t = 0; t < batch.num_tokens; ++t, added += residual.cols) {
    NormRow(args.post_norm, added, residual.cols, added);
    float* row = residual.row(t);
    for (int64_t i = 0; i < residual.cols; ++i) row[i] += args.scale * added[i];
  }
}

void NormGateUpSwiglu(Exec& exec, const NormGateUpArgs& args, ConstMatrixF32 residual,
                      const BatchView& batch, Activation& out) {
  RefWorkspace& workspace = WorkspaceOf(exec);
  float* normed = workspace.normed.data();
  for (int64_t t = 0; t < batch.num_tokens; ++t) {
    NormRow(args.norm, residual.row(t), residual.cols, normed + t * residual.cols);
  }
  Product(exec, *args.up, normed, batch.num_tokens, workspace.second.data());
  if (args.gate != nullptr) {
    Product(exec, *args.gate, normed, batch.num_tokens, workspace.first.data());
  }
  for (int64_t i = 0; i < batch.num_tokens * out.cols; ++i) {
    const size_t index = static_cast<size_t>(i);
    const double up = workspace.second[index];
    out.values[i] = static_cast<float>(
        args.gate == nullptr ? Activate(args.activation, up)
                             : Activate(args.activation, workspace.first[index]) * up);
  }
}

void NormLmHead(Exec& exec, const NormLmHeadArgs& args, ConstMatrixF32 residual,
                const BatchView& batch, int64_t first, MatrixF32 logits) {
  float* normed = WorkspaceOf(exec).normed.data();
  for (int64_t i = 0; i < logits.rows; ++i) {
    NormRow(args.norm, residual.row(batch.logit_tokens[first + i]), residual.cols,
            normed + i * residual.cols);
  }
  Product(exec, *args.head, normed, logits.rows, logits.values);
  for (int64_t i = 0; i < logits.rows * logits.cols; ++i) {
    const float scaled = logits.values[i] * args.scale;
    logits.values[i] = static_cast<float>(Softcap(scaled, args.softcap));
  }
}

}  // namespace sluice::kernels::ref
