// What a DeviceRunner promises on a GPU beyond right logits: graphs give the bits of eager steps,
// rows that fill a bucket up write to page 0 alone, memory that cannot be had is an error with the
// numbers, weights arrive as on the CPU whatever the pieces, verify and the self-check see what
// they should. Skipped where there is no device.

#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/canary.h"
#include "engine/engine.h"
#include "engine/kv/kv_cache.h"
#include "engine/model/weights.h"
#include "engine/model_file/model_file.h"
#include "engine/verify.h"
#include "engine/warm_up.h"
#include "kernels/cuda/workspace.h"
#include "tests/testing/collect.h"
#include "tests/testing/gguf_writer.h"
#include "tests/testing/model_probe.h"

namespace sluice {
namespace {

using engine::TokenId;
using kernels::Backend;
using kernels::DType;
using ::testing::HasSubstr;

const std::string kTiny = std::string(SLUICE_GOLDEN_DIR) + "/tiny/";

class CudaRunnerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto device = kernels::OpenDevice(0);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
  }
};

struct SilentObserver final : kernels::OpObserver {
  void OnOp(std::string_view, int, std::span<const float>, int64_t, int64_t) override {}
};

// A step of single tokens of `rows` sequences at `position`, each with pages of its own.
struct DecodeStep {
  std::vector<int32_t> tokens, positions, row_begins{0}, page_begins{0}, pages, logit_tokens,
      adapters;

  DecodeStep(int rows, int position, int pages_each) {
    for (int row = 0; row < rows; ++row) {
      tokens.push_back((row * 31 + position * 7) % 200);
      positions.push_back(position);
      for (int page = 0; page <= position / kernels::kPageTokens; ++page) {
        pages.push_back(1 + row * pages_each + page);
      }
      row_begins.push_back(row + 1);
      page_begins.push_back(static_cast<int32_t>(pages.size()));
      logit_tokens.push_back(row);
      adapters.push_back(0);
    }
  }
  kernels::BatchView View() const {
    kernels::BatchView batch;
    batch.num_tokens = batch.num_rows = batch.num_logit_rows = static_cast<int64_t>(tokens.size());
    batch.tokens = tokens.data();
    batch.positions = positions.data();
    batch.row_begins = row_begins.data();
    batch.page_begins = page_begins.data();
    batch.pages = pages.data();
    batch.logit_tokens = logit_tokens.data();
    batch.adapters = adapters.data();
    return batch;
  }
};

constexpr int kPagesEach = 4;

std::unique_ptr<engine::DeviceRunner> OpenRunner(
    const std::string& path, int max_rows, bool dependent_launches = true,
    kernels::PersistentDecode persistent_decode = kernels::PersistentDecode::kAuto,
    std::optional<int> num_pages = std::nullopt) {
  const auto file = engine::ModelFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  auto facts = engine::ModelConfig::FromFile(**file);
  EXPECT_TRUE(facts.ok()) << facts.status();
  auto config = std::make_shared<const engine::ModelConfig>(*std::move(facts));
  auto weights =
      engine::Weights::Load(**file, *config, {.backend = Backend::kCuda, .progress = {}});
  EXPECT_TRUE(weights.ok()) << weights.status();
  auto runner =
      engine::DeviceRunner::Create({.exec = {.backend = Backend::kCuda,
                                             .persistent_decode = persistent_decode,
                                             .dependent_launches = dependent_launches},
                                    .kv_type = DType::kF16,
                                    .num_pages = 1 + num_pages.value_or(max_rows * kPagesEach),
                                    .max_tokens = 64,
                                    .max_rows = max_rows,
                                    .max_context = kPagesEach * kernels::kPageTokens},
                                   config, *weights);
  EXPECT_TRUE(runner.ok()) << runner.status();
  return *std::move(runner);
}

std::vector<float> Logits(engine::DeviceRunner& runner, const DecodeStep& step) {
  absl::Status status = runner.Forward(step.View());
  EXPECT_TRUE(status.ok()) << status;
  status = runner.FetchLogits();
  EXPECT_TRUE(status.ok()) << status;
  const auto rows = runner.logits().Rows(static_cast<int64_t>(step.tokens.size())).flat();
  return {rows.begin(), rows.end()};
}

