// Tokenizers made of vocabularies that contradict themselves: an input is a recipe for the
// tokenizer's part of a file, then a text. What is accepted has to encode and decode.

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "engine/model_file/model_file.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/fuzz/bytes_reader.h"
#include "tests/fuzz/memory_file.h"
#include "tests/fuzz/text_checks.h"
#include "tests/testing/gguf_writer.h"

namespace {

using sluice::engine::MetadataArray;
using sluice::engine::ModelFile;
using sluice::engine::Tokenizer;
using sluice::fuzz::BytesReader;
using sluice::fuzz::Check;
using sluice::testing::GgufDraft;

float Score(uint8_t byte) {
  if (byte == 255) return std::numeric_limits<float>::quiet_NaN();
  if (byte == 254) return std::numeric_limits<float>::infinity();
  if (byte == 253) return -std::numeric_limits<float>::infinity();
  return static_cast<float>(byte) - 100.0f;
}

// Letters first, so that short recipes have something to merge; one byte in front of each piece
// says how long it is, and whether it is one of those before with something behind it.
std::vector<std::string> TakePieces(BytesReader& input, bool spell_bytes) {
  std::vector<std::string> pieces;
  for (const char letter : std::string("abc t")) {
    pieces.push_back(letter == ' ' ? (spell_bytes ? "\xE2\x96\x81" : "\xC4\xA0")
                                   : std::string(1, letter));
  }
  if (spell_bytes) {
    for (const char* name : {"<unk>", "<s>", "<0x61>", "<0xC3>", "<0xA4>", "<0x00>"}) {
      pieces.push_back(name);
    }
  }
  for (int count = input.Byte() % 64; count > 0; --count) {
    const uint8_t how = input.Byte();
    std::string piece;
    if (how >= 128) piece = pieces[input.Byte() % pieces.size()];
    piece += how >= 192 ? pieces[input.Byte() % pieces.size()] : input.Text(how % 16);
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

std::vector<std::string> TakeMerges(BytesReader& input, const std::vector<std::string>& pieces) {
  std::vector<std::string> merges;
  for (int count = input.Byte() % 64; count > 0; --count) {
    const uint8_t how = input.Byte();
    if (how % 8 == 7) {
      merges.emplace_back(input.Text(how / 8));
    } else {
      merges.push_back(pieces[input.Byte() % pieces.size()] + " " +
                       pieces[input.Byte() % pieces.size()]);
    }
  }
  return merges;
}

GgufDraft TakeVocabulary(BytesReader& input) {
  constexpr const char* kPres[] = {"smollm", "qwen2", "llama-bpe", "default"};
  const uint8_t traits = input.Byte();
  const bool is_spm = traits % 2 == 1;
  GgufDraft draft;
  draft.SetString("tokenizer.ggml.model", is_spm ? "llama" : "gpt2");
  draft.SetString("tokenizer.ggml.pre", kPres[traits / 2 % 4]);
  const std::vector<std::string> pieces = TakePieces(input, is_spm);
  std::vector<int32_t> types;
  std::vector<float> scores;
  const size_t wrong_size = traits >= 248 ? 1 : 0;
  for (size_t i = 0; i + wrong_size < pieces.size(); ++i) {
    // Mostly of the type that the piece looks like.
    const uint8_t byte = input.Byte();
    const bool is_byte = pieces[i].starts_with("<0x");
    types.push_back(byte < 32 ? byte % 8 : is_byte ? 6 : byte < 48 ? 4 : 1);
    scores.push_back(Score(byte));
  }
  draft.Set("tokenizer.ggml.token_type", MetadataArray(std::move(types)));
  if (is_spm || traits % 8 == 6) draft.Set("tokenizer.ggml.scores", MetadataArray(scores));
  if (!is_spm) draft.SetStrings("tokenizer.ggml.merges", TakeMerges(input, pieces));
  draft.SetStrings("tokenizer.ggml.tokens", pieces);
  const uint8_t flags = input.Byte();
  draft.Set("tokenizer.ggml.add_bos_token", flags % 2 == 1);
  draft.Set("tokenizer.ggml.add_eos_token", flags / 2 % 2 == 1);
  if (flags / 4 % 2 == 1) draft.Set("tokenizer.ggml.add_space_prefix", flags / 8 % 2 == 1);
  if (flags < 240) {
    draft.Set("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(input.Byte()) % 80);
    draft.Set("tokenizer.ggml.eos_token_id", static_cast<int32_t>(input.Byte() % 80) - 1);
    draft.Set("tokenizer.ggml.eot_token_id", static_cast<uint32_t>(input.Byte()) % 80);
  }
  return draft;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static sluice::fuzz::MemoryFile memory;
  BytesReader input(data, size);
  const std::string file_bytes = TakeVocabulary(input).Bytes();
  memory.Fill(reinterpret_cast<const uint8_t*>(file_bytes.data()), file_bytes.size(), 0);
  const auto file = ModelFile::Open(memory.path());
  Check(file.ok());
  std::vector<std::string> warnings;
  const auto tokenizer = Tokenizer::FromFile(**file, &warnings);
  if (!tokenizer.ok()) return 0;
  for (const auto id : (*tokenizer)->end_of_generation()) {
    Check(id >= 0 && id < (*tokenizer)->vocab_size());
  }
  const auto ids = sluice::fuzz::CheckEncoding(**tokenizer, input.Rest());
  sluice::fuzz::CheckDecoding(*tokenizer, ids, /*skip_special=*/false, /*continues_text=*/false);
  return 0;
}
