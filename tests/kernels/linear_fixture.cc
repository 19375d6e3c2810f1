#include "tests/kernels/linear_fixture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "gtest/gtest.h"

#include "kernels/core/half.h"
#include "kernels/cpu/linear.h"

namespace sluice::kernels {
namespace {

constexpr double kEpsilonF32 = 0x1p-24;

std::vector<float> RandomValues(int64_t count, float scale, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

void StoreHalf(float value, std::byte* p) {
  const uint16_t half = FloatToHalf(value);
  std::memcpy(p, &half, sizeof(half));
}

std::vector<int32_t> Iota(int64_t count) {
  std::vector<int32_t> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 0);
  return values;
}

}  // namespace

int64_t LinearSpec::num_tokens() const { return std::accumulate(rows.begin(), rows.end(), 0); }

std::string LinearSpec::Describe() const {
  std::string text = std::string(Name(type)) + " E" + std::to_string(width) + " H" +
                     std::to_string(num_heads) + " G" + std::to_string(num_kv_heads) + " D" +
                     std::to_string(head_size) + " F" + std::to_string(ffn_width) + " V" +
                     std::to_string(vocab_size) + " rotary " + std::to_string(rotary_size) +
                     (style == RopeStyle::kInterleaved ? " interleaved" : " half-split") +
                     (bias ? " bias" : "") + (head_norm ? " head-norm" : "") + " kv " +
                     std::string(Name(kv_type)) + " rows";
  for (int32_t row : rows) text += " " + std::to_string(row);
  for (const auto& other : {k_type, v_type, up_type}) {
    if (other) text += " beside " + std::string(Name(*other));
  }
  return text + " seed " + std::to_string(seed);
}

void LinearSpec::FitBlocks() {
  int block = Traits(type).block_values;
  for (const auto& other : {k_type, v_type, up_type}) {
    if (other) block = std::max(block, Traits(*other).block_values);
  }
  width = (width + block - 1) / block * block;
  while (num_heads * head_size % block != 0) num_heads += num_kv_heads;
}

ScalePlace ScalePlaceOf(DType type) {
  switch (type) {
    case DType::kQ4_1:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
      return {0, 2};
    case DType::kQ2_K:
      return {80, 82};
    case DType::kQ3_K:
      return {108};
    case DType::kQ6_K:
      return {208};
    default:
      return {0};
  }
}

StoredMatrix StoredMatrix::Random(DType type, int64_t rows, int64_t cols, bool bias,
                                  uint32_t seed) {
  std::mt19937 random(seed);
  StoredMatrix matrix{type, rows, cols, {}, {}, {}, {}};
  const int64_t row_bytes = RowBytes(type, cols);
  matrix.stored.resize(static_cast<size_t>(rows * row_bytes));
  for (std::byte& byte : matrix.stored) byte = static_cast<std::byte>(random() & 255);
  const DTypeTraits& traits = Traits(type);
  const ScalePlace place = ScalePlaceOf(type);
  std::normal_distribution<float> normal(0.0f, 0.1f);
  // Sub-scales multiply by up to 63 (127 in Q6_K).
  const float divisor = traits.block_values == 256 ? 32.0f : 1.0f;
  std::uniform_real_distribution<float> scale(0.0005f, 0.02f);
  for (size_t at = 0; at < matrix.stored.size(); at += static_cast<size_t>(traits.block_bytes)) {
    std::byte* block = &matrix.stored[at];
    if (!traits.quantized) {
      const float value = normal(random);
      if (type == DType::kF16) {
        StoreHalf(value, block);
      } else {  // the upper bytes of an F32 are the BF16
        const auto bytes = static_cast<size_t>(traits.block_bytes);
        std::memcpy(block, reinterpret_cast<const char*>(&value) + sizeof(value) - bytes, bytes);
      }
      continue;
    }
    StoreHalf(scale(random) / divisor, block + place.scale);
    // Below zero, as the values need it: added in blocks of 32, subtracted in those of 256.
    const float sign = traits.block_values == 256 ? 1.0f : -1.0f;
    if (place.minimum >= 0) StoreHalf(sign * 7.0f * scale(random) / divisor, block + place.minimum);
  }
  matrix.Dequantize();
  if (bias) matrix.bias = RandomValues(rows, 1.0f, random);
  return matrix;
}

void StoredMatrix::Dequantize() {
  values.resize(static_cast<size_t>(rows * cols));
  DequantizeStored(type, stored.data(), rows * cols, values.data());
  magnitudes.resize(values.size());
  const ScalePlace place = ScalePlaceOf(type);
  if (place.minimum < 0) {
    for (size_t i = 0; i < values.size(); ++i) magnitudes[i] = std::abs(values[i]);
    return;
  }
  // The parts one by one: with one of the two scales zero.
  const auto block_bytes = static_cast<size_t>(Traits(type).block_bytes);
  for (const int zeroed : {place.scale, place.minimum}) {
    std::vector<std::byte> part = stored;
    for (size_t at = 0; at < part.size(); at += block_bytes) {
      StoreHalf(0.0f, &part[at + static_cast<size_t>(zeroed)]);
    }
    std::vector<float> of_part(values.size());
    DequantizeStored(type, part.data(), rows * cols, of_part.data());
    for (size_t i = 0; i < values.size(); ++i) magnitudes[i] += std::abs(of_part[i]);
  }
}

PackedWeight StoredMatrix::Pack(Backend backend) const {
  auto weight = AllocateWeight(backend, type, rows, cols);
  EXPECT_TRUE(weight.ok()) << weight.status();
  // In pieces, as a loader does.
  const int64_t row_bytes = RowBytes(type, cols);
  for (int64_t row = 0; row < rows; row += 48) {
    EXPECT_TRUE(PackWeightRows(*weight, row, std::min<int64_t>(48, rows - row),
                               stored.data() + row * row_bytes)
                    .ok());
  }
  return std::move(*weight);
}

LinearInputs::LinearInputs(const LinearSpec& s) : spec(s) {
  std::mt19937 random(spec.seed);
  const auto matrix = [&](int64_t rows, int64_t cols, std::optional<DType> type = {}) {
    return StoredMatrix::Random(type.value_or(spec.type), rows, cols, spec.bias,
                                static_cast<uint32_t>(random()));
  };
  const int64_t query_width = spec.num_heads * spec.head_size;
  const int64_t kv_width = spec.num_kv_heads * spec.head_size;
  table = matrix(spec.vocab_size, spec.width);
  q = matrix(query_width, spec.width);
  k = matrix(kv_width, spec.width, spec.k_type);
  v = matrix(kv_width, spec.width, spec.v_type);
  output = matrix(spec.width, query_width);
  gate = matrix(spec.ffn_width, spec.width);
  up = matrix(spec.ffn_width, spec.width, spec.up_type);
  head = matrix(spec.vocab_size, spec.width);
  norm_weight = RandomValues(spec.width, 1.0f, random);
  q_norm = RandomValues(spec.head_size, 1.0f, random);
  k_norm = RandomValues(spec.head_size, 1.0f, random);
  residual = RandomValues(spec.num_tokens() * spec.width, 3.0f, random);
  attention = RandomValues(spec.num_tokens() * query_width, 1.0f, random);
  for (int64_t i = 0; i < spec.rotary_size / 2; ++i) {
    inverse_frequencies.push_back(static_cast<float>(
        std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(spec.rotary_size))));
  }
  row_begins.push_back(0);
  page_begins.push_back(0);
  num_pages = 1;
  for (int32_t count : spec.rows) {
    const int32_t begin = static_cast<int32_t>(random() % 40);
    for (int32_t i = 0; i < count; ++i) {
      positions.push_back(begin + i);
      tokens.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(spec.vocab_size)));
    }
    for (int32_t page = 0; page <= (begin + count - 1) / kPageTokens; ++page) {
      pages.push_back(static_cast<int32_t>(num_pages++));
    }
    row_begins.push_back(row_begins.back() + count);
    page_begins.push_back(static_cast<int32_t>(pages.size()));
  }
  std::shuffle(pages.begin(), pages.end(), random);
  logit_tokens = Iota(spec.num_tokens());
}