// The first step of a shape is eager, the second is timed and then recorded, all later ones are
// replayed, those of one token as the persistent kernel; with an observer all are eager.
TEST_F(CudaRunnerTest, GraphsGiveTheBitsOfEagerSteps) {
  for (const std::string file : {"tiny-llama.q4_1.gguf", "tiny-odd.f16.gguf"}) {
    for (const int rows : {1, 2, 5, 8, 11}) {
      const auto replayed = OpenRunner(kTiny + file, 16);
      const auto eager = OpenRunner(kTiny + file, 16);
      SilentObserver observer;
      eager->exec().set_observer(&observer);
      for (int position = 0; position < kPagesEach * kernels::kPageTokens; ++position) {
        const DecodeStep step(rows, position, kPagesEach);
        const std::vector<float> got = Logits(*replayed, step), want = Logits(*eager, step);
        ASSERT_EQ(got.size(), want.size());
        ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0)
            << file << ", " << rows << " rows at position " << position;
      }
    }
  }
}

std::vector<std::byte> AllPages(const engine::DeviceRunner& runner) {
  std::vector<std::byte> all;
  for (const kernels::KvLayer& layer : runner.kv().layers()) {
    const auto bytes = static_cast<size_t>(
        layer.num_pages * kernels::KvPageBytes(layer.type, layer.num_kv_heads, layer.head_size) /
        2);
    for (const std::byte* array : {layer.k, layer.v}) {
      std::vector<std::byte> pages(bytes);
      EXPECT_TRUE(kernels::CopyFromBackend(Backend::kCuda, pages.data(), array, bytes).ok());
      // Rows of padding race for page 0.
      all.insert(all.end(), pages.begin() + static_cast<long>(bytes / layer.num_pages),
                 pages.end());
    }
  }
  return all;
}

// By rows: what replays steps of so many.
std::map<int32_t, cudaGraphExec_t> GraphsOf(engine::DeviceRunner& runner) {
  std::map<int32_t, cudaGraphExec_t> graphs;
  for (const auto& [rows, graph] : kernels::cuda::WorkspaceOf(runner.exec()).graphs) {
    graphs[rows] = graph.exec;
  }
  return graphs;
}

TEST_F(CudaRunnerTest, AfterTheWarmUpStepsMakeNoGraphs) {
  constexpr int kRows = 18;
  const auto runner = OpenRunner(kTiny + "tiny-llama.q4_1.gguf", kRows);
  const auto eager = OpenRunner(kTiny + "tiny-llama.q4_1.gguf", kRows);
  SilentObserver observer;
  eager->exec().set_observer(&observer);
  const absl::Status warm = engine::WarmUp(*runner);
  ASSERT_TRUE(warm.ok()) << warm;
  const auto& lone = kernels::cuda::WorkspaceOf(runner->exec()).lone;
  EXPECT_EQ(lone.tried, lone.possible);
  const auto graphs = GraphsOf(*runner);
  ASSERT_EQ(graphs.size(), 9u) << "1, 2, 3, 4, 6, 8, 12, 16 and 18 rows";
  // A lone row's, too: it may be at a position that its one kernel does not take.
  for (const auto& [rows, graph] : graphs) EXPECT_NE(graph, nullptr) << rows;
  for (int rows = 1; rows <= kRows; ++rows) {
    for (int position = 0; position < 5; ++position) {
      const DecodeStep step(rows, position, kPagesEach);
      const std::vector<float> got = Logits(*runner, step), want = Logits(*eager, step);
      ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0)
          << rows << " rows at position " << position;
    }
  }
  EXPECT_EQ(GraphsOf(*runner), graphs);
}

// Of a pool that has more; with one alone, another would be the next layer's.
TEST_F(CudaRunnerTest, TheWarmUpNeedsOnePage) {
  EXPECT_TRUE(engine::WarmUp(*OpenRunner(kTiny + "tiny-llama.q4_1.gguf", 2, true,
                                         kernels::PersistentDecode::kAuto, 1))
                  .ok());
  for (const int max_rows : {1, 2, 16}) {
    const auto runner = OpenRunner(kTiny + "tiny-llama.q4_1.gguf", max_rows, true,
                                   kernels::PersistentDecode::kAuto, 2);
    const std::vector<std::byte> before = AllPages(*runner);
    const absl::Status warm = engine::WarmUp(*runner);
    ASSERT_TRUE(warm.ok()) << warm;
    const std::vector<std::byte> after = AllPages(*runner);
    ASSERT_EQ(before.size(), after.size());
    const size_t arrays = 2 * runner->kv().layers().size(), page = after.size() / arrays / 2;
    for (size_t i = 0; i < arrays; ++i) {
      const size_t first = i * 2 * page, second = first + page;
      EXPECT_FALSE(std::equal(&after[first], &after[second], &before[first])) << "page 1";
      EXPECT_EQ(std::memcmp(&after[second], &before[second], page), 0) << "page 2";
    }
  }
}

