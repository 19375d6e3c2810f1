// Directories as Hugging Face saves them, edited in one place each.

#include "engine/safetensors/safetensors_model.h"

#include <cstring>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "tests/engine/safetensors/model_directory.h"

namespace sluice::engine {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using testing::ModelDirectory;
using testing::SafetensorsBytes;

absl::StatusOr<ModelConfig> OpenConfig(const ModelDirectory& directory) {
  ASSIGN_OR_RETURN(const auto file, ModelFile::Open(directory.path()));
  return ModelConfig::FromFile(*file);
}

TEST(SafetensorsModelTest, SpeaksOfALlamaAsAGgufFileDoes) {
  const ModelDirectory directory("llama3");
  const auto file = ModelFile::Open(directory.path() + "/");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->path(), directory.path());
  EXPECT_EQ((*file)->format(), ModelFile::Format::kSafetensors);
  EXPECT_THAT((*file)->FileNames(), ::testing::ElementsAre("model.safetensors"));
  const FileTensor* embedding = (*file)->FindTensor("token_embd.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_THAT(embedding->dims, ::testing::ElementsAre(64, 390));
  EXPECT_EQ(embedding->type, kernels::DType::kBF16);
  EXPECT_EQ(embedding->At(), " ('model.embed_tokens.weight' in model.safetensors)");
  EXPECT_EQ((*file)->At("llama.embedding_length"), " (config.json key 'hidden_size')");
  const auto config = ModelConfig::FromFile(**file);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "llama");
  EXPECT_EQ(config->name, directory.path().substr(directory.path().rfind('/') + 1));
  EXPECT_TRUE(config->tied_head);
  EXPECT_TRUE(config->has_qkv_bias);
}

// The bytes of a tensor are those that its file holds at its place.
TEST(SafetensorsModelTest, ReadsEachTensorFromItsFile) {
  const ModelDirectory directory("qwen2");
  const auto file = ModelFile::Open(directory.path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->FileNames().size(), 5u);
  uint64_t end = (*file)->metadata_bytes();
  for (const FileTensor& tensor : (*file)->tensors()) {
    EXPECT_EQ(tensor.offset, end) << tensor.name;
    end = tensor.offset + tensor.bytes;
    const size_t quote = tensor.source.find("' in ");
    ASSERT_NE(quote, std::string::npos) << tensor.source;
    const std::string bytes = directory.Read(tensor.source.substr(quote + 5));
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof(length));
    const json header = json::parse(bytes.substr(8, length));
    const uint64_t begin =
        8 + length + header[tensor.source.substr(1, quote - 1)]["data_offsets"][0].get<uint64_t>();
    std::string read(tensor.bytes, '\0');
    ASSERT_TRUE((*file)->Read(tensor.offset, std::as_writable_bytes(std::span(read))).ok());
    EXPECT_EQ(read, bytes.substr(begin, tensor.bytes)) << tensor.name;
  }
  EXPECT_EQ(end, (*file)->file_bytes());
  // One read over all the seams at once.
  std::string all((*file)->file_bytes(), '\0');
  ASSERT_TRUE((*file)->Read(0, std::as_writable_bytes(std::span(all))).ok());
  EXPECT_TRUE(all.starts_with("config.json\n"));
  const FileTensor& last = (*file)->tensors().back();
  std::string read(last.bytes, '\0');
  ASSERT_TRUE((*file)->Read(last.offset, std::as_writable_bytes(std::span(read))).ok());
  EXPECT_TRUE(all.ends_with(read));
  std::byte beyond;
  EXPECT_EQ((*file)->Read((*file)->file_bytes(), {&beyond, 1}).code(), absl::StatusCode::kDataLoss);
}

std::string Digest(const ModelDirectory& directory) {
  const auto file = ModelFile::Open(directory.path());
  if (!file.ok()) return Message(file.status());
  const auto config = ModelConfig::FromFile(**file);
  if (!config.ok()) return Message(config.status());
  const auto weights = Weights::Load(**file, *config, {});
  return weights.ok() ? (*weights)->digest() : Message(weights.status());
}

