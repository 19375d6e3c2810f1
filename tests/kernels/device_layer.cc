#include "tests/kernels/device_layer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "gtest/gtest.h"

#include "tests/kernels/attention_fixture.h"

namespace sluice::kernels {
namespace {

constexpr int64_t kMaxTokens = 80;
constexpr int64_t kMaxRows = 72;
constexpr int64_t kMaxPages = 24;  // of a sequence
constexpr float kEpsilon = 1e-5f;

// Kinds of Noise, apart from those of attention_fixture.
enum Kind : uint32_t { kResidual = 16, kAdded, kFfnInput, kHeadInput };

std::vector<float> Values(int64_t count, uint32_t kind, float offset) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(offset + 0.5f * Noise(kind, 0, 0, i));
  return values;
}

// Arrays in the backend's memory.
class Arrays {
 public:
  explicit Arrays(Backend backend) : backend_(backend) {}

  template <typename T>
  T* Zeros(int64_t count) {
    auto buffer = AllocateMemory(backend_, static_cast<size_t>(count) * sizeof(T));
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    T* array = buffer->as<T>();
    kept_.push_back(std::move(*buffer));
    return array;
  }
  float* Copy(const std::vector<float>& values) {
    if (values.empty()) return nullptr;
    float* array = Zeros<float>(static_cast<int64_t>(values.size()));
    const absl::Status status =
        CopyToBackend(backend_, array, values.data(), values.size() * sizeof(float));
    EXPECT_TRUE(status.ok()) << status;
    return array;
  }
  std::vector<float> Read(const float* array, int64_t count) const {
    std::vector<float> values(static_cast<size_t>(count));
    const absl::Status status =
        CopyFromBackend(backend_, values.data(), array, values.size() * sizeof(float));
    EXPECT_TRUE(status.ok()) << status;
    return values;
  }

 private:
  const Backend backend_;
  std::vector<Buffer> kept_;
};

class Recorder final : public OpObserver {
 public:
  explicit Recorder(LayerOutcomes* outcomes) : outcomes_(outcomes) {}
  void OnOp(std::string_view op, int, std::span<const float> values, int64_t, int64_t) override {
    (*outcomes_)[std::string(op)].assign(values.begin(), values.end());
  }

 private:
  LayerOutcomes* const outcomes_;
};

// The host arrays of a step.
struct HostStep {
  std::vector<int32_t> tokens, positions, sequences, row_begins{0}, page_begins{0}, pages,
      logit_tokens, adapters;

  HostStep(const std::vector<LayerRow>& rows, int64_t vocab_size) {
    for (const LayerRow& row : rows) {
      for (int position = row.before; position < row.before + row.count; ++position) {
        logit_tokens.push_back(static_cast<int32_t>(tokens.size()));
        tokens.push_back(static_cast<int32_t>((row.sequence * 7 + position * 13) % vocab_size));
        positions.push_back(position);
        sequences.push_back(row.sequence);
      }
      // Of all sequences alike; the last first.
      const int num_pages = (row.before + row.count + kPageTokens - 1) / kPageTokens;
      for (int i = 0; i < num_pages; ++i) {
        pages.push_back(static_cast<int32_t>((row.sequence + 1) * kMaxPages - i));
      }
      row_begins.push_back(static_cast<int32_t>(tokens.size()));
      page_begins.push_back(static_cast<int32_t>(pages.size()));
      adapters.push_back(0);
    }
  }
  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  BatchView View() const {
    BatchView batch;
    batch.num_tokens = batch.num_logit_rows = size();
    batch.num_rows = static_cast<int64_t>(row_begins.size()) - 1;
    batch.tokens = tokens.data();
    batch.positions = positions.data();
    batch.row_begins = row_begins.data();
    batch.page_begins = page_begins.data();
    batch.pages = pages.data();
    batch.logit_tokens = logit_tokens.data();
    batch.adapters = adapters.data();
    return batch;
  }
  std::vector<float> Rows(Kind kind, int64_t cols) const {
    std::vector<float> rows;
    for (int64_t t = 0; t < size(); ++t) {
      const auto at = static_cast<size_t>(t);
      for (int64_t i = 0; i < cols; ++i) {
        rows.push_back(2.0f * Noise(kind, sequences[at], positions[at], i));
      }
    }
    return rows;
  }
};

// Random quantised weights are large: without a small factor each softmax would see one key alone,
// and magnify every rounding of a score.
float ScoreScale(const LayerSpec& spec) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(spec.head_size));
  return Traits(spec.type).quantized ? scale / 16.0f : scale;
}

