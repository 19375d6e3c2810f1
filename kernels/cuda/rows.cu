// A block of threads for a token or two (embedding, norms, gates): reads and writes a few rows of
// f32, all of them in L2. Figures: docs/performance.md.

#include "kernels/cuda/device.h"
#include "kernels/cuda/head_rows.cuh"
#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/packed_value.cuh"
#include "kernels/cuda/quad_row.cuh"
#include "kernels/cuda/row_sources.cuh"
#include "kernels/cuda/rows.h"

namespace sluice::kernels::cuda {
namespace {

__global__ void __launch_bounds__(kRowThreads)
    embed_tokens(const __grid_constant__ EmbedArgs args) {
  let_next_start();
  wait_for_previous();
  const int t = blockIdx.x;
  int token = args.tokens[t];
  if (token < 0) token = __ldcg(args.previous_tokens + ~token);
  token = max(0, min(args.table.rows - 1, token));
  float* out = args.residual + static_cast<int64_t>(t) * args.table.cols;
  for (int k = threadIdx.x; k < args.table.cols; k += kRowThreads) {
    out[k] = __fmul_rn(args.scale, packed_value(args.table, token, k));
  }
  const float position = static_cast<float>(args.positions[t]);
  for (int r = 0; r < args.num_ropes; ++r) {
    const EmbedArgs::RopeTable& rope = args.ropes[r];
    for (int i = threadIdx.x; i < rope.half; i += kRowThreads) {
      rope.rotations[static_cast<int64_t>(t) * rope.half + i] =
          rotation_of(position, rope.inverse_frequencies[i], rope.magnitude);
    }
  }
}

__global__ void unpack_row(PackedView weight, int row, float* out) {
  for (int k = threadIdx.x; k < weight.cols; k += blockDim.x) out[k] = packed_value(weight, row, k);
}

__global__ void __launch_bounds__(kRowThreads)
    norm_rows(const __grid_constant__ NormRowsArgs args) {
  extern __shared__ float values[];
  __shared__ float shared[16];
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.x;
  const int shift = load_norm_row(args, row, values, shared);
  write_operand_row(values, shift, row, args.out);
}

// norm_rows of rows that fit the registers, as they are or after an RMS norm without a bias: the
// same bits, for threads have the same columns. (What lies behind the columns of a row whose norm
// is not finite is not zero: no more is its product.)
template <int kQuads, int kRows>
__global__ void __launch_bounds__(kRows* kRowThreads)
    quad_rows(const __grid_constant__ NormRowsArgs args) {
  using Row = QuadRow<kQuads, kRows>;
  __shared__ typename Row::Shared shared;
  let_next_start();
  Row weights;
  const bool normed = args.norm.weight != nullptr;
  if (normed) {
    weights.load(args.norm.weight, args.cols, [](const float4* at) { return __ldg(at); });
  }
  wait_for_previous();
  const int first = static_cast<int>(blockIdx.x) * kRows;
  const int row = min(first + Row::row(), args.num_rows - 1);
  const int64_t from = args.indices != nullptr ? args.indices[row] : row;
  Row values;
  values.load(args.source + from * args.cols, args.cols,
              [](const float4* at) { return __ldcg(at); });
  if (!normed) {
    const int shift = shift_of(Row::sum_max(0.0f, values.most(), shared).y);
    values.write(shift, first, args.num_rows, args.out, shared);
    return;
  }
  float squares = 0.0f;
  values.for_each([&](float value) { squares = __fmaf_rn(value, value, squares); });
  const auto multiply = [](const float4& a, const float4& b) {
    return make_float4(__fmul_rn(a.x, b.x), __fmul_rn(a.y, b.y), __fmul_rn(a.z, b.z),
                       __fmul_rn(a.w, b.w));
  };
  Row products;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    products.quads[i] = multiply(values.quads[i], weights.quads[i]);
  }
  const float2 both = Row::sum_max(squares, products.most(), shared);
  const float inverse = inverse_rms(both.x, args.cols, args.norm.epsilon);
  const float4 inverses = make_float4(inverse, inverse, inverse, inverse);
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    products.quads[i] = multiply(multiply(values.quads[i], inverses), weights.quads[i]);
  }
  products.write(shift_of(__fmul_rn(both.y, inverse)), first, args.num_rows, args.out, shared);
}