// As many as there were when this was written: a module that is passed over is missed.
TEST_F(CudaRunnerTest, KernelsAreLoadedAheadOfTheirLaunches) {
  if (!kernels::OpenDevice(0)->own_kernels) GTEST_SKIP() << "they would be compiled from PTX";
  for (int turn = 0; turn < 2; ++turn) {  // and may be loaded already
    const auto loaded = kernels::LoadKernels();
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_GE(*loaded, 125);
  }
}

// Kernels that begin before the ones they follow have ended change nothing: 10,000 steps, most of
// them launched behind one another without a pause.
TEST_F(CudaRunnerTest, DependentLaunchesChangeNothing) {
  constexpr int kSteps = 10'000;
  const std::string file = kTiny + "tiny-llama.q4_1.gguf";
  const auto early =
      OpenRunner(file, 16, /*dependent_launches=*/true, kernels::PersistentDecode::kOff);
  const auto late =
      OpenRunner(file, 16, /*dependent_launches=*/false, kernels::PersistentDecode::kOff);
  const int rows[] = {1, 8, 5, 1, 3, 12, 1, 2};
  for (int i = 0; i < kSteps; ++i) {
    const DecodeStep step(rows[i / 64 % 8], i % (kPagesEach * kernels::kPageTokens), kPagesEach);
    if (i % 20 != 19) {
      ASSERT_TRUE(early->Forward(step.View()).ok());
      ASSERT_TRUE(late->Forward(step.View()).ok());
      continue;
    }
    const std::vector<float> got = Logits(*early, step), want = Logits(*late, step);
    ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0) << "step " << i;
  }
  EXPECT_EQ(AllPages(*early), AllPages(*late));
}

// All pages are filled with a pattern that no step writes; after steps whose buckets are not full,
// only page 0 and the positions of the rows themselves have changed.
TEST_F(CudaRunnerTest, RowsOfPaddingWriteToPageZeroAlone) {
  const auto runner = OpenRunner(kTiny + "tiny-llama.q4_1.gguf", 16);
  const std::span<const kernels::KvLayer> layers = runner->kv().layers();
  const auto page_bytes = static_cast<size_t>(kernels::KvPageBytes(
                              DType::kF16, layers[0].num_kv_heads, layers[0].head_size)) /
                          2;
  const size_t bytes = page_bytes * static_cast<size_t>(layers[0].num_pages);
  const std::vector<std::byte> pattern(bytes, std::byte{0x7F});  // NaN in f16
  for (const int rows : {5, 9, 13}) {                            // buckets of 6, 12 and 16
    for (int turn = 0; turn < 3; ++turn) {                       // eager, recorded, replayed
      for (const kernels::KvLayer& layer : layers) {
        for (std::byte* array : {layer.k, layer.v}) {
          ASSERT_TRUE(kernels::CopyToBackend(Backend::kCuda, array, pattern.data(), bytes).ok());
        }
      }
      const DecodeStep step(rows, 0, kPagesEach);
      Logits(*runner, step);
      for (const kernels::KvLayer& layer : layers) {
        for (const std::byte* array : {layer.k, layer.v}) {
          std::vector<std::byte> after(bytes);
          ASSERT_TRUE(kernels::CopyFromBackend(Backend::kCuda, after.data(), array, bytes).ok());
          for (size_t page = 1; page < bytes / page_bytes; ++page) {
            size_t written = 0;
            for (size_t i = 0; i < page_bytes; ++i) {
              written += after[page * page_bytes + i] != std::byte{0x7F};
            }
            const size_t row = (page - 1) / kPagesEach;
            const bool is_first = (page - 1) % kPagesEach == 0;
            if (row < static_cast<size_t>(rows) && is_first) {
              EXPECT_GT(written, 0u) << "the row's own page " << page;
              EXPECT_LE(written, page_bytes / kernels::kPageTokens) << "one position of a page";
            } else {
              EXPECT_EQ(written, 0u) << rows << " rows, page " << page;
            }
          }
        }
      }
    }
  }
}