TEST(SafetensorsModelTest, HasADigestOfEverythingThatItRead) {
  const ModelDirectory first("mistral"), second("mistral");
  const std::string digest = Digest(first);
  EXPECT_EQ(digest.size(), 64u) << digest;
  EXPECT_EQ(Digest(second), digest);
  json config = second.ReadJson("config.json");
  config["rms_norm_eps"] = 2e-5;
  second.WriteJson("config.json", config);
  EXPECT_NE(Digest(second), digest);
  std::string bytes = first.Read("model.safetensors");
  bytes.back() ^= 1;
  first.Write("model.safetensors", bytes);
  EXPECT_NE(Digest(first), digest);
}

TEST(SafetensorsModelTest, NoticesAShardThatChangesWhileItIsRead) {
  const ModelDirectory directory("qwen2");
  const auto file = ModelFile::Open(directory.path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->CheckUnchanged().ok());
  const std::string shard = directory.path() + "/model-00003-of-00005.safetensors";
  std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 1);
  const absl::Status status = (*file)->CheckUnchanged();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr("model-00003-of-00005.safetensors"));
}

TEST(SafetensorsModelTest, FindsShardsWithoutAnIndex) {
  const ModelDirectory directory("qwen2");
  directory.Remove("model.safetensors.index.json");
  const auto config = OpenConfig(directory);
  EXPECT_TRUE(config.ok()) << config.status();
}

// The factors that converters store for Llama 3.1: transformers' own numbers.
TEST(SafetensorsModelTest, ComputesTheFactorsOfLlama3) {
  const ModelDirectory directory("llama3");
  const auto file = ModelFile::Open(directory.path());
  ASSERT_TRUE(file.ok()) << file.status();
  const FileTensor* tensor = (*file)->FindTensor("rope_freqs.weight");
  ASSERT_NE(tensor, nullptr);
  std::vector<float> factors(8);
  ASSERT_EQ(tensor->bytes, factors.size() * sizeof(float));
  ASSERT_TRUE((*file)->Read(tensor->offset, std::as_writable_bytes(std::span(factors))).ok());
  // Waves of 6.3, 32.4, 167, .. positions; the model was trained on 64, kept below 16.
  EXPECT_THAT(factors, ::testing::ElementsAre(1.0f, ::testing::FloatNear(2.44226f, 1e-5f), 8.0f,
                                              8.0f, 8.0f, 8.0f, 8.0f, 8.0f));
}

struct DirectoryCase {
  const char* name;
  std::string golden;
  std::function<void(const ModelDirectory&)> edit;
  std::vector<std::string> says;
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
};
void PrintTo(const DirectoryCase& c, std::ostream* out) { *out << c.name; }

class SafetensorsModelErrorTest : public ::testing::TestWithParam<DirectoryCase> {};

TEST_P(SafetensorsModelErrorTest, IsRefusedWithTheReason) {
  const DirectoryCase& c = GetParam();
  const ModelDirectory directory(c.golden);
  if (!c.golden.empty()) {
    ASSERT_TRUE(OpenConfig(directory).ok()) << OpenConfig(directory).status();
  }
  c.edit(directory);
  const absl::Status status = OpenConfig(directory).status();
  EXPECT_EQ(status.code(), c.code) << Message(status);
  EXPECT_THAT(Message(status), ::testing::StartsWith(directory.path()));
  for (const std::string& text : c.says) EXPECT_THAT(Message(status), HasSubstr(text));
}

constexpr absl::StatusCode kUnsupported = absl::StatusCode::kUnimplemented;
constexpr char kIndex[] = "model.safetensors.index.json";

// config.json with `key` set to the JSON `value`.
std::function<void(const ModelDirectory&)> Config(std::string key, std::string value) {
  return [=](const ModelDirectory& directory) {
    json config = directory.ReadJson("config.json");
    config[json::json_pointer(key)] = json::parse(value);
    directory.WriteJson("config.json", config);
  };
}
std::function<void(const ModelDirectory&)> WithoutKey(std::string key) {
  return [=](const ModelDirectory& directory) {
    json config = directory.ReadJson("config.json");
    config.erase(key);
    directory.WriteJson("config.json", config);
  };
}
// The header of `file` after `edit`.
std::function<void(const ModelDirectory&)> Header(std::string file,
                                                  std::function<void(json&)> edit) {
  return [=](const ModelDirectory& directory) {
    const std::string bytes = directory.Read(file);
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof(length));
    json header = json::parse(bytes.substr(8, length));
    edit(header);
    directory.Write(file, SafetensorsBytes(header.dump(), bytes.substr(8 + length)));
  };
}
std::function<void(const ModelDirectory&)> Renamed(std::string from, std::string to) {
  return Header("model.safetensors", [=](json& header) {
    header[to] = header[from];
    header.erase(from);
  });
}
std::function<void(const ModelDirectory&)> Index(std::function<void(json&)> edit) {
  return [=](const ModelDirectory& directory) {
    json index = directory.ReadJson(kIndex);
    edit(index["weight_map"]);
    directory.WriteJson(kIndex, index);
  };
}

