// QuantizeModel: files that are not ours made again byte for byte, what they compute, and what is
// refused.

#include "engine/quantize.h"

#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "engine/model_file/model_file.h"
#include "engine/verify.h"
#include "tests/testing/gguf_writer.h"
#include "tests/testing/model_probe.h"
#include "tests/testing/npy.h"

namespace sluice::engine {
namespace {

using kernels::DType;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::string kGolden = SLUICE_GOLDEN_DIR;
const std::string kTinyFloats = kGolden + "/tiny/tiny-llama.f32.gguf";

// A folder of the test's own, removed with what is in it.
class Folder {
 public:
  Folder() {
    std::string name = ::testing::TempDir() + "quantize-XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string File(const std::string& name) const { return path_ + "/" + name; }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      names.push_back(entry.path().filename());
    }
    return names;
  }

 private:
  std::string path_;
};

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::byte> BytesOf(const ModelFile& file, const FileTensor& tensor) {
  std::vector<std::byte> bytes(tensor.bytes);
  EXPECT_TRUE(file.Read(tensor.offset, bytes).ok());
  return bytes;
}

std::shared_ptr<const ModelFile> OpenOrDie(const std::string& path) {
  auto file = ModelFile::Open(path);
  EXPECT_TRUE(file.ok()) << Message(file.status());
  return *file;
}

class QuantizeModelTest : public ::testing::TestWithParam<std::string> {
 protected:
  QuantizeOptions Options() const {
    QuantizeOptions options;
    options.type = *QuantizedTypeNamed(GetParam());
    options.num_threads = 2;
    return options;
  }
  Folder folder_;
};

// The golden files were made of the same weights by the gguf package.
TEST_P(QuantizeModelTest, GivesTheFilesThatTheReferenceGives) {
  const std::string out = folder_.File("out.gguf");
  const auto report = QuantizeModel(kTinyFloats, out, Options());
  ASSERT_TRUE(report.ok()) << Message(report.status());
  EXPECT_THAT(report->notes, IsEmpty());
  EXPECT_THAT(folder_.Names(), ElementsAre("out.gguf"));
  const auto made = OpenOrDie(out);
  const auto golden = OpenOrDie(kGolden + "/tiny/tiny-llama." + GetParam() + ".gguf");
  EXPECT_EQ(made->version(), 3u);
  EXPECT_EQ(report->bytes_out, made->file_bytes());
  ASSERT_EQ(made->tensors().size(), golden->tensors().size());
  for (const FileTensor& tensor : golden->tensors()) {
    const FileTensor* const ours = made->FindTensor(tensor.name);
    ASSERT_NE(ours, nullptr) << tensor.name;
    ASSERT_EQ(ours->ShapeString(), tensor.ShapeString()) << tensor.name;
    ASSERT_EQ(BytesOf(*made, *ours), BytesOf(*golden, tensor)) << tensor.name;
  }
  const auto source = OpenOrDie(kTinyFloats);
  for (const ModelFile::Entry& entry : source->entries()) {
    if (entry.key == "general.file_type" || entry.key == "general.quantization_version") continue;
    const MetadataValue* const value = made->Find(entry.key);
    ASSERT_NE(value, nullptr) << entry.key;
    EXPECT_EQ(*value, entry.value) << entry.key;
  }
  for (const char* key : {"general.file_type", "general.quantization_version"}) {
    const MetadataValue* const value = made->Find(key);
    ASSERT_NE(value, nullptr) << key;
    EXPECT_EQ(*value, *golden->Find(key)) << key;
  }
}

// Logits of a quantised model are off by what rounding adds. Of normally distributed weights a
// block's largest magnitude is about 2.1 standard deviations and its range 4.1; rounding to steps
// of them adds noise of a step / sqrt(12), relative to the weights. What sixteen and more such
// products in a row, attention among them, make of it was measured: 4.2 times that for tiny-llama,
// up to 8 times for the directories.
double LogitsBound(DType type) {
  const double symmetric = 2.1 / std::sqrt(12), from_minimum = 4.1 / std::sqrt(12);
  constexpr double kProducts = 10;
  switch (type) {
    case DType::kQ8_0:
      return kProducts * symmetric / 127;
    case DType::kQ4_0:
      return kProducts * symmetric / 8;
    case DType::kQ5_0:
      return kProducts * symmetric / 16;
    case DType::kQ4_1:
      return kProducts * from_minimum / 15;
    default:
      return kProducts * from_minimum / 31;
  }
}

double RelativeError(const std::vector<float>& actual, const std::vector<float>& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(double{actual[i]} - expected[i], 2);
    norm += std::pow(double{expected[i]}, 2);
  }
  return std::sqrt(error / norm);
}

