#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <random>
#include <utility>

#include "tests/testing/byte_vocabulary.h"
#include "tests/testing/gguf_writer.h"

namespace sluice::testing {
namespace {

using kernels::DType;

// Binary16 nearest to `value`, ties to even; infinity beyond the range.
uint16_t Half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7e00;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  // nearbyint rounds ties to even; the unit in the last place is 2^(exponent - 10), 2^-24 at least.
  const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
  const float steps = std::nearbyint(std::ldexp(magnitude, 10 - exponent));
  return sign | static_cast<uint16_t>(static_cast<int>(steps) + ((exponent + 14) << 10));
}

float FromHalf(uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const int fraction = half & 1023;
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                        : std::ldexp(1024.0f + fraction, exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

uint16_t Bfloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void AppendWord16(std::string& out, uint16_t word) {
  out.push_back(static_cast<char>(word & 255));
  out.push_back(static_cast<char>(word >> 8));
}

void AppendQ8_0(std::string& out, const float* values) {
  float largest = 0.0f;
  for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(values[i]));
  const uint16_t scale = Half(largest / 127.0f);
  const float step = FromHalf(scale);
  AppendWord16(out, scale);
  for (int i = 0; i < 32; ++i) {
    const float steps = step == 0.0f ? 0.0f : std::nearbyint(values[i] / step);
    out.push_back(static_cast<char>(static_cast<int8_t>(std::clamp(steps, -127.0f, 127.0f))));
  }
}

// Byte i of the quants holds value i in its low half and value i + 16 in its high half.
void AppendQ4_1(std::string& out, const float* values) {
  const auto [low, high] = std::minmax_element(values, values + 32);
  const uint16_t scale = Half((*high - *low) / 15.0f);
  const uint16_t minimum = Half(*low);
  AppendWord16(out, scale);
  AppendWord16(out, minimum);
  const float step = FromHalf(scale);
  const auto steps = [&](float value) {
    if (step == 0.0f) return 0;
    const float n = std::nearbyint((value - FromHalf(minimum)) / step);
    return static_cast<int>(std::clamp(n, 0.0f, 15.0f));
  };
  for (int i = 0; i < 16; ++i) {
    out.push_back(static_cast<char>(steps(values[i]) | steps(values[i + 16]) << 4));
  }
}

// Spreads values over [-1, 1) the same way on every standard library.
class Uniform {
 public:
  explicit Uniform(uint64_t seed) : engine_(seed) {}
  float Next() { return static_cast<float>(engine_() >> 40) * 0x1p-23f - 1.0f; }
  std::vector<float> Values(size_t count, float center, float reach) {
    std::vector<float> values(count);
    for (float& value : values) value = center + reach * Next();
    return values;
  }

 private:
  std::mt19937_64 engine_;
};

void AddVocabulary(GgufDraft& draft, const TinyModelSpec& spec) {
  constexpr int kNormal = 1, kControl = 3;
  std::vector<std::string> tokens;
  std::vector<std::string> merges;
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(ByteSymbol(byte));
  // Pairs of letters first, then pairs of those: every merge makes a token that is there.
  const std::string letters = "etaoinshrdlu";
  const int room = spec.vocab_size - 256 - 3;
  for (const char first : letters) {
    for (const char second : letters) {
      if (static_cast<int>(merges.size()) == room) break;
      tokens.push_back({first, second});
      merges.push_back({first, ' ', second});
    }
  }
  std::vector<int32_t> types(tokens.size(), kNormal);
  while (static_cast<int>(tokens.size()) < spec.vocab_size - 3) {
    tokens.push_back("<|unused_" + std::to_string(tokens.size()) + "|>");
    types.push_back(kControl);
  }
  const auto first_control = static_cast<uint32_t>(tokens.size());
  for (const char* name : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) {
    tokens.push_back(name);
    types.push_back(kControl);
  }
  draft.SetString("tokenizer.ggml.model", "gpt2");
  draft.SetString("tokenizer.ggml.pre", spec.architecture.starts_with("qwen") ? "qwen2" : "smollm");
  draft.SetStrings("tokenizer.ggml.tokens", std::move(tokens));
  draft.Set("tokenizer.ggml.token_type", engine::MetadataArray(std::move(types)));
  draft.SetStrings("tokenizer.ggml.merges", std::move(merges));
  draft.Set("tokenizer.ggml.bos_token_id", first_control + 1);
  draft.Set("tokenizer.ggml.eos_token_id", first_control + 2);
  draft.Set("tokenizer.ggml.add_bos_token", false);
}

// What tensors a model has, beyond the spec.
struct Traits {
  explicit Traits(const TinyModelSpec& spec)
      : qkv_bias(spec.qkv_bias || Is(spec, {"qwen2", "starcoder2"})),
        head_norms(Is(spec, {"qwen3", "gemma3"})),
        post_norms(Is(spec, {"gemma2", "gemma3"})),
        layer_norms(Is(spec, {"starcoder2", "stablelm"})),
        linear_biases(Is(spec, {"starcoder2"})),
        gate(!Is(spec, {"starcoder2"})),
        fused(Is(spec, {"phi3"})),
        tied_head(spec.tied_head || Is(spec, {"gemma", "gemma2", "gemma3"})) {}

  static bool Is(const TinyModelSpec& spec, std::initializer_list<const char*> architectures) {
    return std::any_of(architectures.begin(), architectures.end(),
                       [&](const char* name) { return spec.architecture == name; });
  }

  const bool qkv_bias, head_norms, post_norms, layer_norms, linear_biases, gate, fused, tied_head;
};

// Keys that the architecture's files have and others have not.
void AddFactsOfArchitecture(GgufDraft& draft, const TinyModelSpec& spec) {
  const std::string prefix = spec.architecture + ".";
  if (Traits::Is(spec, {"gemma2", "gemma3"})) {
    draft.Set(prefix + "attention.sliding_window", uint32_t{128});
  }
  if (Traits::Is(spec, {"gemma2"})) {
    draft.Set(prefix + "attn_logit_softcapping", 50.0f);
    draft.Set(prefix + "final_logit_softcapping", 30.0f);
  }
  if (Traits::Is(spec, {"phi3"})) draft.Set(prefix + "attention.sliding_window", uint32_t{0});
  if (Traits::Is(spec, {"granite"})) {
    draft.Set(prefix + "attention.scale", 0.125f);
    draft.Set(prefix + "embedding_scale", 3.0f);
    draft.Set(prefix + "residual_scale", 0.5f);
    draft.Set(prefix + "logit_scale", 4.0f);
  }
}

void AddFacts(GgufDraft& draft, const TinyModelSpec& spec) {
  const std::string prefix = spec.architecture + ".";
  const auto set = [&](const char* key, int value) {
    draft.Set(prefix + key, static_cast<uint32_t>(value));
  };
  const int head_size = spec.head_size > 0 ? spec.head_size : spec.width / spec.heads;
  draft.SetString("general.architecture", spec.architecture);
  draft.SetString("general.name", "tiny " + spec.architecture);
  set("context_length", spec.context_length);
  set("embedding_length", spec.width);
  set("block_count", spec.layers);
  set("feed_forward_length", spec.ffn_width);
  set("attention.head_count", spec.heads);
  set("attention.head_count_kv", spec.kv_heads);
  if (spec.head_size > 0) {
    set("attention.key_length", spec.head_size);
    set("attention.value_length", spec.head_size);
  }
  draft.Set(prefix + (Traits(spec).layer_norms ? "attention.layer_norm_epsilon"
                                               : "attention.layer_norm_rms_epsilon"),
            spec.norm_epsilon);
  draft.Set(prefix + "rope.freq_base", spec.rope_base);
  set("rope.dimension_count", spec.rotary_size > 0 ? spec.rotary_size : head_size);
  AddFactsOfArchitecture(draft, spec);
}

class TensorMaker {
 public:
  TensorMaker(GgufDraft& draft, const TinyModelSpec& spec)
      : draft_(draft), spec_(spec), traits_(spec), uniform_(spec.seed) {}

  void Matrix(const std::string& name, int cols, int rows, DType type) {
    // Outputs of unit variance for inputs of unit variance, so that nothing saturates.
    const float reach = std::sqrt(3.0f / static_cast<float>(cols));
    const size_t count = static_cast<size_t>(cols) * static_cast<size_t>(rows);
    draft_.AddTensor(name, {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)}, type,
                     EncodeTensor(type, uniform_.Values(count, 0.0f, reach)));
  }
  void Vector(const std::string& name, int size, float center, float reach) {
    const auto count = static_cast<size_t>(size);
    draft_.AddTensor(name, {count}, spec_.norm_type,
                     EncodeTensor(spec_.norm_type, uniform_.Values(count, center, reach)));
  }

  // A norm of the residual stream's width, with its bias where the architecture has them.
  void Norm(const std::string& name) {
    Vector(name + ".weight", spec_.width, 1.0f, 0.1f);
    if (traits_.layer_norms) Vector(name + ".bias", spec_.width, 0.0f, 0.1f);
  }

  void Layer(int layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const int head_size = spec_.head_size > 0 ? spec_.head_size : spec_.width / spec_.heads;
    const int q_rows = spec_.heads * head_size, kv_rows = spec_.kv_heads * head_size;
    const DType type = spec_.matrix_type;
    Norm(prefix + "attn_norm");
    if (traits_.fused) {
      Matrix(prefix + "attn_qkv.weight", spec_.width, q_rows + 2 * kv_rows, type);
    } else {
      Matrix(prefix + "attn_q.weight", spec_.width, q_rows, type);
      Matrix(prefix + "attn_k.weight", spec_.width, kv_rows, spec_.key_type.value_or(type));
      Matrix(prefix + "attn_v.weight", spec_.width, kv_rows, spec_.value_type.value_or(type));
    }
    if (traits_.qkv_bias) {
      Vector(prefix + "attn_q.bias", q_rows, 0.0f, 0.5f);
      Vector(prefix + "attn_k.bias", kv_rows, 0.0f, 0.5f);
      Vector(prefix + "attn_v.bias", kv_rows, 0.0f, 0.5f);
    }
    if (traits_.head_norms) {
      Vector(prefix + "attn_q_norm.weight", head_size, 1.0f, 0.1f);
      Vector(prefix + "attn_k_norm.weight", head_size, 1.0f, 0.1f);
    }
    Matrix(prefix + "attn_output.weight", q_rows, spec_.width, type);
    if (traits_.post_norms) Norm(prefix + "post_attention_norm");
    Norm(prefix + "ffn_norm");
    if (traits_.gate && !traits_.fused) {
      Matrix(prefix + "ffn_gate.weight", spec_.width, spec_.ffn_width, type);
    }
    Matrix(prefix + "ffn_up.weight", spec_.width, (traits_.fused ? 2 : 1) * spec_.ffn_width, type);
    Matrix(prefix + "ffn_down.weight", spec_.ffn_width, spec_.width, type);
    if (traits_.post_norms) Norm(prefix + "post_ffw_norm");
    if (traits_.linear_biases) {
      Vector(prefix + "attn_output.bias", spec_.width, 0.0f, 0.5f);
      Vector(prefix + "ffn_up.bias", spec_.ffn_width, 0.0f, 0.5f);
      Vector(prefix + "ffn_down.bias", spec_.width, 0.0f, 0.5f);
    }
  }

 private:
  GgufDraft& draft_;
  const TinyModelSpec& spec_;
  const Traits traits_;
  Uniform uniform_;
};

}  // namespace

