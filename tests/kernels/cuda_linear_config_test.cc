// How products are laid out over a card: needs none.

#include <algorithm>
#include <cstdio>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/core/dtype.h"
#include "kernels/cuda/decode_program.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/linear_stage.h"
#include "kernels/cuda/linear_tuner.h"

namespace sluice::kernels::cuda {
namespace {

constexpr LinearDevice kHopper = {.has_wgmma = true, .multiprocessors = 132};
constexpr int kTokenCounts[] = {1, 2, 7, 8, 9, 16, 31, 64, 65, 128, 129, 256, 300, 2048};

struct Problem {
  const char* name;
  DType types[kMaxTasks];
  int64_t rows[kMaxTasks];
  int64_t cols;
  bool gated;

  LinearArgs Args(int num_tokens) const {
    LinearArgs args;
    for (int i = 0; i < kMaxTasks && rows[i] > 0; ++i) {
      const PackedLayout layout = PackedLayout::Of(types[i], rows[i], cols);
      args.tasks[args.num_tasks++].weight = ViewOf(layout, nullptr);
    }
    args.num_tokens = num_tokens;
    args.input.units = args.tasks[0].weight.units;
    args.input.groups = OperandGroups(num_tokens);
    args.gated = gated;
    return args;
  }
};

constexpr DType kF = DType::kBF16;
const Problem kProblems[] = {
    {"7B qkv", {kF, kF, kF}, {3584, 512, 512}, 3584, false},
    {"7B o", {kF}, {3584}, 3584, false},
    {"7B gate up", {kF, kF}, {18944, 18944}, 3584, true},
    {"7B down", {kF}, {3584}, 18944, false},
    {"7B head", {kF}, {152064}, 3584, false},
    {"0.5B qkv", {DType::kQ5_0, DType::kQ5_0, DType::kQ8_0}, {896, 128, 128}, 896, false},
    {"0.5B o", {DType::kQ5_0}, {896}, 896, false},
    {"0.5B gate up", {DType::kQ5_0, DType::kQ5_0}, {4864, 4864}, 896, true},
    {"0.5B down", {DType::kQ6_K}, {896}, 4864, false},
    {"0.5B head", {DType::kQ8_0}, {151936}, 896, false},
    {"135M qkv", {DType::kQ4_1, DType::kQ4_1, DType::kQ4_1}, {576, 192, 192}, 576, false},
    {"135M o", {DType::kQ4_1}, {576}, 576, false},
    {"135M gate up", {DType::kQ4_1, DType::kQ4_1}, {1536, 1536}, 576, true},
    {"135M down", {DType::kQ4_K}, {576}, 1536, false},
    {"one row", {DType::kQ2_K}, {1}, 256, false},
    {"one unit", {DType::kF16}, {37}, 5, false},
};

int NumSlices(const PackedView& weight) {
  const int units = SliceUnits(weight.tiles, weight.units);
  return (weight.units + units - 1) / units;
}

TEST(CudaLinearConfigTest, CutsKByTheShapeAlone) {
  EXPECT_EQ(SlicesOf(768), 1);
  EXPECT_EQ(SlicesOf(767), 2);
  EXPECT_EQ(SlicesOf(384), 2);
  EXPECT_EQ(SlicesOf(383), 4);
  EXPECT_EQ(SlicesOf(160), 4);
  EXPECT_EQ(SlicesOf(159), 8);
  EXPECT_EQ(SliceUnits(56, 76), 10);
  EXPECT_EQ(SliceUnits(60, 9), 2);
  EXPECT_EQ(SliceUnits(1, 1), 1);
}

TEST(CudaLinearConfigTest, OperandRowsHoldEveryTileOfTokens) {
  for (int rows = 1; rows <= 3000; ++rows) {
    const int groups = OperandGroups(rows);
    EXPECT_GE(groups * 8, rows);
    EXPECT_GE(OperandGroups(rows + 1), groups);
    for (const Problem& problem : {kProblems[0], kProblems[8]}) {
      const LinearArgs args = problem.Args(rows);
      for (const LinearPath path : {LinearPath::kSlices, LinearPath::kStream}) {
        const LinearConfig config = ConfigureLinear(args, kHopper, path);
        EXPECT_LE(config.tokens * config.grid_y, groups * 8) << rows << " " << Describe(config);
      }
    }
  }
}

TEST(CudaLinearConfigTest, TakesThePathThatTheCardHas) {
  const LinearArgs few = kProblems[0].Args(64);
  const LinearArgs many = kProblems[0].Args(2048);
  EXPECT_EQ(ConfigureLinear(few, {}).path, LinearPath::kSlices);
  EXPECT_EQ(ConfigureLinear(many, {}).path, LinearPath::kSlices);
  EXPECT_EQ(ConfigureLinear(many, {}, LinearPath::kTiles256).path, LinearPath::kSlices);
  EXPECT_EQ(ConfigureLinear(few, kHopper).path, LinearPath::kStream);
  EXPECT_EQ(ConfigureLinear(few, kHopper, LinearPath::kTiles256).path, LinearPath::kStream);
  EXPECT_GE(ConfigureLinear(many, kHopper).path, LinearPath::kTiles128);
  EXPECT_FALSE(FusesGate({}));
  EXPECT_TRUE(FusesGate(kHopper));
}

TEST(CudaLinearConfigTest, BlocksHaveEveryRowAndSliceAndFitTheMultiprocessor) {
  for (const Problem& problem : kProblems) {
    for (const int num_tokens : kTokenCounts) {
      const LinearArgs args = problem.Args(num_tokens);
      for (const LinearPath path : {LinearPath::kSlices, LinearPath::kStream, LinearPath::kTiles128,
                                    LinearPath::kTiles256}) {
        if (problem.gated && path == LinearPath::kSlices) continue;
        const bool is_tiles = path >= LinearPath::kTiles128;
        if (num_tokens <= 128 && is_tiles) continue;
        const LinearConfig config = ConfigureLinear(args, kHopper, path);
        const std::string what = std::string(problem.name) + " of " + std::to_string(num_tokens) +
                                 " tokens: " + Describe(config);
        // Too few slices for a cluster, and more than one.
        if (path == LinearPath::kTiles256 && config.path == LinearPath::kTiles128) continue;
        ASSERT_EQ(config.path, path) << what;
        EXPECT_GE(config.tokens * config.grid_y, num_tokens) << what;
        EXPECT_LE(config.threads, 1024) << what;
        EXPECT_LE(config.shared_bytes, 227 << 10) << what;
        EXPECT_EQ(config.grid_x % config.cluster, 0) << what;
        const int num_tasks = problem.gated ? 1 : args.num_tasks;
        for (int i = 0; i < num_tasks; ++i) {
          const LinearConfig::Task& plan = config.tasks[i];
          const int end = i + 1 < num_tasks ? config.tasks[i + 1].first_block
                          : is_tiles        ? config.grid_x / config.cluster * 2
                                            : config.grid_x / config.cluster;
          EXPECT_GE((end - plan.first_block) * plan.tiles_a_block, args.tasks[i].weight.tiles)
              << what;
          if (path != LinearPath::kStream) continue;
          EXPECT_GE(plan.slice_groups * config.cluster, NumSlices(args.tasks[i].weight)) << what;
          const int row_groups = config.threads / 128 / plan.slice_groups / (problem.gated ? 2 : 1);
          EXPECT_GE(row_groups * 4, plan.tiles_a_block) << what;
          const StageShape stage = StageOf(args.tasks[i].weight.type);
          EXPECT_GE(config.ring_bytes, 2 * stage.bytes()) << what;
          EXPECT_GE(config.ring_bytes, config.tokens * kPartRow * 4) << what;
          EXPECT_GE(config.x_stages, 2) << what;
        }
      }
    }
  }
}

TEST(CudaLinearConfigTest, SlicesAreSideBySideWhereTilesAreTooFew) {
  const Problem& down = kProblems[3];
  const LinearConfig few = ConfigureLinear(down.Args(256), kHopper);
  EXPECT_EQ(few.path, LinearPath::kTiles256);
  EXPECT_EQ(few.cluster, 8);
  EXPECT_EQ(few.blocks, 14 * 8);  // 14 pairs of 256 rows, four slices
  // One slice, and items for all multiprocessors.
  const LinearConfig many = ConfigureLinear(kProblems[2].Args(2048), kHopper);
  EXPECT_EQ(many.cluster, 2);
  EXPECT_EQ(many.blocks, 132);
  EXPECT_EQ(many.grid_x * many.grid_y, 296 * 8);
  // Sums of several slices fit the registers of 128 tokens alone; a block of 256 has one of them.
  for (const Problem& problem : kProblems) {
    const LinearArgs args = problem.Args(2048);
    const LinearConfig config = ConfigureLinear(args, kHopper, LinearPath::kTiles256);
    for (int i = 0; i < (problem.gated ? 1 : args.num_tasks); ++i) {
      const int slices = NumSlices(args.tasks[i].weight);
      if (config.tokens == 256) {
        EXPECT_GE(slices, config.cluster / 2) << problem.name;
        EXPECT_TRUE(slices == 1 || config.cluster > 2) << problem.name;
        // The blocks of a pair read the same operand rows.
        if (config.cluster > 2) EXPECT_EQ(config.tasks[i].first_block % 2, 0) << problem.name;
      }
    }
    // With K whole there is nothing to be side by side.
    EXPECT_EQ(ConfigureLinear(args, {.has_wgmma = true, .whole_k = true}).cluster, 2);
  }
}

TEST(CudaLinearConfigTest, SpreadsWhatIsLeftOfWholeRounds) {
  for (const bool adds : {false, true}) {
    LinearArgs args = kProblems[1].Args(2048);
    args.add_to_out = adds;
    const std::vector<LinearConfig> launches =
        TilesLaunches(args, ConfigureLinear(args, kHopper), kHopper);
    ASSERT_EQ(launches.size(), 2);
    EXPECT_EQ(launches[0].end_item, 3 * 66);  // of 14 pairs of rows by 16 blocks of tokens
    EXPECT_EQ(launches[0].blocks, 132);
    EXPECT_EQ(launches[1].blocks, (14 * 16 - 3 * 66) / 2 * 8);
  }
}

TEST(CudaLinearConfigTest, GatesAreAddedToNothing) {
  LinearArgs args = kProblems[2].Args(512);
  ASSERT_TRUE(args.gated);
  args.add_to_out = true;
  const absl::Status status = LaunchLinear(args, kHopper, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
}

TEST(CudaLinearConfigTest, LaunchesHaveEveryItemOnce) {
  int split = 0;
  for (const Problem& problem : kProblems) {
    const DType type = problem.types[0];
    if (problem.rows[2] > 0 && problem.types[2] != type) continue;  // a launch has one type
    for (int num_tokens = 160; num_tokens <= 4096; num_tokens += 96) {
      const LinearArgs args = problem.Args(num_tokens);
      const LinearConfig config = ConfigureLinear(args, kHopper);
      if (config.path < LinearPath::kTiles128) continue;
      const std::vector<LinearConfig> launches = TilesLaunches(args, config, kHopper);
      const std::string what = std::string(problem.name) + " " + std::to_string(num_tokens);
      EXPECT_EQ(launches[0].first_item, 0) << what;
      for (const LinearConfig& launch : launches) {
        EXPECT_LT(launch.first_item, launch.end_item) << what;
        EXPECT_LE(launch.shared_bytes, 227 << 10) << what;
        EXPECT_EQ(launch.blocks % launch.cluster, 0) << what;
      }
      const LinearConfig& last = launches.back();
      EXPECT_EQ(last.end_item, last.grid_x / last.cluster * last.grid_y) << what;
      if (launches.size() == 1) continue;
      ++split;
      // Items of half as many blocks of tokens, of the same rows.
      EXPECT_EQ(launches[0].end_item, last.first_item * 2) << what;
      EXPECT_EQ(launches[0].grid_y, last.grid_y * 2) << what;
      EXPECT_EQ(launches[0].tokens * 2, last.tokens) << what;
      for (int i = 0; i < args.num_tasks; ++i) {
        EXPECT_EQ(launches[0].tasks[i].first_block, last.tasks[i].first_block) << what;
        EXPECT_EQ(launches[0].tasks[i].tiles_a_block, last.tasks[i].tiles_a_block) << what;
      }
    }
  }
  EXPECT_GT(split, 10);
}

TEST(CudaLinearConfigTest, TriesFewWaysAndFirstTheOneThoughtQuickest) {
  for (const Problem& problem : kProblems) {
    const LinearArgs args = problem.Args(64);
    std::vector<LinearChoice> choices = LinearChoices(args, kHopper.multiprocessors);
    const std::vector<LinearConfig> ways = WaysWorthTrying(choices);
    ASSERT_GE(ways.size(), 1u);
    EXPECT_LE(ways.size(), 6u);
    EXPECT_EQ(Describe(ways[0]), Describe(ConfigureLinear(args, kHopper)));
    std::set<std::pair<int, int>> shapes;
    for (const LinearConfig& way : ways) shapes.insert({way.cluster, way.threads});
    EXPECT_EQ(shapes.size(), ways.size());
    // What is over sooner than two events is not timed.
    for (LinearChoice& choice : choices) choice.nanos = 5000.0;
    EXPECT_EQ(WaysWorthTrying(choices).size(), 1u);
  }
}

TEST(CudaLinearConfigTest, SaysWhatItChose) {
  for (const Problem& problem : kProblems) {
    for (const int num_tokens : {8, 64, 2048}) {
      const std::string text = Describe(ConfigureLinear(problem.Args(num_tokens), kHopper));
      std::printf("%-14s %4d  %s\n", problem.name, num_tokens, text.c_str());
      EXPECT_NE(text.find(num_tokens == 2048 ? "tiles " : "stream "), std::string::npos) << text;
    }
  }
}

TEST(PackedLayoutTest, PartsFollowEachOther) {
  for (const DType type : {DType::kQ4_1, DType::kQ8_0, DType::kQ2_K, DType::kQ4_K, DType::kQ6_K}) {
    const PackedLayout layout = PackedLayout::Of(type, 40, 1536);
    SCOPED_TRACE(Name(type));
    EXPECT_EQ(layout.super_bytes, Traits(type).block_values == 256 ? kSuperBytes : 0);
    int64_t at = 0;
    for (int64_t index = 0; index < int64_t{layout.tiles} * layout.units; ++index) {
      EXPECT_EQ(UnitAt(index, layout.unit_bytes, layout.super_bytes), at);
      at += layout.unit_bytes;
      if (layout.super_bytes == 0 || index % kBlockUnits != kBlockUnits - 1) continue;
      for (int back = 0; back < kBlockUnits; ++back) {
        EXPECT_EQ(SupersAt(index - back, layout.unit_bytes), at);
      }
      at += layout.super_bytes;
    }
    EXPECT_EQ(layout.rows_at, at);
  }
}

TEST(DecodeChunksTest, CoverAnItem) {
  for (const bool supers : {false, true}) {
    for (int units = 2; units <= 12; units += supers ? 2 : 1) {
      for (int begin = 0; begin < 5; ++begin) {
        for (int end = begin + 1; end < begin + 40; ++end) {
          for (int first = begin; first < end;) {
            const int next = ChunkEnd(first, end, units, supers);
            ASSERT_GT(next, first);
            ASSERT_LE(next, std::min(end, first + units));
            ASSERT_TRUE(!supers || next == end || next % 2 == 0);
            const int blocks = (next - 1) / kBlockUnits - first / kBlockUnits + 1;
            ASSERT_LE((next - first) * 576 + (supers ? blocks * kSuperBytes : 0),
                      ChunkBytes(units, 576, supers ? kSuperBytes : 0));
            first = next;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace sluice::kernels::cuda