std::vector<DirectoryCase> DirectoryCases() {
  const std::string shard = "model-00002-of-00005.safetensors";
  return {
      // The directory.
      {"Empty", "", [](const ModelDirectory&) {}, {"config.json"}, absl::StatusCode::kNotFound},
      {"NoTensors",
       "llama3",
       [](const ModelDirectory& d) { d.Remove("model.safetensors"); },
       {"model.safetensors"},
       absl::StatusCode::kNotFound},
      {"ShardMissing",
       "qwen2",
       [=](const ModelDirectory& d) { d.Remove(shard); },
       {kIndex, "weight_map", shard},
       absl::StatusCode::kNotFound},
      {"ShardMissingWithoutIndex",
       "qwen2",
       [=](const ModelDirectory& d) {
         d.Remove(kIndex);
         d.Remove(shard);
       },
       {"expected file '" + shard + "'"}},
      {"TwoModels",
       "llama3",
       [](const ModelDirectory& d) {
         d.Write("model.fp16.safetensors", SafetensorsBytes("{}", ""));
       },
       {"one model", "model.fp16.safetensors"}},
      {"WholeModelBesideAnIndex",
       "qwen2",
       [](const ModelDirectory& d) { d.Write("model.safetensors", SafetensorsBytes("{}", "")); },
       {kIndex, "'model.safetensors' beside"}},
      {"ShardThatIsADirectory",
       "llama3",
       [](const ModelDirectory& d) {
         d.Remove("model.safetensors");
         std::filesystem::create_directory(d.path() + "/model.safetensors");
       },
       {"expected a regular file, got a directory"},
       absl::StatusCode::kFailedPrecondition},
      // The index.
      {"IndexNoJson", "qwen2", [](const ModelDirectory& d) { d.Write(kIndex, "{"); }, {kIndex}},
      {"IndexWithoutMap",
       "qwen2",
       [](const ModelDirectory& d) { d.Write(kIndex, "{}"); },
       {kIndex, "'weight_map': expected an object"}},
      {"IndexEmpty", "qwen2", Index([](json& map) { map = json::object(); }), {"expected tensors"}},
      {"IndexOfThousandsOfFiles",
       "qwen2",
       Index([](json& map) {
         for (int i = 0; i < 5000; ++i)
           map["t" + std::to_string(i)] = std::to_string(i) + ".safetensors";
       }),
       {kIndex, "'weight_map': expected at most 4096 files", "500"}},
      {"IndexNamesParentDirectory",
       "qwen2",
       Index([](json& map) { map["model.norm.weight"] = "../model.safetensors"; }),
       {"'model.norm.weight'", "in this directory", "../model.safetensors"}},
      {"IndexNamesAbsolutePath",
       "qwen2",
       Index([](json& map) { map["model.norm.weight"] = "/etc/model.safetensors"; }),
       {"in this directory"}},
      {"IndexNamesAnotherKindOfFile",
       "qwen2",
       Index([](json& map) { map["model.norm.weight"] = "pytorch_model.bin"; }),
       {"the name of a safetensors file"}},
      {"IndexNamesANumber",
       "qwen2",
       Index([](json& map) { map["model.norm.weight"] = 7; }),
       {"got 7"}},
      {"IndexPutsATensorElsewhere",
       "qwen2",
       Index([=](json& map) {
         map["model.layers.0.input_layernorm.weight"] =
             map["model.layers.0.input_layernorm.weight"] == shard
                 ? "model-00001-of-00005.safetensors"
                 : shard;
       }),
       {"'model.layers.0.input_layernorm.weight'", "the file that it lies in",
        "it is in 'model-0000"}},
      {"IndexNamesATensorThatIsNowhere",
       "qwen2",
       Index([=](json& map) { map["model.ghost.weight"] = shard; }),
       {"'model.ghost.weight'", "it is in none"}},
      {"IndexLacksATensor",
       "qwen2",
       Index([](json& map) { map.erase("model.norm.weight"); }),
       {"every tensor", "'model.norm.weight'"}},
      {"TensorInTwoShards",
       "qwen2",
       [=](const ModelDirectory& d) {
         d.Remove(kIndex);
         d.Write(shard, d.Read("model-00001-of-00005.safetensors"));
       },
       {"each tensor once", "'model-00001-of-00005.safetensors' has it too"}},
      // Tensors.
      {"TensorMissing",
       "llama3",
       Renamed("model.layers.1.self_attn.k_proj.bias", "model.layers.1.rotary_emb.inv_freq"),
       {"tensor 'model.layers.1.self_attn.k_proj.bias'", "got none"}},
      {"TensorWithoutAPlace",
       "llama3",
       Renamed("model.layers.1.self_attn.k_proj.bias", "model.layers.1.self_attn.k_proj.scale"),
       {"tensor 'model.layers.1.self_attn.k_proj.scale'", "LlamaForCausalLM", "no place"},
       kUnsupported},
      {"LayerBeyondTheLast",
       "llama3",
       Config("/num_hidden_layers", "1"),
       {"tensor 'model.layers.1.", "no place"},
       kUnsupported},
      {"OtherType",
       "llama3",
       Header("model.safetensors",
              [](json& header) { header["model.norm.weight"]["dtype"] = "I16"; }),
       {"tensor 'model.norm.weight'", "only F32, F16 and BF16", "I16"},
       kUnsupported},
      {"ThreeDimensions",
       "llama3",
       Header("model.safetensors",
              [](json& header) {
                header["model.norm.weight"]["shape"] = {1, 1, 64};
              }),
       {"'model.norm.weight'", "a vector or a matrix", "[1, 1, 64]"}},
      {"OtherShape",
       "llama3",
       Header("model.safetensors",
              [](json& header) {
                header["model.layers.0.self_attn.k_proj.weight"]["shape"] = {64, 32};
              }),
       {"blk.0.attn_k.weight", "expected [64, 32], got [32, 64] BF16",
        "('model.layers.0.self_attn.k_proj.weight' in model.safetensors)"}},
      // config.json.
      {"ConfigNoJson",
       "llama3",
       [](const ModelDirectory& d) { d.Write("config.json", "{\"a\":"); },
       {"config.json: ", "at byte 5"}},
      {"ConfigArray",
       "llama3",
       [](const ModelDirectory& d) { d.Write("config.json", "[]"); },
       {"config.json: ", "a JSON object"}},
      {"KeyTwice",
       "llama3",
       [](const ModelDirectory& d) {
         const std::string text = d.Read("config.json");
         d.Write("config.json", text.substr(0, text.rfind('}')) + ", \"hidden_size\": 64}");
       },
       {"config.json", "'hidden_size' again"}},
      {"NoClass", "llama3", WithoutKey("architectures"), {"'architectures'", "got none"}},
      {"OtherClass",
       "llama3",
       Config("/architectures", R"(["MixtralForCausalLM"])"),
       {"'architectures'", "LlamaForCausalLM, ", "'MixtralForCausalLM'"},
       kUnsupported},
      {"TwoClasses",
       "llama3",
       Config("/architectures", R"(["LlamaForCausalLM", "LlamaModel"])"),
       {"'architectures'", "LlamaModel"}},
      {"ClassOfAnotherType",
       "llama3",
       Config("/model_type", "\"mistral\""),
       {"'model_type'", "'mistral'"},
       kUnsupported},
      {"NoWidth", "llama3", WithoutKey("hidden_size"), {"key 'hidden_size'", "got none"}},
      {"WidthAsText", "llama3", Config("/hidden_size", "\"64\""), {"'hidden_size'", "got \"64\""}},
      {"NegativeLayers",
       "llama3",
       Config("/num_hidden_layers", "-2"),
       {"'num_hidden_layers'", "from 1 to 1024, got -2"}},
      {"TooManyLayers",
       "llama3",
       Config("/num_hidden_layers", "2000000000"),
       {"'num_hidden_layers'", "from 1 to 1024"}},
      {"HugeHead", "llama3", Config("/head_dim", "2000000000"), {"'head_dim'", "2000000000"}},
      {"NoEpsilon", "llama3", WithoutKey("rms_norm_eps"), {"'rms_norm_eps'", "got none"}},
      {"NegativeEpsilon",
       "llama3",
       Config("/rms_norm_eps", "-1.0"),
       {"layer_norm_rms_epsilon", "got -1", "(config.json key 'rms_norm_eps')"}},
      {"VocabularyOfAnotherSize",
       "llama3",
       Config("/vocab_size", "389"),
       {"vocab_size", "got 389", "(config.json key 'vocab_size')"}},
      {"UntiedHeadMissing",
       "llama3",
       Config("/tie_word_embeddings", "false"),
       {"tensor 'lm_head.weight'", "got none"}},
      {"BiasesUnannounced",
       "llama3",
       Config("/attention_bias", "false"),
       {"self_attn", ".bias'", "no place"},
       kUnsupported},
      {"BiasesMissing", "mistral", Config("/attention_bias", "true"), {".bias'", "got none"}},
      {"MlpBias", "llama3", Config("/mlp_bias", "true"), {"'mlp_bias'"}, kUnsupported},
      {"OtherActivation",
       "llama3",
       Config("/hidden_act", "\"gelu\""),
       {"'hidden_act'", "'silu'", "'gelu'"},
       kUnsupported},
      {"PartOfAHeadRotated",
       "llama3",
       Config("/partial_rotary_factor", "0.5"),
       {"'partial_rotary_factor'"},
       kUnsupported},
      {"Experts",
       "llama3",
       Config("/num_local_experts", "8"),
       {"'num_local_experts'", "not known", "got 8"},
       kUnsupported},
      {"Quantized",
       "llama3",
       Config("/quantization_config", R"({"quant_method": "awq"})"),
       {"'quantization_config'", "not known", "awq"},
       kUnsupported},
      {"WindowOfQwen",
       "qwen2",
       Config("/use_sliding_window", "true"),
       {"'use_sliding_window'"},
       kUnsupported},
      {"LayersWithWindows",
       "qwen2",
       Config("/layer_types", R"(["full_attention", "sliding_attention"])"),
       {"'layer_types'", "sliding_attention"},
       kUnsupported},
      {"LayerTypesOfFewerLayers",
       "qwen2",
       Config("/layer_types", R"(["full_attention"])"),
       {"'layer_types'", "2 layers"}},
      {"RopeOfAnotherType",
       "llama3",
       Config("/rope_parameters/rope_type", "\"dynamic\""),
       {"'rope_parameters'", "'rope_type'", "'dynamic'"},
       kUnsupported},
      {"RopeWithoutAFactor",
       "mistral",
       Config("/rope_scaling", R"({"type": "linear"})"),
       {"'rope_scaling'", "'factor'", "got none"}},
      {"RopeTypesThatDiffer",
       "mistral",
       Config("/rope_scaling", R"({"rope_type": "linear", "type": "yarn", "factor": 2.0})"),
       {"'rope_scaling'", "'linear'", "got 'yarn'"}},
      {"RopeIsNoObject",
       "mistral",
       Config("/rope_scaling", "[1]"),
       {"'rope_scaling'", "expected an object"}},
      {"RopeWithAnUnknownKey",
       "mistral",
       Config("/rope_scaling/short_mscale", "1.5"),
       {"'rope_scaling'", "'short_mscale'", "not known"},
       kUnsupported},
      {"RopeTwice",
       "mistral",
       Config("/rope_parameters", R"({"rope_type": "default"})"),
       {"'rope_scaling'", "got both"}},
      {"RopeBaseTwice",
       "llama3",
       Config("/rope_theta", "1234.0"),
       {"'rope_parameters'", "'rope_theta'"}},
      {"RopeBaseOfZero", "mistral", Config("/rope_theta", "0"), {"'rope_theta'", "above 0"}},
      {"RopeFactorsBackwards",
       "llama3",
       Config("/rope_parameters/high_freq_factor", "0.5"),
       {"'high_freq_factor'", "above"}},
  };
}