namespace {

float ReadStored(const KvLayer& kv, const std::byte* base, int64_t index) {
  if (kv.type == DType::kF32) return reinterpret_cast<const float*>(base)[index];
  return HalfToFloat(reinterpret_cast<const uint16_t*>(base)[index]);
}

// [T, G * D] of the tokens' positions.
std::vector<float> ReadTokens(const LinearInputs& inputs, const BatchView& batch, const KvLayer& kv,
                              bool is_key) {
  std::vector<float> out;
  for (int64_t row = 0; row < batch.num_rows; ++row) {
    for (int64_t t = batch.row_begins[row]; t < batch.row_begins[row + 1]; ++t) {
      const int64_t slot = batch.positions[t] % kPageTokens;
      const int64_t page = batch.pages[batch.page_begins[row] + batch.positions[t] / kPageTokens];
      for (int64_t g = 0; g < kv.num_kv_heads; ++g) {
        for (int64_t d = 0; d < kv.head_size; ++d) {
          const int64_t begin = (page * kv.num_kv_heads + g) * kv.head_size * kPageTokens;
          const int64_t inside = is_key ? d * kPageTokens + slot : slot * kv.head_size + d;
          out.push_back(ReadStored(kv, is_key ? kv.k : kv.v, begin + inside));
        }
      }
    }
  }
  return out;
}

Linear View(const StoredMatrix& matrix, const PackedWeight& weight) {
  Linear linear;
  linear.weight = &weight;
  linear.bias = matrix.bias.empty() ? nullptr : matrix.bias.data();
  return linear;
}

Activation MakeActivation(const Exec& exec, int64_t rows, int64_t cols) {
  auto activation = Activation::Allocate(exec.backend(), rows, cols);
  EXPECT_TRUE(activation.ok()) << activation.status();
  return std::move(*activation);
}

void FillActivation(const Exec& exec, const std::vector<float>& values, Activation& activation) {
  std::copy(values.begin(), values.end(), activation.values);
  if (activation.quants == nullptr) return;
  const int64_t cols = activation.cols;
  for (int64_t row = 0; row < activation.max_rows; ++row) {
    cpu::KernelsFor(exec).quantize(
        activation.values + row * cols, cols, activation.quants + row * cols,
        activation.scales + row * (cols / 32), activation.sums + row * (cols / 32));
  }
}

BatchView ViewBatch(const LinearInputs& inputs) {
  BatchView batch;
  batch.num_tokens = inputs.spec.num_tokens();
  batch.num_rows = static_cast<int64_t>(inputs.spec.rows.size());
  batch.num_logit_rows = batch.num_tokens;
  batch.tokens = inputs.tokens.data();
  batch.positions = inputs.positions.data();
  batch.row_begins = inputs.row_begins.data();
  batch.page_begins = inputs.page_begins.data();
  batch.pages = inputs.pages.data();
  batch.logit_tokens = inputs.logit_tokens.data();
  return batch;
}

WorkspaceShape ShapeOf(const LinearInputs& inputs) {
  const LinearSpec& spec = inputs.spec;
  WorkspaceShape shape;
  shape.max_tokens = spec.num_tokens();
  shape.max_logit_rows = spec.num_tokens();
  shape.max_rows = static_cast<int64_t>(spec.rows.size());
  shape.max_pages = inputs.num_pages;
  shape.width = spec.width;
  shape.num_heads = spec.num_heads;
  shape.num_kv_heads = spec.num_kv_heads;
  shape.head_size = spec.head_size;
  shape.ffn_width = spec.ffn_width;
  shape.vocab_size = spec.vocab_size;
  return shape;
}

void RunQkv(Exec& exec, const LinearInputs& inputs, const BatchView& batch, const Rope& rope,
            LinearOutcome& outcome) {
  const LinearSpec& spec = inputs.spec;
  const PackedWeight q = inputs.q.Pack(exec.backend());
  const PackedWeight k = inputs.k.Pack(exec.backend());
  const PackedWeight v = inputs.v.Pack(exec.backend());
  const Linear q_view = View(inputs.q, q);
  const Linear k_view = View(inputs.k, k);
  const Linear v_view = View(inputs.v, v);
  NormQkvRopeStoreArgs args;
  args.norm = {.weight = inputs.norm_weight.data(), .epsilon = kTestEpsilon};
  args.q = &q_view;
  args.k = &k_view;
  args.v = &v_view;
  if (spec.head_norm) {
    args.q_head_norm = {.weight = inputs.q_norm.data(), .epsilon = kTestEpsilon};
    args.k_head_norm = {.weight = inputs.k_norm.data(), .epsilon = kTestEpsilon};
  }
  args.rope = rope;
  args.head_size = spec.head_size;
  const int64_t kv_values = inputs.num_pages * spec.num_kv_heads * spec.head_size * kPageTokens;
  std::vector<std::byte> k_pages(static_cast<size_t>(kv_values * 4));
  std::vector<std::byte> v_pages(static_cast<size_t>(kv_values * 4));
  const KvLayer kv{spec.kv_type,   inputs.num_pages, spec.num_kv_heads,
                   spec.head_size, k_pages.data(),   v_pages.data()};
  const int64_t width = spec.num_heads * spec.head_size;
  outcome.q.resize(static_cast<size_t>(batch.num_tokens * width));
  const absl::Status status =
      NormQkvRopeStore(exec, args, {inputs.residual.data(), batch.num_tokens, spec.width}, batch,
                       kv, {outcome.q.data(), batch.num_tokens, width});
  ASSERT_TRUE(status.ok()) << status;
  outcome.k = ReadTokens(inputs, batch, kv, /*is_key=*/true);
  outcome.v = ReadTokens(inputs, batch, kv, /*is_key=*/false);
}

void RunGateUp(Exec& exec, const LinearInputs& inputs, const BatchView& batch,
               LinearOutcome& outcome) {
  const LinearSpec& spec = inputs.spec;
  const PackedWeight gate = inputs.gate.Pack(exec.backend());
  const PackedWeight up = inputs.up.Pack(exec.backend());
  const Linear gate_view = View(inputs.gate, gate);
  const Linear up_view = View(inputs.up, up);
  Activation ffn = MakeActivation(exec, batch.num_tokens, spec.ffn_width);
  const absl::Status status =
      NormGateUpSwiglu(exec,
                       {{.weight = inputs.norm_weight.data(), .epsilon = kTestEpsilon},
                        &gate_view,
                        &up_view,
                        spec.activation},
                       {inputs.residual.data(), batch.num_tokens, spec.width}, batch, ffn);
  ASSERT_TRUE(status.ok()) << status;
  const int64_t count = batch.num_tokens * spec.ffn_width;
  outcome.ffn.assign(ffn.values, ffn.values + count);
  if (ffn.quants == nullptr) return;
  outcome.ffn_quants.assign(ffn.quants, ffn.quants + count);
  outcome.ffn_scales.assign(ffn.scales, ffn.scales + count / 32);
  outcome.ffn_sums.assign(ffn.sums, ffn.sums + count / 32);
}

}  // namespace

