// Limits under which a model cannot be served are refused with a status that says so, before the
// weights are read.

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/device_choice.h"
#include "engine/engine.h"
#include "tests/testing/gguf_writer.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;
using testing::TempFile;

// Bytes of a page of the default tiny model: K and V of 2 layers, 2 heads of 16 and 16 positions.
constexpr uint64_t kPageBytes = 2 * 2 * 2 * 16 * 16 * sizeof(float);

std::string ModelOfContext(int context_length) {
  testing::TinyModelSpec spec;
  spec.context_length = context_length;
  spec.vocabulary = false;
  return testing::MakeTinyModel(spec);
}

absl::StatusOr<LoadedModel> Load(const TempFile& file, const EngineOptions& options) {
  return LoadModel(file.path(), options, 1, nullptr);
}

EngineOptions OneThread() {
  EngineOptions options;
  options.num_threads = 1;
  return options;
}

class LoadModelLimitsTest : public ::testing::Test {
 protected:
  void ExpectRefused(const TempFile& file, const EngineOptions& options, absl::StatusCode code,
                     const std::string& message) {
    bool read_weights = false;
    const auto model = LoadModel(file.path(), options, 1, [&](const LoadProgress& progress) {
      read_weights = read_weights || progress.phase == "weights";
    });
    EXPECT_EQ(model.status().code(), code) << model.status();
    EXPECT_THAT(std::string(model.status().message()), HasSubstr(message));
    EXPECT_FALSE(read_weights);
  }
  void ExpectInvalid(const TempFile& file, const EngineOptions& options,
                     const std::string& message) {
    ExpectRefused(file, options, absl::StatusCode::kInvalidArgument, message);
  }

  const TempFile file_{ModelOfContext(128)};
};

TEST_F(LoadModelLimitsTest, AModelNeedsTwoPositions) {
  const TempFile one(ModelOfContext(1)), two(ModelOfContext(2));
  ExpectInvalid(one, OneThread(), "context_length: expected at least 2 positions, got 1");
  const auto model = Load(two, OneThread());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->facts.max_context, 2);
  EXPECT_EQ(model->dispatcher->engines()[0]->limits().max_context, 2);
}

TEST_F(LoadModelLimitsTest, ContextIsAtMostTheModels) {
  EngineOptions options = OneThread();
  options.max_context = 129;
  ExpectInvalid(file_, options, "context: the model has 128 positions, asked for 129");
  for (const int positions : {1, -1, (1 << 24) + 1}) {
    options.max_context = positions;
    ExpectInvalid(file_, options,
                  "context: expected 2 to 16777216, got " + std::to_string(positions));
  }
  options.max_context = 128;
  const auto model = Load(file_, options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->facts.max_context, 128);
}

TEST_F(LoadModelLimitsTest, AContextThatWasAskedForFitsThePool) {
  EngineOptions options = OneThread();
  options.kv_memory_bytes = 4 * kPageBytes;  // page 0 is nobody's
  options.max_context = 49;
  ExpectInvalid(file_, options, "context: 49 positions were asked for, the KV pool holds 48");
  options.max_context = 48;
  auto model = Load(file_, options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->facts.max_context, 48);
  EXPECT_EQ(model->facts.kv_pages, 3);
  options.max_context = 0;  // not asked for: what the pool holds
  model = Load(file_, options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->facts.max_context, 48);
}

TEST_F(LoadModelLimitsTest, ThePoolHasAPageBesidesPageZero) {
  EngineOptions options = OneThread();
  options.kv_memory_bytes = 2 * kPageBytes - 1;
  ExpectInvalid(file_, options, "at least 2 pages of 8192 bytes are needed, got 16383 bytes");
  options.kv_memory_bytes = 2 * kPageBytes;
  const auto model = Load(file_, options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->facts.kv_pages, 1);
  EXPECT_EQ(model->facts.max_context, 16);
}

TEST_F(LoadModelLimitsTest, ThePoolFitsMemory) {
  const TempFile large(ModelOfContext(1 << 24));
  EngineOptions options = OneThread();
  options.max_batch = 512;
  options.kv_memory_bytes = uint64_t{1} << 42;
  ExpectRefused(large, options, absl::StatusCode::kResourceExhausted,
                "KV memory: 1 x 536870912 pages of 8192 bytes do not fit the ");
  options.num_engines = 2;
  options.kv_memory_bytes = uint64_t{1} << 41;
  ExpectRefused(large, options, absl::StatusCode::kResourceExhausted, "KV memory: 2 x 268435456");
  options.max_batch = 4096;
  options.max_step_tokens = 4096;
  options.kv_memory_bytes = ~uint64_t{0};
  ExpectInvalid(large, options, "KV memory: at most 2^30 pages, got ");
}