// Operands of wide rows as they are, in the registers of a block: one row, or two of which lanes
// have the same columns in turn (QuadRow says why). All columns are on their way at once, eight to
// a thread and chunk. H200, 2,048 rows of 18,944 columns: 62 us, 3.8 TB/s; one row a block 118 to
// 143.
constexpr int kWideThreads = 512;
constexpr int WideChunks(int cols, int rows) {
  const int step = 8 * kWideThreads / rows;
  return (cols + step - 1) / step;
}

template <int kChunks, int kRows>
__global__ void __launch_bounds__(kWideThreads, kChunks <= 5 ? 2 : 1)
    wide_rows(const __grid_constant__ NormRowsArgs args) {
  constexpr int kThreads = kWideThreads / kRows;  // of a row
  __shared__ float of_warps[kWideThreads / 32][kRows];
  let_next_start();
  wait_for_previous();
  const int place = static_cast<int>(threadIdx.x) % kRows;
  const int thread = static_cast<int>(threadIdx.x) / kRows;
  const int row = static_cast<int>(blockIdx.x) * kRows + place;
  const bool exists = row < args.num_rows;
  const float* source = args.source + static_cast<int64_t>(row) * args.cols;
  float4 values[kChunks][2];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int k = 8 * (thread + c * kThreads);
    values[c][0] = values[c][1] = float4{};
    if (!exists || k >= args.cols) continue;
    const auto* from = reinterpret_cast<const float4*>(source + k);
    values[c][0] = __ldcg(from);
    values[c][1] = __ldcg(from + 1);
  }
  float most = 0.0f;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (const float4& v : values[c]) {
      most = fmaxf(fmaxf(most, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
    }
  }
#pragma unroll
  for (int offset = 16; offset >= kRows; offset /= 2) {
    most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  }
  if (threadIdx.x % 32 < kRows) of_warps[threadIdx.x / 32][place] = most;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWideThreads / 32; ++i) most = fmaxf(most, of_warps[i][place]);
  const int shift = shift_of(most);
  if (!exists) return;
  if (thread == 0) args.out.factors[row] = power_of_two(-shift);
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int chunk = thread + c * kThreads;
    if (chunk >= args.out.units * 8) continue;
    *operand_place(args.out, row, chunk) =
        operand_chunk(values[c][0], values[c][1], power_of_two(shift));
  }
}

__global__ void __launch_bounds__(kRowThreads)
    gate_rows(const __grid_constant__ GateRowsArgs args) {
  extern __shared__ float values[];
  __shared__ float shared[16];
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.x;
  load_gate_row(args, row, values, args.values);
  write_operand_row(values, operand_shift(values, args.out.units, shared), row, args.out);
}

__global__ void __launch_bounds__(kRowThreads) add_norm(const __grid_constant__ AddNormArgs args) {
  extern __shared__ float values[];
  __shared__ float shared[16];
  let_next_start();
  wait_for_previous();
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * args.cols;
  for (int k = threadIdx.x; k < args.cols; k += kRowThreads) {
    values[k] = __ldcg(args.source + begin + k);
  }
  const int units = (args.cols + kUnitCols - 1) / kUnitCols;
  clear_padding(values, args.cols, units);
  __syncthreads();
  norm_values(values, args.cols, units, args.norm, shared);
  for (int k = threadIdx.x; k < args.cols; k += kRowThreads) {
    float* to = args.residual + begin + k;
    *to = __fadd_rn(__ldcg(to), __fmul_rn(args.scale, values[k]));
  }
}

__global__ void cap_logits(float* logits, int64_t n, float scale, float softcap) {
  let_next_start();
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float x = __fmul_rn(scale, __ldcg(logits + i));
  logits[i] = softcap > 0.0f ? soft_cap(x, softcap) : x;
}

// Rows of up to 56,000 values.
template <typename Args>
absl::Status LaunchRows(void (*kernel)(Args), const Args& args, int num_rows, int cols,
                        std::string_view name, cudaStream_t stream) {
  const size_t bytes = static_cast<size_t>((cols + kUnitCols - 1) / kUnitCols) * kUnitCols * 4;
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(num_rows)),
                             .block = dim3(kRowThreads),
                             .shared_bytes = bytes};
  return ToStatus(Launch(stream, shape, kernel, args), name);
}