// The ops of a layer with weights and pages in the backend's memory.
class Layer {
 public:
  Layer(const LayerWeightsOnHost& weights, const Exec::Options& options, int num_sequences)
      : weights_(weights), spec_(weights.spec), exec_(options), arrays_(options.backend) {
    const absl::Status status = ReserveWorkspace(exec_, {.max_tokens = kMaxTokens,
                                                         .max_logit_rows = kMaxTokens,
                                                         .max_rows = kMaxRows,
                                                         .max_pages = kMaxPages,
                                                         .width = spec_.width,
                                                         .num_heads = spec_.num_heads,
                                                         .num_kv_heads = spec_.num_kv_heads,
                                                         .head_size = spec_.head_size,
                                                         .ffn_width = spec_.ffn_width,
                                                         .vocab_size = spec_.vocab_size});
    EXPECT_TRUE(status.ok()) << status;
    kv_.type = spec_.kv_type;
    kv_.num_pages = num_sequences * kMaxPages + 1;
    kv_.num_kv_heads = spec_.num_kv_heads;
    kv_.head_size = spec_.head_size;
    const int64_t half = kv_.num_pages * KvPageBytes(kv_.type, kv_.num_kv_heads, kv_.head_size) / 2;
    kv_.k = arrays_.Zeros<std::byte>(half);
    kv_.v = arrays_.Zeros<std::byte>(half);
    norm_ = {.weight = arrays_.Copy(weights.norm_weight),
             .bias = spec_.norm == NormKind::kLayer ? arrays_.Copy(weights.norm_bias) : nullptr,
             .epsilon = kEpsilon,
             .kind = spec_.norm};
    if (spec_.post_norm) {
      post_norm_ = {.weight = arrays_.Copy(weights.post_norm), .epsilon = kEpsilon};
    }
    if (spec_.head_norm) {
      q_norm_ = {.weight = arrays_.Copy(weights.q_norm), .epsilon = kEpsilon};
      k_norm_ = {.weight = arrays_.Copy(weights.k_norm), .epsilon = kEpsilon};
    }
    for (int64_t i = 0; i < spec_.head_size / 2; ++i) {
      frequencies_.push_back(static_cast<float>(
          std::pow(1e4, -2.0 * static_cast<double>(i) / static_cast<double>(spec_.head_size))));
    }
    rope_ = {spec_.style, spec_.head_size / 2 * 2, frequencies_.data(), 1.0f};
    linears_.reserve(16);
    for (const StoredMatrix* matrix :
         {&weights.table, &weights.q, &weights.k, &weights.v, &weights.output, &weights.gate,
          &weights.up, &weights.down, &weights.head}) {
      packed_.push_back(std::make_unique<PackedWeight>(matrix->Pack(options.backend)));
      Linear linear;
      linear.weight = packed_.back().get();
      linear.bias = arrays_.Copy(matrix->bias);
      linears_.push_back(linear);
    }
    linears_[kOutput].name = "attention_output";
    linears_[kDown].name = "ffn_down";
  }

  // K and V of the tokens before `row`.
  void StoreHistory(const LayerRow& row) {
    for (int begin = 0; begin < row.before; begin += static_cast<int>(kMaxTokens)) {
      const int count = std::min(static_cast<int>(kMaxTokens), row.before - begin);
      const HostStep step({{row.sequence, begin, count}}, spec_.vocab_size);
      const BatchView batch = Upload(step);
      Qkv(step, batch);
    }
  }