TEST_F(CudaRunnerTest, CopiesPages) {
  const auto runner = OpenRunner(kTiny + "tiny-llama.q4_1.gguf", 16);
  for (int position = 0; position < 20; ++position) {
    Logits(*runner, DecodeStep(3, position, kPagesEach));
  }
  const std::span<const kernels::KvLayer> layers = runner->kv().layers();
  const std::vector<int32_t> from = {1, 2, 6}, to = {40, 33, 64};
  ASSERT_TRUE(kernels::CopyPages(runner->exec(), layers, from, to).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(kernels::CopyPages(runner->exec(), layers, {{1}}, {{65}})));
  for (const kernels::KvLayer& layer : layers) {
    const auto page_bytes = static_cast<size_t>(
        kernels::KvPageBytes(layer.type, layer.num_kv_heads, layer.head_size) / 2);
    for (const std::byte* array : {layer.k, layer.v}) {
      std::vector<std::byte> pages(page_bytes * static_cast<size_t>(layer.num_pages));
      ASSERT_TRUE(kernels::CopyFromBackend(Backend::kCuda, pages.data(), array, pages.size()).ok());
      const auto page = [&](int32_t at) {
        const auto begin = pages.begin() + static_cast<long>(static_cast<size_t>(at) * page_bytes);
        return std::vector<std::byte>(begin, begin + static_cast<long>(page_bytes));
      };
      for (size_t i = 0; i < from.size(); ++i) EXPECT_EQ(page(from[i]), page(to[i]));
      EXPECT_NE(page(1), page(2));
      EXPECT_EQ(page(41), std::vector<std::byte>(page_bytes));
    }
  }
}

TEST_F(CudaRunnerTest, MemoryThatCannotBeHadIsAnErrorWithTheNumbers) {
  const auto memory = kernels::AllocateMemory(Backend::kCuda, size_t{1} << 46);
  EXPECT_TRUE(absl::IsResourceExhausted(memory.status())) << memory.status();
  EXPECT_THAT(std::string(memory.status().message()),
              ::testing::MatchesRegex(
                  "device memory: asked for 70368744177664 bytes, [0-9]+ of [0-9]+ are free"));
  EXPECT_TRUE(kernels::AllocateMemory(Backend::kCuda, 1 << 20).ok()) << "and the next is served";

  const auto file = engine::ModelFile::Open(kTiny + "tiny-llama.q4_1.gguf");
  ASSERT_TRUE(file.ok());
  const auto config = engine::ModelConfig::FromFile(**file);
  ASSERT_TRUE(config.ok());
  const auto kv = engine::KvCache::Allocate(*config, Backend::kCuda, DType::kF16, 1 << 28);
  EXPECT_TRUE(absl::IsResourceExhausted(kv.status())) << kv.status();
  EXPECT_THAT(std::string(kv.status().message()),
              ::testing::AllOf(HasSubstr("KV cache of 268435456 pages of "), HasSubstr("asked for"),
                               HasSubstr("are free")));

  engine::EngineOptions options;
  options.device = "cuda:0";
  options.kv_memory_bytes = uint64_t{1} << 41;
  options.max_batch = 4096;
  options.max_step_tokens = 4096;
  testing::TinyModelSpec spec;
  spec.context_length = 1 << 24;
  const testing::TempFile model(testing::MakeTinyModel(spec));
  const auto loaded = engine::LoadModel(model.path(), options, 1, nullptr);
  EXPECT_TRUE(absl::IsResourceExhausted(loaded.status())) << loaded.status();
  EXPECT_THAT(std::string(loaded.status().message()),
              ::testing::AllOf(HasSubstr("KV memory: "), HasSubstr("do not fit"),
                               HasSubstr("; the device has "), HasSubstr(" bytes free")));
}

// Tensors of several pieces, of several tasks, hashed or not, on one lane and on many.
TEST_F(CudaRunnerTest, WeightsArriveWhateverThePieces) {
  testing::TinyModelSpec spec;
  spec.layers = 1;
  spec.width = 1024;
  spec.ffn_width = 2816;
  spec.vocab_size = 9001;
  spec.matrix_type = DType::kBF16;
  const testing::TempFile model(testing::MakeTinyModel(spec));
  const auto file = engine::ModelFile::Open(model.path());
  ASSERT_TRUE(file.ok()) << file.status();
  const auto config = engine::ModelConfig::FromFile(**file);
  ASSERT_TRUE(config.ok()) << config.status();
  const auto load = [&](Backend backend, int threads, bool digest) {
    auto weights = engine::Weights::Load(
        **file, *config,
        {.backend = backend, .num_threads = threads, .compute_digest = digest, .progress = {}});
    EXPECT_TRUE(weights.ok()) << weights.status();
    return *std::move(weights);
  };
  const auto want = load(Backend::kCpu, 2, true);
  for (const int threads : {1, 3, 16}) {
    for (const bool digest : {true, false}) {
      const auto got = load(Backend::kCuda, threads, digest);
      EXPECT_EQ(got->digest(), digest ? want->digest() : "");
      const auto compare = [&](const kernels::PackedWeight& a, const kernels::PackedWeight& b) {
        std::vector<float> x(static_cast<size_t>(a.cols)), y(x.size());
        for (int64_t row = 0; row < a.rows; row += 1 + a.rows / 97) {
          ASSERT_TRUE(kernels::UnpackWeightRow(a, row, x.data()).ok());
          ASSERT_TRUE(kernels::UnpackWeightRow(b, row, y.data()).ok());
          ASSERT_EQ(x, y) << "row " << row;
        }
      };
      compare(got->token_embedding(), want->token_embedding());
      compare(*got->head().weight, *want->head().weight);
      compare(*got->layers()[0].down.weight, *want->layers()[0].down.weight);
      std::vector<float> norm(1024);
      ASSERT_TRUE(kernels::CopyFromBackend(Backend::kCuda, norm.data(), got->output_norm().weight,
                                           norm.size() * sizeof(float))
                      .ok());
      EXPECT_EQ(norm, std::vector<float>(want->output_norm().weight,
                                         want->output_norm().weight + norm.size()));
    }
  }
}