LinearOutcome RunLinearOps(const LinearInputs& inputs, const Exec::Options& options) {
  const LinearSpec& spec = inputs.spec;
  LinearOutcome outcome;
  Exec exec(options);
  absl::Status status = ReserveWorkspace(exec, ShapeOf(inputs));
  EXPECT_TRUE(status.ok()) << status;
  const BatchView batch = ViewBatch(inputs);
  const int64_t num_tokens = batch.num_tokens;
  const Rope rope{spec.style, spec.rotary_size, inputs.inverse_frequencies.data(), 1.0f};

  const PackedWeight table = inputs.table.Pack(options.backend);
  outcome.embedding.resize(static_cast<size_t>(num_tokens * spec.width));
  status = EmbedTokens(exec, table, 1.0f, {&rope, 1}, batch,
                       {outcome.embedding.data(), num_tokens, spec.width});
  EXPECT_TRUE(status.ok()) << status;

  RunQkv(exec, inputs, batch, rope, outcome);

  const PackedWeight output = inputs.output.Pack(options.backend);
  Activation attention = MakeActivation(exec, num_tokens, spec.num_heads * spec.head_size);
  FillActivation(exec, inputs.attention, attention);
  outcome.residual = inputs.residual;
  const Linear output_view = View(inputs.output, output);
  status = MatMulAddResidual(exec, {.linear = &output_view}, attention, batch,
                             {outcome.residual.data(), num_tokens, spec.width});
  EXPECT_TRUE(status.ok()) << status;

  RunGateUp(exec, inputs, batch, outcome);

  const PackedWeight head = inputs.head.Pack(options.backend);
  outcome.logits.resize(static_cast<size_t>(num_tokens * spec.vocab_size));
  const Linear head_view = View(inputs.head, head);
  const Norm norm = {.weight = inputs.norm_weight.data(), .epsilon = kTestEpsilon};
  status = NormLmHead(exec, {.norm = norm, .head = &head_view},
                      {inputs.residual.data(), num_tokens, spec.width}, batch, 0,
                      {outcome.logits.data(), num_tokens, spec.vocab_size});
  EXPECT_TRUE(status.ok()) << status;
  return outcome;
}