nlohmann::json ModelIn(const std::string& manifest, const std::string& file) {
  std::ifstream stream(manifest);
  for (const nlohmann::json& model : nlohmann::json::parse(stream)) {
    if (model.value("file", "") == file || model.value("directory", "") == file) return model;
  }
  ADD_FAILURE() << file << " is not in " << manifest;
  return {};
}

TEST_P(QuantizeModelTest, ModelsComputeNearlyTheSameAndVerify) {
  const nlohmann::json model = ModelIn(kGolden + "/tiny/manifest.json", "tiny-llama.f32.gguf");
  const std::string out = folder_.File("out.gguf");
  ASSERT_TRUE(QuantizeModel(kTinyFloats, out, Options()).ok());
  const auto tokens = model["ids"].get<std::vector<TokenId>>();
  const std::vector<float> logits = testing::AllLogits(*testing::OpenProbe(out, {}), tokens, 16);
  const double error =
      RelativeError(logits, testing::LoadNpy(kGolden + "/tiny/tiny-llama.f32.logits.npy").values);
  std::printf("%s: relative error of the logits %.4f\n", GetParam().c_str(), error);
  EXPECT_LE(error, LogitsBound(Options().type));
  EXPECT_GT(error, 0.0);
  const auto verified = VerifyModel(out, {});
  ASSERT_TRUE(verified.ok()) << Message(verified.status());
  EXPECT_TRUE(verified->passed) << verified->first_beyond;
}

