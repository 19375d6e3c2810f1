// Steps of one token by the persistent kernel against the same steps by the ops' own kernels, bit
// by bit. Skipped where there is no device.

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/canary.h"
#include "kernels/cuda/workspace.h"
#include "kernels/ops.h"
#include "tests/testing/model_probe.h"
#include "tests/testing/synthetic_model.h"

namespace sluice {
namespace {

using engine::TokenId;

const std::string kGolden = SLUICE_GOLDEN_DIR;

std::vector<nlohmann::json> GoldenModels() {
  std::vector<nlohmann::json> models;
  for (const std::string folder : {"tiny", "architectures"}) {
    std::ifstream stream(kGolden + "/" + folder + "/manifest.json");
    for (nlohmann::json model : nlohmann::json::parse(stream)) {
      model["path"] = kGolden + "/" + folder + "/" + model["file"].get<std::string>();
      if (std::filesystem::exists(model["path"].get<std::string>())) models.push_back(model);
    }
  }
  return models;
}

using kernels::PersistentDecode;

constexpr PersistentDecode kPersistent[] = {PersistentDecode::kPrepared, PersistentDecode::kDirect};
const char* NameOf(PersistentDecode form) {
  return form == PersistentDecode::kOff        ? "the ops"
         : form == PersistentDecode::kPrepared ? "operands prepared"
                                               : "operands made as they are multiplied";
}

// Models that no program is made of (decode_recorder.cc): logits scaled or capped, norms behind
// products or with a mean, no gate; then heads of no multiple of 16 values.
bool HasProgram(const std::string& file) {
  for (const std::string other : {"gemma2", "gemma3", "granite", "stablelm", "starcoder2",
                                  "mistral3", "nemo", "qwen3.bf16"}) {
    if (file.rfind(other, 0) == 0) return false;
  }
  return true;
}

std::unique_ptr<engine::DeviceRunner> Open(
    const std::string& path, PersistentDecode persistent, int max_positions = 256,
    const std::function<void(engine::ModelConfig&)>& change_config = {}) {
  return testing::OpenProbe(path, {.backend = kernels::Backend::kCuda,
                                   .kv_type = kernels::DType::kF16,
                                   .max_positions = max_positions,
                                   .persistent_decode = persistent,
                                   .change_config = change_config});
}

// Whether the step that was run last was one of the persistent kernel, as it should be on a card
// that the kernel is for.
void ExpectPersistent(engine::DeviceRunner& runner, bool persistent, const char* form) {
  cudaDeviceProp card = {};
  ASSERT_EQ(cudaGetDeviceProperties(&card, 0), cudaSuccess);
  const bool is_hopper = SLUICE_CUDA_HOPPER && card.major == 9 && card.minor == 0;
  const auto& lone = kernels::cuda::WorkspaceOf(runner.exec()).lone;
  EXPECT_EQ(lone.program != nullptr && lone.takes_step, persistent && is_hopper) << form;
}

void ExpectSameBits(const std::vector<float>& ops, const std::vector<float>& other,
                    size_t positions, const std::string& name) {
  ASSERT_EQ(ops.size(), other.size()) << name;
  const size_t vocab = ops.size() / positions;
  size_t different = 0, first = positions;
  float worst = 0;
  for (size_t i = 0; i < ops.size(); ++i) {
    if (std::memcmp(&ops[i], &other[i], sizeof(float)) == 0) continue;
    if (different++ == 0) first = i / vocab;
    worst = std::max(worst, std::abs(ops[i] - other[i]));
  }
  EXPECT_EQ(different, 0u) << name << ": of " << ops.size() << ", first at position " << first
                           << " of those compared, largest difference " << worst;
}

// Several tiles of keys, several times over the handoff sets; fewer where gpu_check.sh says so.
size_t NumTokens() {
  const char* fewer = std::getenv("SLUICE_DECODE_TOKENS");
  return fewer == nullptr ? 200 : std::strtoul(fewer, nullptr, 10);
}

// Every position one by one, and in chunks.
void ExpectTheBitsOfTheOps(const std::string& path, std::span<const TokenId> tokens,
                           bool has_program) {
  const auto ops = Open(path, PersistentDecode::kOff);
  const std::vector<float> want = testing::AllLogits(*ops, tokens, 1);
  ExpectPersistent(*ops, false, NameOf(PersistentDecode::kOff));
  const auto chunks = Open(path, PersistentDecode::kOff);
  ExpectSameBits(want, testing::AllLogits(*chunks, tokens, 64), tokens.size(), "chunks of 64");
  for (const PersistentDecode form : kPersistent) {
    const auto runner = Open(path, form);
    ExpectSameBits(want, testing::AllLogits(*runner, tokens, 1), tokens.size(), NameOf(form));
    ExpectPersistent(*runner, has_program, NameOf(form));
  }
}

void SkipWithoutDevice() {
  const auto device = kernels::OpenDevice(0);
  if (!device.ok()) GTEST_SKIP() << device.status().message();
}

class CudaDecodeTest : public ::testing::TestWithParam<nlohmann::json> {
 protected:
  void SetUp() override { SkipWithoutDevice(); }
};

TEST_P(CudaDecodeTest, TheSameBitsAsTheOps) {
  auto tokens = GetParam()["ids"].get<std::vector<TokenId>>();
  const std::vector<TokenId> once = tokens;
  while (tokens.size() < NumTokens()) tokens.insert(tokens.end(), once.begin(), once.end());
  tokens.resize(NumTokens());
  ExpectTheBitsOfTheOps(GetParam()["path"], tokens, HasProgram(GetParam()["file"]));
}

std::string TestName(const ::testing::TestParamInfo<nlohmann::json>& info) {
  std::string name = info.param["file"];
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}
INSTANTIATE_TEST_SUITE_P(Models, CudaDecodeTest, ::testing::ValuesIn(GoldenModels()), TestName);

// A model of random weights in a file that lives as long as this.
class RandomModel {
 public:
  explicit RandomModel(const testing::SyntheticSpec& spec)
      : path_(::testing::TempDir() + "decode-" + std::to_string(::getpid()) + "-" + spec.name +
              "." + spec.types + ".gguf") {
    const auto report = testing::WriteSyntheticModel(spec, path_, 2);
    EXPECT_TRUE(report.ok()) << report.status();
  }
  ~RandomModel() { std::filesystem::remove(path_); }
  RandomModel(const RandomModel&) = delete;
  RandomModel& operator=(const RandomModel&) = delete;

  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

std::vector<TokenId> SomeTokens(size_t count, int vocab_size) {
  std::vector<TokenId> tokens(count);
  for (size_t i = 0; i < count; ++i) {
    tokens[i] = static_cast<TokenId>(i * 7919 % static_cast<size_t>(vocab_size));
  }
  return tokens;
}

// Rows of so many units of 64 columns that a warp has several chunks of them: slices of 3 to 7, 12,
// 20 and 24 units, which begin anywhere in a block of 256 and end within a chunk. And of two units,
// up's and gate's in turns, with a head whose last group has a tile less than the others.
class CudaDecodeLongRowsTest : public ::testing::TestWithParam<testing::SyntheticSpec> {
 protected:
  void SetUp() override { SkipWithoutDevice(); }
};

TEST_P(CudaDecodeLongRowsTest, TheSameBitsAsTheOps) {
  const RandomModel model(GetParam());
  ExpectTheBitsOfTheOps(
      model.path(), SomeTokens(std::min<size_t>(NumTokens(), 100), GetParam().vocab_size), true);
}

testing::SyntheticSpec Spec(const std::string& name, const std::string& types) {
  struct Shape {
    const char* name;
    const char* architecture;
    int width, heads, kv_heads, ffn_width, vocab_size;
  };
  constexpr Shape kShapes[] = {
      {"wide", "qwen2", 1792, 14, 2, 2816, 600},
      {"deep", "llama", 1536, 24, 8, 10240, 12300},
      {"small", "llama", 576, 9, 3, 1536, 17000},
      {"broad", "qwen2", 2304, 18, 2, 1280, 600},  // rows with a norm of more than 2,048 columns
      {"narrow", "llama", 512, 4, 2, 512, 600},    // for long contexts
  };
  const auto* shape = std::ranges::find(kShapes, name, &Shape::name);
  EXPECT_NE(shape, std::end(kShapes)) << name;
  testing::SyntheticSpec spec;
  spec.name = name;
  spec.architecture = shape->architecture;
  spec.layers = 2;
  spec.width = shape->width;
  spec.heads = shape->heads;
  spec.kv_heads = shape->kv_heads;
  spec.ffn_width = shape->ffn_width;
  spec.vocab_size = shape->vocab_size;
  spec.context_length = 8192;
  spec.types = types;
  return spec;
}

INSTANTIATE_TEST_SUITE_P(Models, CudaDecodeLongRowsTest,
                         ::testing::Values(Spec("wide", "q4_k_m"), Spec("wide", "q5_k_m"),
                                           Spec("wide", "q4_1"), Spec("wide", "q8_0"),
                                           Spec("wide", "q2_k"), Spec("wide", "q3_k_s"),
                                           Spec("wide", "q6_k"), Spec("deep", "q2_k"),
                                           Spec("wide", "bf16"), Spec("deep", "q4_k_m"),
                                           Spec("deep", "q5_k_m"), Spec("deep", "q5_0"),
                                           Spec("broad", "q8_0"), Spec("broad", "bf16"),
                                           Spec("small", "q4_1"), Spec("small", "bf16")),
                         [](const auto& info) { return info.param.name + "_" + info.param.types; });

// Contexts beyond 2,048 positions, whose parts of attention are of four tiles, up to the longest
// that the kernel takes and beyond, with and without a window.
struct LongContext {
  int window = 0;
  int heads = 4;  // of 512 values together
};
class CudaDecodeLongContextTest : public ::testing::TestWithParam<LongContext> {
 protected:
  void SetUp() override { SkipWithoutDevice(); }
};

// Logits of the positions around each border, which are run one by one; those between are not.
std::vector<float> LogitsAtBorders(engine::DeviceRunner& runner, std::span<const TokenId> tokens,
                                   PersistentDecode form) {
  constexpr size_t kBorders[] = {2048, 2112, 2304, 4096, 6000, 8192};
  constexpr size_t kBefore = 6, kBehind = 6;
  engine::ForwardProbe probe(runner);
  std::vector<float> all;
  size_t at = 0;
  const auto append = [&](size_t count) {
    EXPECT_TRUE(probe.Append(tokens.subspan(at, count), false).ok());
    at += count;
  };
  for (const size_t border : kBorders) {
    while (at < border - kBefore) append(std::min<size_t>(64, border - kBefore - at));
    while (at < std::min(border + kBehind, tokens.size())) {
      append(1);
      // The first steps of one token are the ops'.
      const bool takes = form != PersistentDecode::kOff && at <= 8192;
      if (all.size() / 600 >= 2) ExpectPersistent(runner, takes, NameOf(form));
      const auto row = runner.logits().Rows(1).flat();
      all.insert(all.end(), row.begin(), row.end());
    }
  }
  return all;
}

TEST_P(CudaDecodeLongContextTest, TheSameBitsAsTheOps) {
  testing::SyntheticSpec spec = Spec("narrow", "q8_0");
  spec.heads = GetParam().heads;
  const RandomModel model(spec);
  const std::vector<TokenId> tokens = SomeTokens(8195, 600);
  const auto set_window = [](engine::ModelConfig& config) {
    for (engine::LayerTraits& layer : config.layers) layer.window = GetParam().window;
  };
  const auto ops = Open(model.path(), PersistentDecode::kOff, 8256, set_window);
  const std::vector<float> want = LogitsAtBorders(*ops, tokens, PersistentDecode::kOff);
  for (const PersistentDecode form : kPersistent) {
    const auto runner = Open(model.path(), form, 8256, set_window);
    ExpectSameBits(want, LogitsAtBorders(*runner, tokens, form), want.size() / 600, NameOf(form));
  }
}

INSTANTIATE_TEST_SUITE_P(Windows, CudaDecodeLongContextTest,
                         ::testing::Values(LongContext{0, 4}, LongContext{70, 4},
                                           LongContext{500, 4}, LongContext{600, 4},
                                           LongContext{3000, 4}, LongContext{0, 8},
                                           LongContext{500, 8}, LongContext{0, 2},
                                           LongContext{70, 2}),
                         [](const auto& info) {
                           return "Window" + std::to_string(info.param.window) + "_D" +
                                  std::to_string(512 / info.param.heads);
                         });

}  // namespace
}  // namespace sluice
