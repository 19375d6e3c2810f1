#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/hostile/hostile_case.h"

namespace sluice::testing {

using engine::MetadataArray;

GgufDraft GoodModel() { return MakeTinyModelDraft({}); }

GgufDraft GoodSentencePieceModel() {
  constexpr int32_t kNormal = 1, kUnknown = 2, kControl = 3, kByte = 6;
  TinyModelSpec spec;
  spec.vocabulary = false;
  GgufDraft draft = MakeTinyModelDraft(spec);
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {kUnknown, kControl, kControl};
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    tokens.push_back(name);
    types.push_back(kByte);
  }
  const std::string letters = "etaoinshrdlu";
  tokens.push_back("\xE2\x96\x81");
  for (const char letter : letters) tokens.push_back({letter});
  for (const char letter : letters) tokens.push_back({'t', letter});
  for (const char letter : letters) tokens.push_back(std::string("\xE2\x96\x81t") + letter);
  types.resize(tokens.size(), kNormal);
  std::vector<float> scores;
  for (size_t i = 0; i < tokens.size(); ++i) scores.push_back(-static_cast<float>(i));
  draft.SetString("tokenizer.ggml.model", "llama");
  draft.SetStrings("tokenizer.ggml.tokens", std::move(tokens));
  draft.Set("tokenizer.ggml.scores", MetadataArray(std::move(scores)));
  draft.Set("tokenizer.ggml.token_type", MetadataArray(std::move(types)));
  draft.Set("tokenizer.ggml.bos_token_id", uint32_t{1});
  draft.Set("tokenizer.ggml.eos_token_id", uint32_t{2});
  return draft;
}

}  // namespace sluice::testing