// Rows of Q and K come in Hugging Face's order, Gemma's norms less 1; the file has them as GGUF.
TEST_P(QuantizeModelTest, DirectoriesOfSafetensorsBecomeOrdinaryFiles) {
  for (const std::string name :
       {"llama3", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"}) {
    const std::string in = kGolden + "/safetensors/" + name;
    const std::string out = folder_.File(name + ".gguf");
    const auto report = QuantizeModel(in, out, Options());
    ASSERT_TRUE(report.ok()) << Message(report.status());
    const auto made = OpenOrDie(out);
    EXPECT_EQ(made->Find("llama.tensor_data_layout"), nullptr);
    const auto source = OpenOrDie(in);
    ASSERT_EQ(made->tensors().size(), source->tensors().size());
    for (const FileTensor& tensor : made->tensors()) {
      const DType kept = source->FindTensor(tensor.name)->type;  // qwen2: rows of 48 values
      const DType matrix = tensor.cols() % 32 == 0 ? Options().type : kept;
      EXPECT_EQ(tensor.type, tensor.dims.size() == 1 ? DType::kF32 : matrix) << tensor.name;
    }
    const nlohmann::json model = ModelIn(kGolden + "/safetensors/manifest.json", name);
    const auto tokens = model["ids"].get<std::vector<TokenId>>();
    const std::vector<float> logits = testing::AllLogits(*testing::OpenProbe(out, {}), tokens, 16);
    const double error = RelativeError(
        logits, testing::LoadNpy(kGolden + "/safetensors/" + name + ".logits.npy").values);
    std::printf("%s %s: relative error of the logits %.4f\n", name.c_str(), GetParam().c_str(),
                error);
    EXPECT_LE(error, LogitsBound(Options().type)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, QuantizeModelTest, ::testing::ValuesIn(QuantizedTypeNames()),
                         [](const auto& info) { return info.param; });

TEST(QuantizeTest, ThreadsAndPiecesDoNotChangeTheFile) {
  testing::TinyModelSpec spec;
  spec.width = 1024;  // more than one piece in token_embd
  spec.vocab_size = 1100;
  spec.layers = 1;
  const testing::TempFile in(testing::MakeTinyModel(spec));
  const Folder folder;
  std::string first;
  for (const int threads : {1, 3}) {
    const std::string out = folder.File(std::to_string(threads));
    uint64_t calls = 0, last = 0, total = 0;
    QuantizeOptions options;
    options.num_threads = threads;
    options.progress = [&](uint64_t done, uint64_t all) {
      ++calls;
      EXPECT_GT(done, last);
      last = done;
      total = all;
      return true;
    };
    const auto report = QuantizeModel(in.path(), out, options);
    ASSERT_TRUE(report.ok()) << Message(report.status());
    EXPECT_EQ(last, total);
    EXPECT_EQ(total, report->tensor_bytes);
    EXPECT_GT(calls, static_cast<uint64_t>(report->num_tensors)) << "pieces";
    if (first.empty()) first = ReadAll(out);
    EXPECT_EQ(ReadAll(out), first);
  }
}

TEST(QuantizeTest, KeepsWhatItIsToKeep) {
  testing::TinyModelSpec spec;
  spec.width = 40;  // rows of no whole blocks
  spec.heads = 2;
  spec.head_size = 32;
  spec.matrix_type = DType::kBF16;
  spec.norm_type = DType::kF16;
  const testing::TempFile in(testing::MakeTinyModel(spec));
  const Folder folder;
  QuantizeOptions options;
  options.type = DType::kQ4_0;
  const auto report = QuantizeModel(in.path(), folder.File("a"), options);
  ASSERT_TRUE(report.ok()) << Message(report.status());
  ASSERT_EQ(report->notes.size(), 1u);
  EXPECT_THAT(report->notes[0], HasSubstr("no multiple of 32"));
  const auto made = OpenOrDie(folder.File("a"));
  EXPECT_EQ(made->FindTensor("token_embd.weight")->type, DType::kBF16);
  EXPECT_EQ(made->FindTensor("blk.0.ffn_down.weight")->type, DType::kQ4_0);
  EXPECT_EQ(made->FindTensor("blk.0.attn_norm.weight")->type, DType::kF32);

  options.type = DType::kQ8_0;
  const auto again = QuantizeModel(folder.File("a"), folder.File("b"), options);
  ASSERT_TRUE(again.ok()) << Message(again.status());
  EXPECT_THAT(again->notes[0], HasSubstr("quantised already: copied"));
  EXPECT_EQ(again->num_quantized, 0);
  EXPECT_EQ(ReadAll(folder.File("b")), ReadAll(folder.File("a"))) << "nothing was left to do";
  options.only_floats = true;
  const auto refused = QuantizeModel(folder.File("a"), folder.File("c"), options);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(refused.status()), HasSubstr("Q4_0"));

  options = {};
  options.keep_output = true;
  ASSERT_TRUE(QuantizeModel(kTinyFloats, folder.File("d"), options).ok());
  EXPECT_EQ(OpenOrDie(folder.File("d"))->FindTensor("output.weight")->type, DType::kF32);
  EXPECT_EQ(OpenOrDie(folder.File("d"))->FindTensor("token_embd.weight")->type, DType::kQ8_0);
}

TEST(QuantizeTest, NamesTheValueThatCannotBeHeld) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -INFINITY, 3e38f}) {
    testing::GgufDraft draft = testing::MakeTinyModelDraft({});
    auto& tensor = draft.TensorAt("blk.1.ffn_up.weight");
    std::memcpy(tensor.bytes.data() + (3 * tensor.dims[0] + 7) * sizeof(bad), &bad, sizeof(bad));
    const testing::TempFile in(draft.Bytes());
    const Folder folder;
    const auto report = QuantizeModel(in.path(), folder.File("out"), {});
    EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(report.status()),
                ::testing::AllOf(HasSubstr("'blk.1.ffn_up.weight'"), HasSubstr("row 3, column 7")));
    EXPECT_THAT(folder.Names(), IsEmpty()) << "half a file";
  }
}

TEST(QuantizeTest, NeverReplacesUnasked) {
  const Folder folder;
  const std::string out = folder.File("out.gguf");
  std::ofstream(out) << "mine";
  auto report = QuantizeModel(kTinyFloats, out, {});
  EXPECT_EQ(report.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReadAll(out), "mine");
  QuantizeOptions options;
  options.replace = true;
  report = QuantizeModel(kTinyFloats, out, options);
  ASSERT_TRUE(report.ok()) << Message(report.status());
  EXPECT_EQ(OpenOrDie(out)->file_bytes(), report->bytes_out);
  EXPECT_THAT(folder.Names(), ElementsAre("out.gguf"));

  const std::string before = ReadAll(out);
  std::filesystem::create_hard_link(out, folder.File("link"));
  EXPECT_EQ(QuantizeModel(out, folder.File("link"), options).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadAll(out), before);
  EXPECT_EQ(QuantizeModel(out, "/dev/null", options).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(QuantizeModel(out, folder.File("none/out"), options).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(QuantizeTest, InterruptedLeavesNothing) {
  const Folder folder;
  QuantizeOptions options;
  options.progress = [](uint64_t done, uint64_t total) { return done * 2 < total; };
  const auto report = QuantizeModel(kTinyFloats, folder.File("out"), options);
  EXPECT_EQ(report.status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(folder.Names(), IsEmpty());
}

}  // namespace
}  // namespace sluice::engine
