#include "tests/fuzz/fixed_vocabularies.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "engine/model_file/model_file.h"
#include "engine/tokenizer/utf8.h"
#include "tests/testing/gguf_writer.h"

namespace sluice::fuzz {
namespace {

using engine::MetadataArray;
using engine::TokenType;
using testing::GgufDraft;

constexpr const char* kWords[] = {"the",  " the",     " hello",       "hello",
                                  "aaaa", "\n\n",     "   ",          " t",
                                  "ist",  "\xC3\xA4", "\xE6\x9D\xB1", "\xF0\x9F\x99\x82"};
constexpr const char* kAdded[] = {"<|im_start|>", "<|im_end|>",    "<|im_",    "<think>",
                                  "<thinking>",   "<|endoftext|>", "aaaaaaaa|"};

struct Pieces {
  std::vector<std::string> texts;
  std::vector<int32_t> types;
  void Add(std::string text, TokenType type) {
    if (std::find(texts.begin(), texts.end(), text) != texts.end()) return;
    texts.push_back(std::move(text));
    types.push_back(static_cast<int32_t>(type));
  }
};

// GPT-2's spelling: printable bytes as themselves, the others from U+0100 on.
std::string Spelled(std::string_view bytes) {
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  };
  std::string out;
  for (const char c : bytes) {
    const auto byte = static_cast<uint8_t>(c);
    char32_t code = byte;
    if (!printable(byte)) {
      code = 256;
      for (int b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
    }
    engine::AppendUtf8(code, out);
  }
  return out;
}

std::shared_ptr<const engine::Tokenizer> Open(GgufDraft draft, Pieces pieces) {
  draft.SetStrings("tokenizer.ggml.tokens", std::move(pieces.texts));
  draft.Set("tokenizer.ggml.token_type", MetadataArray(std::move(pieces.types)));
  const testing::TempFile stored(draft.Bytes());
  const auto file = engine::ModelFile::Open(stored.path());
  if (file.ok()) {
    auto tokenizer = engine::Tokenizer::FromFile(**file);
    if (tokenizer.ok()) return *std::move(tokenizer);
    std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
  }
  std::abort();
}

void AddAdded(Pieces& pieces) {
  for (const std::string_view name : kAdded) {
    const bool is_control = name.ends_with("|>");
    pieces.Add(std::string(name), is_control ? TokenType::kControl : TokenType::kUserDefined);
  }
}

}  // namespace

std::shared_ptr<const engine::Tokenizer> MakeBpe(std::string_view pre) {
  Pieces pieces;
  std::vector<std::string> merges;
  for (int byte = 0; byte < 256; ++byte) {
    pieces.Add(Spelled(std::string(1, static_cast<char>(byte))), TokenType::kNormal);
  }
  for (const std::string_view word : kWords) {
    for (size_t size = 2; size <= word.size(); ++size) {
      merges.push_back(Spelled(word.substr(0, size - 1)) + " " + Spelled(word.substr(size - 1, 1)));
      pieces.Add(Spelled(word.substr(0, size)), TokenType::kNormal);
    }
  }
  AddAdded(pieces);
  GgufDraft draft;
  draft.SetString("tokenizer.ggml.model", "gpt2");
  draft.SetString("tokenizer.ggml.pre", pre);
  draft.SetStrings("tokenizer.ggml.merges", std::move(merges));
  draft.Set("tokenizer.ggml.bos_token_id", uint32_t{1});
  draft.Set("tokenizer.ggml.eos_token_id", uint32_t{2});
  return Open(std::move(draft), std::move(pieces));
}

std::shared_ptr<const engine::Tokenizer> MakeSpm(bool adds_space) {
  Pieces pieces;
  pieces.Add("<unk>", TokenType::kUnknown);
  pieces.Add("<s>", TokenType::kControl);
  pieces.Add("</s>", TokenType::kControl);
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    pieces.Add(name, TokenType::kByte);
  }
  const auto marked = [](std::string text) {
    for (size_t at = text.find(' '); at != std::string::npos; at = text.find(' ', at)) {
      text.replace(at, 1, "\xE2\x96\x81");
    }
    return text;
  };
  for (const char letter : std::string("abehlost ")) {
    pieces.Add(marked(std::string(1, letter)), TokenType::kNormal);
  }
  for (const std::string word : kWords) {
    for (size_t size = 2; size <= word.size(); ++size) {
      if (engine::FindInvalidUtf8(word.substr(0, size)) != std::string_view::npos) continue;
      pieces.Add(marked(word.substr(0, size)),
                 size % 3 == 0 ? TokenType::kUnused : TokenType::kNormal);
    }
  }
  AddAdded(pieces);
  std::vector<float> scores;
  for (size_t i = 0; i < pieces.texts.size(); ++i) scores.push_back(-static_cast<float>(i % 37));
  GgufDraft draft;
  draft.SetString("tokenizer.ggml.model", "llama");
  draft.Set("tokenizer.ggml.scores", MetadataArray(std::move(scores)));
  draft.Set("tokenizer.ggml.bos_token_id", uint32_t{1});
  draft.Set("tokenizer.ggml.eos_token_id", uint32_t{2});
  draft.Set("tokenizer.ggml.add_space_prefix", adds_space);
  return Open(std::move(draft), std::move(pieces));
}

}  // namespace sluice::fuzz