std::string EncodeTensor(DType type, const std::vector<float>& values) {
  std::string out;
  switch (type) {
    case DType::kF32:
      out.resize(values.size() * sizeof(float));
      std::memcpy(out.data(), values.data(), out.size());
      return out;
    case DType::kF16:
      for (const float value : values) AppendWord16(out, Half(value));
      return out;
    case DType::kBF16:
      for (const float value : values) AppendWord16(out, Bfloat(value));
      return out;
    case DType::kQ8_0:
      for (size_t i = 0; i < values.size(); i += 32) AppendQ8_0(out, &values[i]);
      return out;
    case DType::kQ4_1:
      for (size_t i = 0; i < values.size(); i += 32) AppendQ4_1(out, &values[i]);
      return out;
    default:
      std::fprintf(stderr, "EncodeTensor: no encoder for type %d\n", static_cast<int>(type));
      std::abort();
  }
}

GgufDraft MakeTinyModelDraft(const TinyModelSpec& spec) {
  GgufDraft draft;
  AddFacts(draft, spec);
  if (spec.vocabulary) AddVocabulary(draft, spec);
  TensorMaker maker(draft, spec);
  const DType embedding_type = spec.embedding_type.value_or(spec.matrix_type);
  maker.Matrix("token_embd.weight", spec.width, spec.vocab_size, embedding_type);
  if (!spec.rope_factors.empty()) {
    draft.AddTensor("rope_freqs.weight", {spec.rope_factors.size()}, DType::kF32,
                    EncodeTensor(DType::kF32, spec.rope_factors));
  }
  for (int layer = 0; layer < spec.layers; ++layer) maker.Layer(layer);
  maker.Norm("output_norm");
  if (!Traits(spec).tied_head) {
    maker.Matrix("output.weight", spec.width, spec.vocab_size, embedding_type);
  }
  return draft;
}

std::string MakeTinyModel(const TinyModelSpec& spec) { return MakeTinyModelDraft(spec).Bytes(); }

}  // namespace sluice::testing
