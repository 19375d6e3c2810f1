#include "engine/model/weights.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/model/sha256.h"
#include "engine/model_file/model_file.h"
#include "tests/testing/gguf_writer.h"

namespace sluice::engine {
namespace {

using kernels::Backend;
using kernels::DType;
using testing::GgufDraft;
using ::testing::HasSubstr;
using testing::TempFile;
using testing::TinyModelSpec;

// A file with its config and weights; null weights when any step failed, and `status` says why.
struct Loaded {
  std::shared_ptr<const ModelFile> file;
  ModelConfig config;
  std::shared_ptr<const Weights> weights;
  absl::Status status;
};

Loaded LoadFile(const std::string& path, const Weights::LoadOptions& options = {}) {
  Loaded loaded;
  auto file = ModelFile::Open(path);
  if (!file.ok()) return {nullptr, {}, nullptr, file.status()};
  loaded.file = *file;
  auto config = ModelConfig::FromFile(*loaded.file, options.planted_bug);
  if (!config.ok()) return {loaded.file, {}, nullptr, config.status()};
  loaded.config = *config;
  auto weights = Weights::Load(*loaded.file, loaded.config, options);
  if (weights.ok()) loaded.weights = *weights;
  loaded.status = weights.status();
  return loaded;
}

Loaded LoadBytes(const std::string& bytes, const Weights::LoadOptions& options = {}) {
  const TempFile stored(bytes);
  return LoadFile(stored.path(), options);
}

std::vector<float> StoredValues(const GgufDraft& draft, const std::string& name) {
  for (const GgufDraft::Tensor& tensor : draft.tensors) {
    if (tensor.name != name) continue;
    int64_t count = 1;
    for (const uint64_t dim : tensor.dims) count *= static_cast<int64_t>(dim);
    std::vector<float> values(static_cast<size_t>(count));
    kernels::DequantizeStored(*kernels::DTypeFromGgml(tensor.type),
                              reinterpret_cast<const std::byte*>(tensor.bytes.data()), count,
                              values.data());
    return values;
  }
  return {};
}

void ExpectSameBits(const std::vector<float>& got, const std::vector<float>& want,
                    const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  ASSERT_FALSE(want.empty()) << what;
  EXPECT_EQ(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)), 0) << what;
}

std::vector<float> Unpack(const kernels::PackedWeight& weight) {
  std::vector<float> values(static_cast<size_t>(weight.rows * weight.cols));
  for (int64_t row = 0; row < weight.rows; ++row) {
    EXPECT_TRUE(kernels::UnpackWeightRow(weight, row, values.data() + row * weight.cols).ok());
  }
  return values;
}

void ExpectLayerHolds(const GgufDraft& draft, int index, const LayerWeights& layer, int width,
                      bool biased) {
  const std::string prefix = "blk." + std::to_string(index) + ".";
  const auto linear = [&](const kernels::Linear& held, const std::string& name, bool has_bias) {
    ExpectSameBits(Unpack(*held.weight), StoredValues(draft, prefix + name + ".weight"),
                   prefix + name);
    ASSERT_EQ(held.bias != nullptr, has_bias) << prefix + name;
    if (!has_bias) return;
    ExpectSameBits({held.bias, held.bias + held.outputs()},
                   StoredValues(draft, prefix + name + ".bias"), prefix + name + ".bias");
  };
  linear(layer.q, "attn_q", biased);
  linear(layer.k, "attn_k", biased);
  linear(layer.v, "attn_v", biased);
  linear(layer.attention_output, "attn_output", false);
  linear(layer.gate, "ffn_gate", false);
  linear(layer.up, "ffn_up", false);
  linear(layer.down, "ffn_down", false);
  ExpectSameBits({layer.attention_norm.weight, layer.attention_norm.weight + width},
                 StoredValues(draft, prefix + "attn_norm.weight"), prefix + "attn_norm");
  ExpectSameBits({layer.ffn_norm.weight, layer.ffn_norm.weight + width},
                 StoredValues(draft, prefix + "ffn_norm.weight"), prefix + "ffn_norm");
  EXPECT_EQ(layer.q_head_norm.weight, nullptr);
  EXPECT_EQ(layer.k_head_norm.weight, nullptr);
}

class WeightTypeTest : public ::testing::TestWithParam<DType> {};