INSTANTIATE_TEST_SUITE_P(Cases, SafetensorsModelErrorTest, ::testing::ValuesIn(DirectoryCases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(SafetensorsModelTest, ReadsMistralsWindow) {
  const ModelDirectory directory("mistral");
  Config("/sliding_window", "32")(directory);
  const auto config = OpenConfig(directory);
  ASSERT_TRUE(config.ok()) << config.status();
  for (const LayerTraits& layer : config->layers) EXPECT_EQ(layer.window, 32);
}

// As DeepSeek-R1-0528-Qwen3-8B has it: Hugging Face reads attention_factor alone.
TEST(SafetensorsModelTest, IgnoresAttnFactorOfYarn) {
  const ModelDirectory directory("qwen3");
  json config = directory.ReadJson("config.json");
  config["rope_scaling"] = {{"rope_type", "yarn"},
                            {"factor", 4.0},
                            {"original_max_position_embeddings", 32},
                            {"attn_factor", 0.8782488562869419}};
  directory.WriteJson("config.json", config);
  auto read = OpenConfig(directory);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_FLOAT_EQ(read->ropes[0].magnitude, 1.1386294f);
  config["rope_scaling"]["attention_factor"] = 1.25;
  directory.WriteJson("config.json", config);
  read = OpenConfig(directory);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->ropes[0].magnitude, 1.25f);
}

TEST(SafetensorsModelTest, IgnoresUnknownKeysThatSayNothing) {
  const ModelDirectory directory("llama3");
  json config = directory.ReadJson("config.json");
  config["moe_layers"] = json::array();
  config["some_option"] = nullptr;
  config["alpha"] = 0.0;
  config["beta"] = false;
  config["gamma"] = "";
  directory.WriteJson("config.json", config);
  const auto read = OpenConfig(directory);
  EXPECT_TRUE(read.ok()) << read.status();
}

// What a file may hold beside what the forward pass uses, and a head although it says tied.
TEST(SafetensorsModelTest, IgnoresOldFrequenciesAndTakesAStoredHead) {
  const ModelDirectory directory("mistral");
  const std::string data(32, 'x');
  directory.Write("model-00001-of-00002.safetensors", directory.Read("model.safetensors"));
  directory.Write("model-00002-of-00002.safetensors",
                  SafetensorsBytes(R"({"model.layers.0.self_attn.rotary_emb.inv_freq":)"
                                   R"({"dtype":"F64","shape":[4],"data_offsets":[0,32]}})",
                                   data));
  directory.Remove("model.safetensors");
  Config("/tie_word_embeddings", "true")(directory);
  const auto config = OpenConfig(directory);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_FALSE(config->tied_head);
}

// Bytes changed, cut out or doubled anywhere in what is parsed: a clean answer each time, and the
// same files that were good are good again.
TEST(SafetensorsModelTest, AnswersWhateverTheBytesAre) {
  const auto seed = static_cast<uint32_t>(std::random_device()());
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  const auto below = [&random](size_t limit) { return random() % limit; };
  int refused = 0;
  for (const char* golden : {"llama3", "mistral", "qwen2"}) {
    const ModelDirectory directory(golden);
    const std::string shard =
        golden == std::string("qwen2") ? "model-00003-of-00005.safetensors" : "model.safetensors";
    for (const std::string& name : {std::string("config.json"), std::string("tokenizer.json"),
                                    std::string("tokenizer_config.json"), shard}) {
      const std::string good = directory.Read(name);
      for (int round = 0; round < 60; ++round) {
        std::string bad = good;
        for (size_t edits = 1 + below(3); edits > 0; --edits) {
          const size_t parsed = std::min<size_t>(bad.size(), 4096);
          if (parsed == 0) break;
          const size_t at = below(parsed);
          constexpr char kTelling[] = "{}[]\",:0-9e\\\x00\xff";
          switch (below(4)) {
            case 0:
              bad[at] = static_cast<char>(random());
              break;
            case 1:
              bad[at] = kTelling[below(sizeof(kTelling))];
              break;
            case 2:
              bad.erase(at, 1 + below(40));
              break;
            default:
              bad.insert(at, bad.substr(below(parsed), 1 + below(40)));
              break;
          }
        }
        directory.Write(name, bad);
        const auto file = ModelFile::Open(directory.path());
        if (!file.ok()) {
          ++refused;
          EXPECT_THAT(Message(file.status()), HasSubstr(directory.path()));
          continue;
        }
        const auto config = ModelConfig::FromFile(**file);
        if (config.ok()) (void)Weights::Load(**file, *config, {});
      }
      directory.Write(name, good);
      EXPECT_TRUE(OpenConfig(directory).ok());
    }
  }
  EXPECT_GT(refused, 200);
}

}  // namespace
}  // namespace sluice::engine