TEST_F(LoadModelLimitsTest, NumbersOfEnginesThreadsAndRows) {
  const auto with = [](auto change) {
    EngineOptions options = OneThread();
    change(options);
    return options;
  };
  ExpectInvalid(file_, with([](EngineOptions& o) { o.num_engines = 0; }),
                "number of engines: expected 1 to 64, got 0");
  ExpectInvalid(file_, with([](EngineOptions& o) { o.num_engines = 65; }), "number of engines");
  ExpectInvalid(file_, with([](EngineOptions& o) { o.num_threads = -1; }),
                "threads of an engine: expected 0 to 1024, got -1");
  ExpectInvalid(file_, with([](EngineOptions& o) { o.num_threads = 1025; }), "threads of an");
  ExpectInvalid(file_, with([](EngineOptions& o) { o.num_engines = 64, o.num_threads = 17; }),
                "threads of all engines: expected 0 to 1024, got 1088");
  ExpectInvalid(file_, with([](EngineOptions& o) { o.max_batch = 0; }), "largest batch");
  ExpectInvalid(file_, with([](EngineOptions& o) { o.max_batch = 4097; }), "largest batch");
  ExpectInvalid(file_, with([](EngineOptions& o) { o.max_step_tokens = 0; }), "tokens of a step");
  ExpectInvalid(file_, with([](EngineOptions& o) { o.max_step_tokens = 65'537; }),
                "tokens of a step");
  ExpectInvalid(file_, with([](EngineOptions& o) { o.max_queue = 0; }), "queue: expected 1 to");
  ExpectInvalid(file_, with([](EngineOptions& o) { o.max_batch = 64, o.max_step_tokens = 63; }),
                "tokens of a step (63) must not be fewer than the largest batch (64)");
}

// The hash is compared before anything is parsed: bytes that are no model are refused by it too.
TEST_F(LoadModelLimitsTest, TheFileHasTheHashThatWasAskedFor) {
  const TempFile junk("not a model");
  const std::string of_junk = "05e3f9d47a28d1b4ec5c1ccbc1d5a6d4d3bd1a4a5a4b7bb7e2a9a9f0a3a70e21";
  EngineOptions options = OneThread();
  options.model_sha256 = of_junk;
  ExpectRefused(junk, options, absl::StatusCode::kFailedPrecondition,
                "sha256: expected " + of_junk + ", got ");
  options.model_sha256 = "abc";
  ExpectInvalid(file_, options, "sha256 of the model: expected 64 hex digits, got 'abc'");
  // FIPS 180-4's own example.
  const TempFile abc("abc");
  options.model_sha256 = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD";
  const auto parsed = Load(abc, options);
  EXPECT_THAT(std::string(parsed.status().message()), ::testing::Not(HasSubstr("sha256")));
}

TEST_F(LoadModelLimitsTest, TheHashOfADirectoryIsThatOfItsOneFile) {
  const std::filesystem::path directory = std::filesystem::path(::testing::TempDir()) /
                                          ("hashed_directory." + std::to_string(getpid()));
  std::filesystem::create_directories(directory);
  std::ofstream(directory / "model.gguf") << "abc";
  EngineOptions options = OneThread();
  const auto refusal = [&] {
    return std::string(LoadModel(directory.string(), options, 1, nullptr).status().message());
  };
  const std::string of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  options.model_sha256 = std::string(64, '0');
  EXPECT_EQ(refusal(), (directory / "model.gguf").string() + ": sha256: expected " +
                           options.model_sha256 + ", got " + of_abc);
  options.model_sha256 = of_abc;
  EXPECT_THAT(refusal(), HasSubstr("model.gguf: "));
  EXPECT_THAT(refusal(), ::testing::Not(HasSubstr("sha256")));

  std::ofstream(directory / "config.json") << "{}";
  EXPECT_EQ(refusal(), directory.string() +
                           ": sha256: expected one GGUF file, got a directory without one or with "
                           "config.json");
  std::filesystem::remove_all(directory);
}

TEST(DeviceChoiceTest, DescribesTheDeviceAndWhichKernelsRunThere) {
  DeviceChoice choice = {.backend = kernels::Backend::kCuda,
                         .name = "cuda:0 NVIDIA H200",
                         .major = 9,
                         .minor = 0,
                         .own_kernels = true};
  EXPECT_EQ(choice.Describe(), "cuda:0 NVIDIA H200, compute capability 9.0, its own kernels");
  choice = {
      .backend = kernels::Backend::kCuda, .name = "cuda:1 NVIDIA A10", .major = 8, .minor = 6};
  EXPECT_EQ(choice.Describe(), "cuda:1 NVIDIA A10, compute capability 8.6, generic kernels");
}

TEST_F(LoadModelLimitsTest, FactsOfADeviceAreEmptyOnTheCpu) {
  const auto model = Load(file_, OneThread());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->facts.device, "");
  EXPECT_EQ(model->facts.device_workspace_bytes, 0u);
  EXPECT_EQ(model->facts.device_free_bytes, 0u);
}

}  // namespace
}  // namespace sluice::engine
