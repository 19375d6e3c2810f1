// Well-formed files whose facts or tensors are no model.

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/hostile/hostile_case.h"

namespace sluice::testing {
namespace {

using engine::MetadataArray;
using kernels::DType;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr const char* kBase = "llama.rope.freq_base";
constexpr const char* kEpsilon = "llama.attention.layer_norm_rms_epsilon";

auto Reshape(std::string name, std::vector<uint64_t> dims) {
  return [name, dims](GgufDraft& draft) {
    uint64_t bytes = 4;
    for (const uint64_t dim : dims) bytes *= dim;
    GgufDraft::Tensor& tensor = draft.TensorAt(name);
    tensor.dims = dims;
    tensor.bytes.resize(bytes);
  };
}

// All of a row of `block_values` values, in blocks of `block_bytes`.
auto Retype(std::string name, uint32_t type, uint64_t block_values, uint64_t block_bytes) {
  return [=](GgufDraft& draft) {
    GgufDraft::Tensor& tensor = draft.TensorAt(name);
    uint64_t values = 1;
    for (const uint64_t dim : tensor.dims) values *= dim;
    tensor.type = type;
    tensor.bytes.assign(values / block_values * block_bytes, '\0');
  };
}

std::vector<HostileCase> FactCases() {
  return {
      {"M35_rope_base_nan", SetKey(kBase, kNan), {kBase, "got nan"}},
      {"M35_rope_base_inf", SetKey(kBase, kInf), {kBase, "got inf"}},
      {"M35_rope_base_negative", SetKey(kBase, -1.0f), {kBase, "got -1"}},
      {"M35_epsilon_nan", SetKey(kEpsilon, kNan), {kEpsilon, "got nan"}},
      {"M35_epsilon_inf", SetKey(kEpsilon, kInf), {kEpsilon, "got inf"}},
      {"M35_epsilon_negative", SetKey(kEpsilon, -1.0f), {kEpsilon, "got -1"}},
      {"M69_architecture_missing",
       RemoveKey("general.architecture"),
       {"'general.architecture'", "missing"},
       kInvalid,
       false},
      {"M69_architecture_unknown",
       SetText("general.architecture", "mamba"),
       {"'general.architecture'", "got 'mamba'"},
       kUnsupported},
      {"M69_architecture_1_mib",
       SetText("general.architecture", std::string(1 << 20, 'a')),
       {"'general.architecture'", "... (1048576 bytes)"},
       kUnsupported},
      {"M69_architecture_a_number",
       SetKey("general.architecture", uint32_t{1}),
       {"'general.architecture'", "expected string, got u32"}},
      {"M70_heads_0",
       SetKey("llama.attention.head_count", uint32_t{0}),
       {"'llama.attention.head_count': expected 1 to 1024, got 0"}},
      {"M70_heads_2_31",
       SetKey("llama.attention.head_count", uint32_t{1u << 31}),
       {"'llama.attention.head_count'", "got 2147483648"}},
      {"M70_kv_heads_0",
       SetKey("llama.attention.head_count_kv", uint32_t{0}),
       {"'llama.attention.head_count_kv'", "got 0"}},
      {"M70_kv_heads_do_not_divide",
       SetKey("llama.attention.head_count_kv", uint32_t{3}),
       {"'llama.attention.head_count_kv'", "got 3"}},
      {"M70_width_no_multiple_of_heads",
       SetKey("llama.attention.head_count", uint32_t{6}),
       {"'llama.embedding_length': expected a multiple of the 6 heads, got 64"}},
      {"M71_layers_0",
       SetKey("llama.block_count", uint32_t{0}),
       {"'llama.block_count': expected 1 to 1024, got 0"}},
      {"M71_layers_2_31_less_1",
       SetKey("llama.block_count", uint32_t{0x7FFFFFFF}),
       {"'llama.block_count'", "got 2147483647"}},
      {"M71_layers_2_64_less_1",
       SetKey("llama.block_count", UINT64_MAX),
       {"'llama.block_count'", "got 18446744073709551615"}},
      {"M71_one_layer_more",
       SetKey("llama.block_count", uint32_t{3}),
       {"'blk.2.attn_norm.weight'", "missing"},
       kInvalid,
       false},
      {"M71_one_layer_less",
       SetKey("llama.block_count", uint32_t{1}),
       {"tensor 'blk.1.attn_norm.weight': expected layers 0 to 0", "got layer 1"}},
      {"M72_context_0",
       SetKey("llama.context_length", uint32_t{0}),
       {"'llama.context_length': expected 1 to 16777216, got 0"}},
      {"M72_context_2_32_less_1",
       SetKey("llama.context_length", uint32_t{0xFFFFFFFF}),
       {"'llama.context_length'", "got 4294967295"}},
      {"M72_context_as_long_as_may_be", SetKey("llama.context_length", uint32_t{1} << 24), {}, kOk},
      {"M73_rotary_odd",
       SetKey("llama.rope.dimension_count", uint32_t{7}),
       {"'llama.rope.dimension_count': expected an even number, got 7"}},
      {"M73_rotary_over_head",
       SetKey("llama.rope.dimension_count", uint32_t{32}),
       {"'llama.rope.dimension_count': expected 2 to 16, got 32"}},
      {"M73_rotary_0",
       SetKey("llama.rope.dimension_count", uint32_t{0}),
       {"'llama.rope.dimension_count'", "got 0"}},
      {"M73_base_0", SetKey(kBase, 0.0f), {kBase, "finite number above 0, got 0"}},
      {"M73_base_smallest",
       SetKey(kBase, std::numeric_limits<float>::denorm_min()),
       {kBase, "expected finite rotary frequencies"}},
      {"M74_width_2_31",
       SetKey("llama.embedding_length", uint32_t{1u << 31}),
       {"'llama.embedding_length'", "got 2147483648"}},
      {"M74_width_doubled",
       SetKey("llama.embedding_length", uint32_t{128}),
       {"'token_embd.weight' (token embedding): expected [128, 320], got [64, 320] F32"}},
      {"M74_ffn_0",
       SetKey("llama.feed_forward_length", uint32_t{0}),
       {"'llama.feed_forward_length'", "got 0"}},
      {"M74_ffn_per_layer",
       SetKey("llama.feed_forward_length", MetadataArray(std::vector<uint32_t>{160, 160})),
       {"'llama.feed_forward_length'"},
       kUnsupported}};
}

std::vector<HostileCase> TensorCases() {
  return {{"M75_embedding_shorter_than_vocabulary",
           Reshape("token_embd.weight", {64, 319}),
           {"each of the 320 tokens in 'tokenizer.ggml.tokens', got [64, 319] F32"}},
          {"M75_embedding_of_one_row",
           Reshape("token_embd.weight", {64, 1}),
           {"'token_embd.weight'", "got [64, 1] F32"}},
          {"M75_head_shorter_than_vocabulary",
           Reshape("output.weight", {64, 319}),
           {"'output.weight' (output head): expected [64, 320], got [64, 319] F32"}},
          {"M75_embedding_transposed",
           Reshape("token_embd.weight", {320, 64}),
           {"'token_embd.weight'", "got [320, 64] F32"}},
          {"M75_key_transposed",
           Reshape("blk.0.attn_k.weight", {32, 64}),
           {"'blk.0.attn_k.weight'", "expected [64, 32], got [32, 64] F32"}},
          {"M75_query_in_three_dimensions",
           Reshape("blk.0.attn_q.weight", {64, 16, 4}),
           {"'blk.0.attn_q.weight'", "expected [64, 64], got [64, 16, 4] F32"}},
          {"M76_no_output_norm",
           [](GgufDraft& d) { d.RemoveTensor("output_norm.weight"); },
           {"'output_norm.weight' (output norm): expected [64], got none"},
           kInvalid,
           false},
          {"M76_no_embedding",
           [](GgufDraft& d) { d.RemoveTensor("token_embd.weight"); },
           {"'token_embd.weight'", "missing"},
           kInvalid,
           false},
          {"M76_a_stranger",
           [](GgufDraft& d) {
             d.AddTensor("community.tensor", {8}, DType::kF32, std::string(32, '\0'));
           },
           {"1 tensors are not used, 'community.tensor' first"},
           kOk},
          {"M76_a_strange_part_of_a_layer",
           [](GgufDraft& d) {
             d.AddTensor("blk.0.attn_sinks.weight", {8}, DType::kF32, std::string(32, '\0'));
           },
           {"'blk.0.attn_sinks.weight'", "no place"},
           kUnsupported},
          {"M77_norm_of_q4_0",
           Retype("output_norm.weight", 2, 32, 18),
           {"'output_norm.weight'", "expected [64] F32, F16 or BF16, got [64] Q4_0"},
           kUnsupported},
          {"M77_layer_norm_of_q8_0",
           Retype("blk.1.ffn_norm.weight", 8, 32, 34),
           {"'blk.1.ffn_norm.weight'", "got [64] Q8_0"},
           kUnsupported},
          {"M77_matrix_of_i32",
           Retype("blk.0.attn_q.weight", 26, 1, 4),
           {"'blk.0.attn_q.weight': type I32 is not supported"},
           kUnsupported},
          {"M77_embedding_of_f64",
           Retype("token_embd.weight", 28, 1, 8),
           {"'token_embd.weight': type F64 is not supported"},
           kUnsupported},
          {"M94_all_weights_0",
           [](GgufDraft& d) {
             for (GgufDraft::Tensor& t : d.tensors) t.bytes.assign(t.bytes.size(), '\0');
           },
           {},
           kOk}};
}

}  // namespace

std::vector<HostileCase> ModelCases() {
  std::vector<HostileCase> all = FactCases();
  for (HostileCase& one : TensorCases()) all.push_back(std::move(one));
  return all;
}

}  // namespace sluice::testing
