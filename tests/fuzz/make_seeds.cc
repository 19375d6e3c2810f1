// Writes the first inputs of the reader's fuzzer: small whole files of each kind. Run once; what
// the fuzzer finds joins them (README.md).

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/testing/gguf_writer.h"

namespace {

using sluice::engine::MetadataArray;
using sluice::testing::GgufDraft;
using sluice::testing::TinyModelSpec;

TinyModelSpec Small(std::string architecture) {
  TinyModelSpec spec;
  spec.architecture = std::move(architecture);
  spec.layers = 1;
  spec.width = 8;
  spec.heads = 2;
  spec.kv_heads = 1;
  spec.ffn_width = 8;
  spec.vocab_size = 16;
  spec.context_length = 64;
  spec.vocabulary = false;
  return spec;
}

// Metadata without data: the last byte says how many times 64 zeros take its place.
void Write(const std::string& folder, const std::string& name, const GgufDraft& draft) {
  std::string bytes = draft.Bytes();
  const size_t data_bytes = bytes.size() - draft.OffsetOf("data");
  bytes.resize(draft.OffsetOf("data"));
  bytes += static_cast<char>(std::min<size_t>(data_bytes / 64 + 1, 255));
  std::ofstream(folder + "/" + name, std::ios::binary) << bytes;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "make_seeds FOLDER\n");
    return 2;
  }
  const std::string folder = argv[1];
  Write(folder, "llama", MakeTinyModelDraft(Small("llama")));
  TinyModelSpec spec = Small("qwen2");
  spec.tied_head = true;
  spec.matrix_type = sluice::kernels::DType::kQ8_0;
  spec.width = 32;
  spec.head_size = 32;
  spec.ffn_width = 32;
  Write(folder, "qwen2_tied_q8_0", MakeTinyModelDraft(spec));
  spec = Small("llama");
  spec.layers = 2;
  spec.width = 32;
  spec.ffn_width = 32;
  spec.matrix_type = sluice::kernels::DType::kQ4_1;
  spec.norm_type = sluice::kernels::DType::kF16;
  spec.qkv_bias = true;
  GgufDraft draft = MakeTinyModelDraft(spec);
  draft.version = 2;
  draft.Set("general.alignment", uint32_t{32});
  draft.SetString("llama.rope.scaling.type", "linear");
  draft.Set("llama.rope.scaling.factor", 4.0f);
  draft.SetString("tokenizer.ggml.model", "llama");
  draft.SetStrings("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "a", "b", "ab"});
  draft.Set("tokenizer.ggml.scores", MetadataArray(std::vector<float>(6, -1.0f)));
  draft.Set("tokenizer.ggml.token_type", MetadataArray(std::vector<int32_t>{2, 3, 3, 1, 1, 1}));
  Write(folder, "llama_q4_1_biased", draft);
  draft = MakeTinyModelDraft(Small("llama"));
  draft.Set("a.u8", uint8_t{1});
  draft.Set("a.i16", int16_t{-1});
  draft.Set("a.f64", 0.5);
  draft.Set("a.bool", true);
  draft.Set("l.bool", MetadataArray(std::vector<bool>{true, false}));
  draft.Set("l.i64", MetadataArray(std::vector<int64_t>{-1, 1}));
  draft.Set("l.f64", MetadataArray(std::vector<double>{0.5}));
  Write(folder, "every_value_type", draft);
  return 0;
}