std::vector<float> NormedRows(const LinearInputs& inputs) {
  const size_t width = static_cast<size_t>(inputs.spec.width);
  std::vector<float> out(inputs.residual.size());
  for (size_t begin = 0; begin < out.size(); begin += width) {
    double squares = 0.0;
    for (size_t i = 0; i < width; ++i) {
      squares += static_cast<double>(inputs.residual[begin + i]) * inputs.residual[begin + i];
    }
    const double root = std::sqrt(squares / static_cast<double>(width) + kTestEpsilon);
    for (size_t i = 0; i < width; ++i) {
      out[begin + i] =
          static_cast<float>(inputs.residual[begin + i] / root * inputs.norm_weight[i]);
    }
  }
  return out;
}

BoundedProduct ProductWithBounds(const StoredMatrix& matrix, const std::vector<float>& input) {
  BoundedProduct product;
  const size_t cols = static_cast<size_t>(matrix.cols);
  const size_t rows = static_cast<size_t>(matrix.rows);
  const bool quantized = Traits(matrix.type).quantized;
  for (size_t begin = 0; begin < input.size(); begin += cols) {
    double amax = 0.0;
    for (size_t k = 0; k < cols; ++k) amax = std::max<double>(amax, std::abs(input[begin + k]));
    for (size_t n = 0; n < rows; ++n) {
      double sum = matrix.bias.empty() ? 0.0 : matrix.bias[n];
      double magnitude = std::abs(sum);
      double weights = 0.0;
      for (size_t k = 0; k < cols; ++k) {
        sum += static_cast<double>(matrix.values[n * cols + k]) * input[begin + k];
        magnitude +=
            static_cast<double>(matrix.magnitudes[n * cols + k]) * std::abs(input[begin + k]);
        weights += std::abs(matrix.values[n * cols + k]);
      }
      // Half a step of the int16 grid a value; then K roundings of the chain, and a few of the norm
      // and of the scales.
      const double steps = quantized ? amax / 65534.0 * weights : 0.0;
      product.values.push_back(sum);
      product.bounds.push_back(steps +
                               (static_cast<double>(cols) + 16.0) * kEpsilonF32 * magnitude);
    }
  }
  return product;
}

}  // namespace sluice::kernels