TEST_P(WeightTypeTest, EveryTensorIsHeldAsStored) {
  for (const Backend backend : {Backend::kCpu, Backend::kRef}) {
    TinyModelSpec spec;
    spec.architecture = "qwen2";
    spec.vocab_size = 333;  // no multiple of a panel of 16 rows
    spec.matrix_type = GetParam();
    const GgufDraft draft = testing::MakeTinyModelDraft(spec);
    Weights::LoadOptions options;
    options.backend = backend;
    options.num_threads = 3;
    const Loaded loaded = LoadBytes(draft.Bytes(), options);
    ASSERT_TRUE(loaded.status.ok()) << Message(loaded.status);
    const Weights& weights = *loaded.weights;
    ASSERT_EQ(weights.layers().size(), 2u);
    for (int i = 0; i < 2; ++i) {
      ExpectLayerHolds(draft, i, weights.layers()[static_cast<size_t>(i)], spec.width, true);
    }
    ExpectSameBits(Unpack(weights.token_embedding()), StoredValues(draft, "token_embd.weight"),
                   "token_embd");
    ExpectSameBits(Unpack(*weights.head().weight), StoredValues(draft, "output.weight"), "output");
    ExpectSameBits({weights.output_norm().weight, weights.output_norm().weight + spec.width},
                   StoredValues(draft, "output_norm.weight"), "output_norm");
    EXPECT_EQ(weights.token_embedding().backend, backend);
    uint64_t stored = 0;
    for (const FileTensor& tensor : loaded.file->tensors()) stored += tensor.bytes;
    EXPECT_GE(weights.resident_bytes(), stored);
    EXPECT_LT(weights.resident_bytes(), stored + stored / 4);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, WeightTypeTest,
                         ::testing::Values(DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_1),
                         [](const auto& info) { return std::string(kernels::Name(info.param)); });

// The digest as its definition says, computed from the file alone.
std::string DigestOf(const ModelFile& file) {
  const auto hash = [&](uint64_t offset, uint64_t size) {
    std::vector<std::byte> bytes(size);
    EXPECT_TRUE(file.Read(offset, bytes).ok());
    Sha256 sha;
    sha.Add(bytes);
    return sha.Finish();
  };
  Sha256 all;
  all.Add(hash(0, file.metadata_bytes()));
  for (const FileTensor& tensor : file.tensors()) {
    if (tensor.name != "unused") all.Add(hash(tensor.offset, tensor.bytes));
  }
  return Sha256::Hex(all.Finish());
}

std::vector<float> Rows(const std::vector<float>& values, int width, int first, int count) {
  return {values.begin() + first * width, values.begin() + (first + count) * width};
}

// Rows of K are no multiple of a panel of 16, and pieces of 1 MiB end within parts.
TEST(WeightsTest, FusedTensorsAreHeldAsTheirMatrices) {
  TinyModelSpec spec;
  spec.architecture = "phi3";
  spec.width = 512;
  spec.heads = 16;
  spec.kv_heads = 1;
  spec.head_size = 34;
  spec.ffn_width = 1120;
  spec.layers = 1;
  for (const DType type : {DType::kF32, DType::kQ8_0}) {
    spec.matrix_type = type;
    const GgufDraft draft = testing::MakeTinyModelDraft(spec);
    for (const Backend backend : {Backend::kCpu, Backend::kRef}) {
      Weights::LoadOptions options;
      options.backend = backend;
      uint64_t last = 0, total = 0;
      options.progress = [&](uint64_t done, uint64_t of) {
        last = done;
        total = of;
      };
      const Loaded loaded = LoadBytes(draft.Bytes(), options);
      ASSERT_TRUE(loaded.status.ok()) << Message(loaded.status);
      EXPECT_EQ(last, total);
      const LayerWeights& layer = loaded.weights->layers()[0];
      const std::vector<float> qkv = StoredValues(draft, "blk.0.attn_qkv.weight");
      ASSERT_EQ(layer.k.weight->rows, 34);
      ExpectSameBits(Unpack(*layer.q.weight), Rows(qkv, 512, 0, 544), "query");
      ExpectSameBits(Unpack(*layer.k.weight), Rows(qkv, 512, 544, 34), "key");
      ExpectSameBits(Unpack(*layer.v.weight), Rows(qkv, 512, 578, 34), "value");
      const std::vector<float> gate_up = StoredValues(draft, "blk.0.ffn_up.weight");
      ExpectSameBits(Unpack(*layer.gate.weight), Rows(gate_up, 512, 0, 1120), "gate");
      ExpectSameBits(Unpack(*layer.up.weight), Rows(gate_up, 512, 1120, 1120), "up");
      EXPECT_EQ(loaded.weights->digest(), DigestOf(*loaded.file));
    }
  }
}

TEST(WeightsTest, LayerNormsHaveTheirBiasesAndPostNormsAreHeld) {
  TinyModelSpec spec;
  spec.architecture = "starcoder2";
  GgufDraft draft = testing::MakeTinyModelDraft(spec);
  const Loaded starcoder2 = LoadBytes(draft.Bytes());
  ASSERT_TRUE(starcoder2.status.ok()) << Message(starcoder2.status);
  const LayerWeights& layer = starcoder2.weights->layers()[1];
  const auto expect_norm = [&](const kernels::Norm& norm, const std::string& name) {
    ASSERT_NE(norm.weight, nullptr) << name;
    ExpectSameBits({norm.weight, norm.weight + 64}, StoredValues(draft, name + ".weight"), name);
    EXPECT_EQ(norm.epsilon, 1e-5f);
    EXPECT_EQ(norm.bias != nullptr, norm.kind == kernels::NormKind::kLayer);
    if (norm.bias == nullptr) return;
    ExpectSameBits({norm.bias, norm.bias + 64}, StoredValues(draft, name + ".bias"), name);
  };
  expect_norm(layer.attention_norm, "blk.1.attn_norm");
  expect_norm(layer.ffn_norm, "blk.1.ffn_norm");
  expect_norm(starcoder2.weights->output_norm(), "output_norm");
  EXPECT_EQ(layer.ffn_norm.kind, kernels::NormKind::kLayer);
  EXPECT_EQ(layer.attention_post_norm.weight, nullptr);
  EXPECT_EQ(layer.gate.weight, nullptr);
  ASSERT_NE(layer.up.bias, nullptr);
  ExpectSameBits({layer.up.bias, layer.up.bias + 160}, StoredValues(draft, "blk.1.ffn_up.bias"),
                 "up bias");

  spec.architecture = "gemma3";
  draft = testing::MakeTinyModelDraft(spec);
  const Loaded gemma3 = LoadBytes(draft.Bytes());
  ASSERT_TRUE(gemma3.status.ok()) << Message(gemma3.status);
  const LayerWeights& post = gemma3.weights->layers()[0];
  expect_norm(post.attention_post_norm, "blk.0.post_attention_norm");
  expect_norm(post.ffn_post_norm, "blk.0.post_ffw_norm");
  EXPECT_EQ(post.ffn_post_norm.kind, kernels::NormKind::kRms);
  ExpectSameBits({post.k_head_norm.weight, post.k_head_norm.weight + 16},
                 StoredValues(draft, "blk.0.attn_k_norm.weight"), "key norm");
}

TEST(WeightsTest, ATiedHeadIsTheEmbedding) {
  TinyModelSpec spec;
  spec.tied_head = true;
  const Loaded loaded = LoadBytes(testing::MakeTinyModel(spec));
  ASSERT_TRUE(loaded.status.ok()) << Message(loaded.status);
  EXPECT_EQ(loaded.weights->head().weight, &loaded.weights->token_embedding());
  EXPECT_EQ(loaded.weights->head().bias, nullptr);
}

TEST(WeightsTest, BiasesOfTheOutputsAreUsedWhereTheyAre) {
  GgufDraft draft = testing::MakeTinyModelDraft({});
  const std::string bias = testing::EncodeTensor(DType::kF32, std::vector<float>(64, 0.5f));
  draft.AddTensor("blk.1.attn_output.bias", {64}, DType::kF32, bias);
  draft.AddTensor("blk.0.ffn_down.bias", {64, 1}, DType::kF32, bias);
  const Loaded loaded = LoadBytes(draft.Bytes());
  ASSERT_TRUE(loaded.status.ok()) << Message(loaded.status);
  const auto& layers = loaded.weights->layers();
  EXPECT_EQ(layers[0].attention_output.bias, nullptr);
  ASSERT_NE(layers[1].attention_output.bias, nullptr);
  EXPECT_EQ(layers[1].attention_output.bias[63], 0.5f);
  ASSERT_NE(layers[0].down.bias, nullptr);
  EXPECT_EQ(layers[0].down.bias[0], 0.5f);
  EXPECT_EQ(layers[1].down.bias, nullptr);
}

TEST(WeightsTest, NormsOfSixteenBitsAreWidened) {
  for (const DType type : {DType::kF16, DType::kBF16}) {
    TinyModelSpec spec;
    spec.norm_type = type;
    const GgufDraft draft = testing::MakeTinyModelDraft(spec);
    const Loaded loaded = LoadBytes(draft.Bytes());
    ASSERT_TRUE(loaded.status.ok()) << Message(loaded.status);
    ExpectSameBits(
        {loaded.weights->output_norm().weight, loaded.weights->output_norm().weight + 64},
        StoredValues(draft, "output_norm.weight"), "output_norm");
  }
}

TEST(WeightsTest, MixedTypesOfOneLayer) {
  TinyModelSpec spec;
  spec.matrix_type = DType::kQ4_1;
  spec.key_type = DType::kQ8_0;
  spec.value_type = DType::kF16;
  const GgufDraft draft = testing::MakeTinyModelDraft(spec);
  const Loaded loaded = LoadBytes(draft.Bytes());
  ASSERT_TRUE(loaded.status.ok()) << Message(loaded.status);
  ExpectLayerHolds(draft, 1, loaded.weights->layers()[1], spec.width, false);
  EXPECT_EQ(loaded.weights->layers()[1].k.weight->type, DType::kQ8_0);
}

TEST(WeightsTest, TensorsOfManyPiecesKeepTheirRows) {
  TinyModelSpec spec;  // an embedding of several MiB: pieces of 1 MiB
  spec.width = 256;
  spec.layers = 1;
  spec.vocab_size = 5003;
  const GgufDraft draft = testing::MakeTinyModelDraft(spec);
  Weights::LoadOptions options;
  options.num_threads = 2;
  uint64_t last = 0, total = 0;
  int calls = 0;
  options.progress = [&](uint64_t done, uint64_t of) {
    EXPECT_GT(done, last);
    last = done;
    total = of;
    ++calls;
  };
  const Loaded loaded = LoadBytes(draft.Bytes(), options);
  ASSERT_TRUE(loaded.status.ok()) << Message(loaded.status);
  ExpectSameBits(Unpack(loaded.weights->token_embedding()),
                 StoredValues(draft, "token_embd.weight"), "token_embd");
  EXPECT_EQ(last, total);
  EXPECT_GT(calls, 20);
}

TEST(WeightsTest, TheDigestIsOfAllThatTheModelComputesWith) {
  TinyModelSpec spec;
  spec.rope_factors = {1, 1, 2, 4, 8, 8, 8, 8};
  GgufDraft draft = testing::MakeTinyModelDraft(spec);
  draft.AddTensor("unused", {8}, DType::kF32, std::string(32, 'u'));
  const Loaded one = LoadBytes(draft.Bytes());
  ASSERT_TRUE(one.status.ok()) << Message(one.status);
  EXPECT_EQ(one.weights->digest().size(), 64u);
  Weights::LoadOptions options;
  options.num_threads = 4;
  options.backend = Backend::kRef;
  const TempFile copy(draft.Bytes());
  const Loaded two = LoadFile(copy.path(), options);
  ASSERT_TRUE(two.status.ok()) << Message(two.status);
  EXPECT_EQ(two.weights->digest(), one.weights->digest());
  EXPECT_EQ(DigestOf(*two.file), one.weights->digest());

  const auto changed = [&](const GgufDraft& edited) {
    const Loaded loaded = LoadBytes(edited.Bytes());
    EXPECT_TRUE(loaded.status.ok()) << Message(loaded.status);
    return loaded.weights == nullptr ? one.weights->digest() : loaded.weights->digest();
  };
  GgufDraft edited = draft;
  edited.TensorAt("blk.1.attn_v.weight").bytes[100] ^= 1;
  EXPECT_NE(changed(edited), one.weights->digest());
  edited = draft;
  edited.TensorAt("rope_freqs.weight").bytes[0] ^= 1;
  EXPECT_NE(changed(edited), one.weights->digest());
  edited = draft;
  edited.TensorAt("unused").bytes[31] ^= 1;
  EXPECT_EQ(changed(edited), one.weights->digest());
  edited = draft;
  edited.TensorAt("unused").name = "unuser";
  EXPECT_NE(changed(edited), one.weights->digest());
  edited = draft;
  edited.SetString("general.name", "tiny llamb");
  EXPECT_NE(changed(edited), one.weights->digest());
}

TEST(WeightsTest, AFewLayersLoadWithoutADigest) {
  const TempFile stored(testing::MakeTinyModel({}));
  Loaded loaded = LoadFile(stored.path());
  ASSERT_TRUE(loaded.status.ok());
  loaded.config.num_layers = 1;
  Weights::LoadOptions options;
  options.compute_digest = false;
  const auto weights = Weights::Load(*loaded.file, loaded.config, options);
  ASSERT_TRUE(weights.ok()) << Message(weights.status());
  EXPECT_EQ((*weights)->layers().size(), 1u);
  EXPECT_EQ((*weights)->digest(), "");
  EXPECT_LT((*weights)->resident_bytes(), loaded.weights->resident_bytes());
}

TEST(WeightsTest, AConfigThatDisagreesIsRefused) {
  const TempFile stored(testing::MakeTinyModel({}));
  const Loaded loaded = LoadFile(stored.path());
  ASSERT_TRUE(loaded.status.ok());
  ModelConfig config = loaded.config;
  config.ffn_width = 256;
  const absl::Status status = Weights::Load(*loaded.file, config, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("'blk.0.ffn_gate.weight'"));
  EXPECT_THAT(Message(status), HasSubstr("expected [64, 256], got [64, 160] F32"));
}

// The CPU has products for every type; this build has none for CUDA.
TEST(WeightsTest, TypesWithoutProductsAreRefusedBeforeReading) {
  Weights::LoadOptions options;
  options.backend = Backend::kCuda;
  bool read = false;
  options.progress = [&](uint64_t, uint64_t) { read = true; };
  const Loaded loaded = LoadBytes(testing::MakeTinyModel({}), options);
  EXPECT_EQ(loaded.status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(Message(loaded.status), HasSubstr("tensor 'token_embd.weight'"));
  EXPECT_THAT(Message(loaded.status), HasSubstr("backend cuda has no products"));
  EXPECT_FALSE(read);
}

TEST(WeightsTest, AFileThatChangesDuringTheLoadIsDataLoss) {
  const std::string bytes = testing::MakeTinyModel({});
  const TempFile stored(bytes);
  const auto file = ModelFile::Open(stored.path());
  ASSERT_TRUE(file.ok());
  const auto config = ModelConfig::FromFile(**file);
  ASSERT_TRUE(config.ok());
  Weights::LoadOptions options;
  bool cut = false;
  options.progress = [&](uint64_t, uint64_t) {
    if (cut) return;
    cut = true;
    ASSERT_EQ(truncate(stored.path().c_str(), static_cast<off_t>(bytes.size() / 2)), 0);
  };
  absl::Status status = Weights::Load(**file, *config, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << Message(status);
  EXPECT_THAT(Message(status), HasSubstr(stored.path()));

  const TempFile touched(bytes);
  const auto other = ModelFile::Open(touched.path());
  ASSERT_TRUE(other.ok());
  options.progress = [&](uint64_t, uint64_t) {
    const timespec times[2] = {{0, UTIME_OMIT}, {1'000'000'000, 0}};
    ASSERT_EQ(utimensat(AT_FDCWD, touched.path().c_str(), times, 0), 0);
  };
  status = Weights::Load(**other, *config, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << Message(status);
}

TEST(WeightsTest, PlantedBugs) {
  TinyModelSpec spec;
  spec.qkv_bias = true;
  const std::string bytes = testing::MakeTinyModel(spec);
  Weights::LoadOptions options;
  options.planted_bug = kernels::PlantedBug::kKeyBiasDropped;
  const Loaded dropped = LoadBytes(bytes, options);
  ASSERT_TRUE(dropped.status.ok()) << Message(dropped.status);
  EXPECT_EQ(dropped.weights->layers()[0].k.bias, nullptr);
  EXPECT_NE(dropped.weights->layers()[0].q.bias, nullptr);
  for (const auto bug :
       {kernels::PlantedBug::kFfnFourTimesWidth, kernels::PlantedBug::kVocabularyUnpadded}) {
    options.planted_bug = bug;
    EXPECT_EQ(LoadBytes(bytes, options).status.code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(WeightsTest, SmolLm2LoadsInWellUnderASecond) {
  const std::string path = SLUICE_MODELS_DIR "/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there: run fetch_model.sh";
  Weights::LoadOptions options;
  options.num_threads = 2;
  double best = 1e9;
  for (int round = 0; round < 3; ++round) {
    const auto start = std::chrono::steady_clock::now();
    const Loaded loaded = LoadFile(path, options);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    ASSERT_TRUE(loaded.status.ok()) << Message(loaded.status);
    EXPECT_EQ(loaded.weights->layers().size(), 30u);
    EXPECT_GT(loaded.weights->resident_bytes(), uint64_t{90'000'000});
    best = std::min(best, taken.count());
  }
  RecordProperty("best_seconds", std::to_string(best));
  std::printf("loaded in %.3f s\n", best);
  // Ten times what an idle machine of two cores takes: the bound is against mistakes, not noise.
  EXPECT_LT(best, 5.0);
}

}  // namespace
}  // namespace sluice::engine