  LayerOutcomes Run(const std::vector<LayerRow>& rows, bool observe) {
    const HostStep step(rows, spec_.vocab_size);
    LayerOutcomes outcomes;
    Recorder recorder(&outcomes);
    const BatchView batch = Upload(step);
    if (observe) exec_.set_observer(&recorder);
    const float* q = Qkv(step, batch);
    Attention(step, batch, q, outcomes);
    Ffn(step, batch, outcomes);
    Head(step, batch, outcomes);
    exec_.set_observer(nullptr);
    for (auto& [op, values] : outcomes) {
      const auto cols = static_cast<int64_t>(values.size()) / batch.num_tokens;
      values.resize(static_cast<size_t>(step.size() * cols));
    }
    outcomes["embedding"] = arrays_.Read(embedding_, step.size() * spec_.width);
    outcomes["qkv"] = arrays_.Read(q, step.size() * spec_.num_heads * spec_.head_size);
    return outcomes;
  }

 private:
  enum Matrix { kTable, kQ, kK, kV, kOutput, kGate, kUp, kDown, kHead };

  static ConstMatrixF32 Read(const MatrixF32& matrix) {
    return {matrix.values, matrix.rows, matrix.cols};
  }
  static void Check(const absl::Status& status) { EXPECT_TRUE(status.ok()) << status; }
  MatrixF32 Fresh(int64_t rows, int64_t cols) {
    return {arrays_.Zeros<float>(rows * cols), rows, cols};
  }
  // The step's rows and those that fill its bucket up on a device.
  MatrixF32 Input(const HostStep& step, const BatchView& batch, Kind kind) {
    std::vector<float> rows = step.Rows(kind, spec_.width);
    rows.resize(static_cast<size_t>(batch.num_tokens * spec_.width));
    return {arrays_.Copy(rows), batch.num_tokens, spec_.width};
  }
  BatchView Upload(const HostStep& step) {
    auto view = UploadBatch(exec_, step.View());
    EXPECT_TRUE(view.ok()) << view.status();
    return *view;
  }

  const float* Qkv(const HostStep& step, const BatchView& batch) {
    const MatrixF32 embedding = Fresh(batch.num_tokens, spec_.width);
    embedding_ = embedding.values;
    Check(EmbedTokens(exec_, *packed_[kTable], spec_.scale, {&rope_, 1}, batch, embedding));
    const MatrixF32 q = Fresh(batch.num_tokens, spec_.num_heads * spec_.head_size);
    Check(NormQkvRopeStore(exec_,
                           {.norm = norm_,
                            .q = &linears_[kQ],
                            .k = &linears_[kK],
                            .v = &linears_[kV],
                            .q_head_norm = q_norm_,
                            .k_head_norm = k_norm_,
                            .rope = rope_,
                            .rope_index = 0,
                            .head_size = spec_.head_size},
                           Read(Input(step, batch, kResidual)), batch, kv_, q));
    return q.values;
  }
  void Attention(const HostStep& step, const BatchView& batch, const float* q,
                 LayerOutcomes& outcomes) {
    const int64_t cols = spec_.num_heads * spec_.head_size;
    auto out = AllocateActivation(exec_.backend(), kMaxTokens, cols);
    ASSERT_TRUE(out.ok()) << out.status();
    Check(PagedAttention(
        exec_, {.scale = ScoreScale(spec_), .softcap = spec_.softcap, .window = spec_.window},
        {q, batch.num_tokens, cols}, batch, kv_, *out));
    AddProduct(step, batch, kOutput, *out, outcomes);
  }
  void Ffn(const HostStep& step, const BatchView& batch, LayerOutcomes& outcomes) {
    auto out = AllocateActivation(exec_.backend(), kMaxTokens, spec_.ffn_width);
    ASSERT_TRUE(out.ok()) << out.status();
    Check(NormGateUpSwiglu(exec_,
                           {.norm = norm_,
                            .gate = spec_.gate ? &linears_[kGate] : nullptr,
                            .up = &linears_[kUp],
                            .activation = spec_.activation},
                           Read(Input(step, batch, kFfnInput)), batch, *out));
    AddProduct(step, batch, kDown, *out, outcomes);
  }
  void AddProduct(const HostStep& step, const BatchView& batch, Matrix matrix,
                  const Activation& input, LayerOutcomes& outcomes) {
    const MatrixF32 residual = Input(step, batch, kAdded);
    Check(MatMulAddResidual(
        exec_, {.linear = &linears_[matrix], .post_norm = post_norm_, .scale = spec_.scale}, input,
        batch, residual));
    outcomes[std::string(linears_[matrix].name)] =
        arrays_.Read(residual.values, batch.num_tokens * spec_.width);
  }
  void Head(const HostStep& step, const BatchView& batch, LayerOutcomes& outcomes) {
    const MatrixF32 logits = Fresh(batch.num_tokens, spec_.vocab_size);
    Check(NormLmHead(
        exec_,
        {.norm = norm_, .head = &linears_[kHead], .scale = spec_.scale, .softcap = spec_.softcap},
        Read(Input(step, batch, kHeadInput)), batch, 0, logits));
    outcomes["logits"] = arrays_.Read(logits.values, batch.num_tokens * spec_.vocab_size);
  }

