#include "engine/inspect.h"

#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "tests/testing/gguf_writer.h"

namespace sluice::engine {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;
using testing::GgufDraft;
using testing::TempFile;

std::string Text(const std::string& path) {
  const auto text = InspectFile(path, /*json=*/false);
  EXPECT_TRUE(text.ok()) << Message(text.status());
  return text.ok() ? *text : "";
}

Json Parsed(const std::string& path) {
  const auto text = InspectFile(path, /*json=*/true);
  EXPECT_TRUE(text.ok()) << Message(text.status());
  return text.ok() ? Json::parse(*text) : Json();
}

TEST(InspectTest, AServableFileIsDescribedWhole) {
  const TempFile stored(testing::MakeTinyModel({}));
  const std::string text = Text(stored.path());
  EXPECT_THAT(text, HasSubstr(stored.path()));
  EXPECT_THAT(text, ContainsRegex("layers +2\n"));
  EXPECT_THAT(text, ContainsRegex("heads +4 \\(2 key/value\\), 16 values each\n"));
  EXPECT_THAT(text,
              ContainsRegex("tokenizer.ggml.tokens +array of string +320 \\[\".*, \\.\\.\\.\\]"));
  EXPECT_THAT(
      text,
      ContainsRegex("blk.1.attn_k.weight +\\[64, 32\\] +F32 +8.2 kB +attention key, layer 1\n"));
  EXPECT_THAT(text, HasSubstr("No problems"));
  EXPECT_THAT(text, Not(HasSubstr("Missing")));

  const Json json = Parsed(stored.path());
  EXPECT_EQ(json["path"], stored.path());
  EXPECT_EQ(json["version"], 3);
  EXPECT_EQ(json["alignment"], 32);
  EXPECT_EQ(json["architecture"], "llama");
  EXPECT_EQ(json["facts"]["layers"], 2);
  EXPECT_EQ(json["facts"]["vocab_size"], 320);
  EXPECT_EQ(json["facts"]["tied_head"], false);
  EXPECT_EQ(json["metadata"]["llama.block_count"]["type"], "u32");
  EXPECT_EQ(json["metadata"]["llama.block_count"]["value"], 2);
  EXPECT_EQ(json["metadata"]["tokenizer.ggml.tokens"]["length"], 320);
  EXPECT_EQ(json["metadata"]["tokenizer.ggml.tokens"]["first"].size(), 16u);
  EXPECT_EQ(json["tensors"].size(), 21u);
  EXPECT_EQ(json["tensors"][0]["name"], "token_embd.weight");
  EXPECT_EQ(json["tensors"][0]["shape"], Json({64, 320}));
  EXPECT_EQ(json["tensors"][0]["role"], "token embedding");
  EXPECT_EQ(json["tokenizer"]["tokens"], 320);
  EXPECT_EQ(json["tokenizer"]["pre"], "smollm");
  EXPECT_TRUE(json["missing"].empty());
  EXPECT_TRUE(json["problems"].empty());
}

TEST(InspectTest, ARefusedFileIsDescribedWithItsProblems) {
  GgufDraft draft = testing::MakeTinyModelDraft({});
  draft.RemoveTensor("blk.0.ffn_up.weight");
  draft.AddTensor("extra", {8}, kernels::DType::kF32, std::string(32, '\0'));
  const TempFile stored(draft.Bytes());
  const std::string text = Text(stored.path());
  EXPECT_THAT(text, HasSubstr("Missing (1)\n  blk.0.ffn_up.weight\n"));
  EXPECT_THAT(text, HasSubstr("Unused (1)\n  extra\n"));
  EXPECT_THAT(text, HasSubstr("Problems (1)\n  tensor 'blk.0.ffn_up.weight' (FFN up, layer 0): "
                              "expected [64, 160], got none"));
  const Json json = Parsed(stored.path());
  EXPECT_EQ(json["missing"], Json({"blk.0.ffn_up.weight"}));
  EXPECT_EQ(json["unused"], Json({"extra"}));
  EXPECT_EQ(json["problems"].size(), 1u);
  EXPECT_FALSE(json["facts"].contains("layers"));
}

TEST(InspectTest, UnknownArchitecturesAndTextThatIsNoTextAreShown) {
  GgufDraft draft = testing::MakeTinyModelDraft({});
  draft.SetString("general.architecture", "mamba");
  draft.SetString("general.description", "a\x1b[31mred\xff" + std::string(200, 'z'));
  const TempFile stored(draft.Bytes());
  const std::string text = Text(stored.path());
  EXPECT_THAT(text, HasSubstr("got 'mamba'"));
  EXPECT_THAT(text, HasSubstr("\"a\\x1b[31mred\\xffz"));
  EXPECT_THAT(text, HasSubstr("z\"... (210 bytes)"));
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
  EXPECT_EQ(Parsed(stored.path())["architecture"], "mamba");
}

TEST(InspectTest, CharactersThatTurnOrBreakLinesAreEscaped) {
  GgufDraft draft = testing::MakeTinyModelDraft({});
  draft.SetString("general.description", "Gr\u00f6\u00dfe\u202egpj\u2028two\u2029three\u200b");
  const TempFile stored(draft.Bytes());
  EXPECT_THAT(Text(stored.path()),
              HasSubstr("\"Gr\u00f6\u00dfe\\xe2\\x80\\xaegpj\\xe2\\x80\\xa8two\\xe2\\x80\\xa9three"
                        "\\xe2\\x80\\x8b\"\n"));
}

TEST(InspectTest, AVocabularyWithoutTensors) {
  GgufDraft draft = testing::MakeTinyModelDraft({});
  draft.tensors.clear();
  const TempFile stored(draft.Bytes());
  EXPECT_THAT(Text(stored.path()),
              HasSubstr("  no tensors: the file holds a vocabulary at most\n"));
  const Json json = Parsed(stored.path());
  EXPECT_EQ(json["tokenizer"]["model"], "gpt2");
  EXPECT_TRUE(json["tensors"].empty());
}

TEST(InspectTest, NumbersReadAsPeopleWriteThem) {
  testing::TinyModelSpec spec;
  spec.rope_base = 500000.0f;
  const TempFile stored(testing::MakeTinyModel(spec));
  const std::string text = Text(stored.path());
  EXPECT_THAT(text, HasSubstr("base 500000, 16 values of a head, interleaved\n"));
  EXPECT_THAT(text, ContainsRegex("norm epsilon +1e-05\n"));
}

TEST(InspectTest, AFileThatIsNoGgufIsAnError) {
  const TempFile stored("not a model at all");
  const auto text = InspectFile(stored.path(), false);
  EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(InspectFile("/nonexistent", true).status().code(), absl::StatusCode::kNotFound);
}

TEST(InspectTest, GoldenAndRealFiles) {
  for (const char* name :
       {"tiny-llama.f32", "tiny-llama.q4_1", "tiny-llama31.q8_0", "tiny-odd.f16"}) {
    const std::string path = std::string(SLUICE_GOLDEN_DIR "/tiny/") + name + ".gguf";
    const Json json = Parsed(path);
    EXPECT_TRUE(json["problems"].empty()) << json["problems"];
    EXPECT_TRUE(json["unused"].empty()) << json["unused"];
    EXPECT_THAT(Text(path), HasSubstr("No problems"));
  }
  const std::string smollm = SLUICE_MODELS_DIR "/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(smollm))
    GTEST_SKIP() << smollm << " is not there: run fetch_model.sh";
  const Json json = Parsed(smollm);
  EXPECT_EQ(json["tensors"].size(), 272u);
  EXPECT_TRUE(json["problems"].empty()) << json["problems"];
  EXPECT_EQ(json["facts"]["parameters"], 134515008);
}

}  // namespace
}  // namespace sluice::engine