// Up to so many rows a block takes one, for they do not fill the card.
constexpr int kFewRows = 192;
// Up to so many columns of a row as it is threads have quads, beyond them chunks of eight.
constexpr int kMostPlainQuadCols = 4096;

template <int kQuads>
absl::Status LaunchQuadRows(const NormRowsArgs& args, cudaStream_t stream) {
  const int rows = args.num_rows > kFewRows ? 2 : 1;
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>((args.num_rows + rows - 1) / rows)),
                             .block = dim3(static_cast<unsigned>(rows * kRowThreads))};
  return ToStatus(
      Launch(stream, shape, rows == 2 ? quad_rows<kQuads, 2> : quad_rows<kQuads, 1>, args),
      "quad_rows");
}

template <int kChunks, int kRows>
absl::Status LaunchWideRows(const NormRowsArgs& args, cudaStream_t stream) {
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>((args.num_rows + kRows - 1) / kRows)),
      .block = dim3(kWideThreads)};
  return ToStatus(Launch(stream, shape, wide_rows<kChunks, kRows>, args), "wide_rows");
}

const KernelModule kModule(embed_tokens);

}  // namespace

absl::Status LaunchEmbed(const EmbedArgs& args, cudaStream_t stream) {
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(args.num_tokens)),
                             .block = dim3(kRowThreads)};
  return ToStatus(Launch(stream, shape, embed_tokens, args), "embed_tokens");
}

absl::Status LaunchUnpackRow(const PackedView& weight, int64_t row, float* out,
                             cudaStream_t stream) {
  unpack_row<<<1, kRowThreads, 0, stream>>>(weight, static_cast<int>(row), out);
  return ToStatus(cudaGetLastError(), "unpack_row");
}

absl::Status LaunchNormRows(const NormRowsArgs& args, cudaStream_t stream) {
  const DeviceNorm& norm = args.norm;
  const bool plain = norm.weight == nullptr;
  const auto aligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
  if (aligned(args.source) &&
      (plain || (norm.kind == NormKind::kRms && norm.bias == nullptr && aligned(norm.weight)))) {
    switch (plain && args.cols > kMostPlainQuadCols ? 0 : RowQuads(args.cols)) {
      case 1:
        return LaunchQuadRows<1>(args, stream);
      case 2:
        return LaunchQuadRows<2>(args, stream);
      case 4:
        return LaunchQuadRows<4>(args, stream);
      case kMostRowQuads:
        return LaunchQuadRows<kMostRowQuads>(args, stream);
      default:
        break;
    }
    if (plain && args.indices == nullptr && args.cols % 8 == 0) {
      const int chunks = WideChunks(args.cols, 2);
      if (args.num_rows > kFewRows && chunks <= 3) return LaunchWideRows<3, 2>(args, stream);
      if (args.num_rows > kFewRows && chunks <= 5) return LaunchWideRows<5, 2>(args, stream);
      if (args.num_rows > kFewRows && chunks <= 10) return LaunchWideRows<10, 2>(args, stream);
      const int lone_chunks = WideChunks(args.cols, 1);
      if (lone_chunks <= 3) return LaunchWideRows<3, 1>(args, stream);
      if (lone_chunks <= 5) return LaunchWideRows<5, 1>(args, stream);
      if (lone_chunks <= 8) return LaunchWideRows<8, 1>(args, stream);
    }
  }
  return LaunchRows(norm_rows, args, args.num_rows, args.cols, "norm_rows", stream);
}

absl::Status LaunchGateRows(const GateRowsArgs& args, cudaStream_t stream) {
  return LaunchRows(gate_rows, args, args.num_rows, args.cols, "gate_rows", stream);
}

absl::Status LaunchAddNorm(const AddNormArgs& args, cudaStream_t stream) {
  return LaunchRows(add_norm, args, args.num_rows, args.cols, "add_norm", stream);
}

absl::Status LaunchCapLogits(float* logits, int64_t n, float scale, float softcap,
                             cudaStream_t stream) {
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>((n + 255) / 256)),
                             .block = dim3(256)};
  return ToStatus(Launch(stream, shape, cap_logits, logits, n, scale, softcap), "cap_logits");
}

}  // namespace sluice::kernels::cuda