  const LayerWeightsOnHost& weights_;
  const LayerSpec spec_;
  Exec exec_;
  Arrays arrays_;
  KvLayer kv_;
  Norm norm_, post_norm_, q_norm_, k_norm_;
  std::vector<float> frequencies_;
  Rope rope_;
  std::vector<std::unique_ptr<PackedWeight>> packed_;
  std::vector<Linear> linears_;
  const float* embedding_ = nullptr;
};

}  // namespace

std::string LayerSpec::Describe() const {
  return std::string(Name(type)) + " E" + std::to_string(width) + " H" + std::to_string(num_heads) +
         " G" + std::to_string(num_kv_heads) + " D" + std::to_string(head_size) + " F" +
         std::to_string(ffn_width) + " V" + std::to_string(vocab_size) + " kv " +
         std::string(Name(kv_type)) + (style == RopeStyle::kInterleaved ? " interleaved" : "") +
         (norm == NormKind::kLayer ? " layer-norm" : "") + (bias ? " bias" : "") +
         (head_norm ? " head-norm" : "") + (post_norm ? " post-norm" : "") +
         (gate ? "" : " no-gate") + (softcap > 0 ? " softcap" : "") +
         (window > 0 ? " window " + std::to_string(window) : "") + (scale != 1.0f ? " scaled" : "");
}

LayerWeightsOnHost::LayerWeightsOnHost(const LayerSpec& of) : spec(of) {
  const int64_t q_width = spec.num_heads * spec.head_size;
  const int64_t kv_width = spec.num_kv_heads * spec.head_size;
  table = StoredMatrix::Random(spec.type, spec.vocab_size, spec.width, false, 1);
  q = StoredMatrix::Random(spec.type, q_width, spec.width, spec.bias, 2);
  k = StoredMatrix::Random(spec.type, kv_width, spec.width, spec.bias, 3);
  v = StoredMatrix::Random(spec.type, kv_width, spec.width, spec.bias, 4);
  output = StoredMatrix::Random(spec.type, spec.width, q_width, spec.bias, 5);
  gate = StoredMatrix::Random(spec.type, spec.ffn_width, spec.width, false, 6);
  up = StoredMatrix::Random(spec.type, spec.ffn_width, spec.width, spec.bias, 7);
  down = StoredMatrix::Random(spec.type, spec.width, spec.ffn_width, spec.bias, 8);
  head = StoredMatrix::Random(spec.type, spec.vocab_size, spec.width, false, 9);
  norm_weight = Values(spec.width, 32, 1.0f);
  norm_bias = Values(spec.width, 33, 0.0f);
  post_norm = Values(spec.width, 34, 1.0f);
  q_norm = Values(spec.head_size, 35, 1.0f);
  k_norm = Values(spec.head_size, 36, 1.0f);
}

LayerOutcomes RunLayer(const LayerWeightsOnHost& weights, const Exec::Options& options,
                       const std::vector<LayerRow>& rows, bool observe) {
  int num_sequences = 0;
  for (const LayerRow& row : rows) num_sequences = std::max(num_sequences, row.sequence + 1);
  Layer layer(weights, options, num_sequences);
  for (const LayerRow& row : rows) layer.StoreHistory(row);
  return layer.Run(rows, observe);
}

}  // namespace sluice::kernels