TEST_F(CudaRunnerTest, VerifyPassesAndNamesPlantedBugs) {
  for (const std::string against : {"cpu", "ref"}) {
    engine::VerifyOptions options;
    options.engine.device = "cuda:0";
    options.engine.num_threads = 2;
    options.against = against;
    for (const std::string file : {"tiny-llama.q4_1.gguf", "tiny-odd.f16.gguf"}) {
      const auto report = engine::VerifyModel(kTiny + file, options);
      ASSERT_TRUE(report.ok()) << report.status();
      EXPECT_TRUE(report->passed) << report->first_beyond;
      double worst = 0;
      for (const engine::VerifyRow& row : report->rows) worst = std::max(worst, row.relative_error);
      EXPECT_GT(worst, 0);
      std::printf("%s against %s: worst relative error %.2e, worst logit error %.2e\n",
                  file.c_str(), against.c_str(), worst, report->max_logit_error);
    }
    if (!kernels::kPlantedBugsBuilt) continue;
    options.engine.planted_bug = kernels::PlantedBug::kKeyBiasDropped;
    auto report = engine::VerifyModel(kTiny + "tiny-odd.f16.gguf", options);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->first_beyond, "layer 0 k");
    options.engine.planted_bug = kernels::PlantedBug::kRopeBaseTenThousand;
    report = engine::VerifyModel(kTiny + "tiny-llama31.q8_0.gguf", options);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->first_beyond, "layer 0 qkv");
  }
}

// Every eighth decode step has the gap before it measured by the device's clock: more than
// nothing, since a copy and a mark lie between, and less than the steps took together.
TEST_F(CudaRunnerTest, TheHostGapIsMeasured) {
  engine::EngineOptions options;
  options.device = "cuda:0";
  const auto model = engine::LoadModel(kTiny + "tiny-llama.q4_1.gguf", options, 1, nullptr);
  ASSERT_TRUE(model.ok()) << model.status();
  engine::Request request;
  request.prompt = {1, 2, 3};
  request.sampling.temperature = 0;
  request.stopping.max_tokens = 200;
  request.stopping.ignore_eos = true;
  request.output.return_text = false;
  const auto begin = std::chrono::steady_clock::now();
  std::vector<engine::Request> requests;
  requests.push_back(std::move(request));
  testing::RunAll(*model->dispatcher, std::move(requests));
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const engine::StatHistogram::Snapshot gaps =
      model->dispatcher->engines()[0]->stats().step_host_gap.Read();
  uint64_t count = 0;
  for (const uint64_t bucket : gaps.counts) count += bucket;
  std::printf("%llu gaps of %.2e s on average, %.2e s a step\n",
              static_cast<unsigned long long>(count), gaps.sum / static_cast<double>(count),
              seconds / 200);
  EXPECT_GE(count, 20u);
  EXPECT_GT(gaps.sum, 0);
  EXPECT_LT(gaps.sum, seconds);
}

TEST_F(CudaRunnerTest, TheSelfCheckRunsOnTheDevice) {
  engine::EngineOptions options;
  options.device = "cuda:0";
  const auto model = engine::LoadModel(kTiny + "tiny-odd.f16.gguf", options, 1, nullptr);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE(model->self_check.passed);
  EXPECT_GT(model->self_check.max_relative_error, 0) << "paths that agree to the bit are one path";
  for (const std::string& note : model->notes) std::printf("%s\n", note.c_str());
  if (!kernels::kPlantedBugsBuilt) return;
  options.planted_bug = kernels::PlantedBug::kKeyBiasDropped;
  const auto wrong = engine::LoadModel(kTiny + "tiny-odd.f16.gguf", options, 1, nullptr);
  EXPECT_TRUE(absl::IsFailedPrecondition(wrong.status())) << wrong.status();
}

}  // namespace
}  // namespace sluice
