#include <algorithm>
#include <cstdint>
#include <string>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_stage.h"

namespace sluice::kernels::cuda {
namespace {

// A Hopper multiprocessor's shared memory for one block, and what leaves room for a second, which
// may be the next kernel's first.
constexpr int32_t kMaxShared = 227 << 10;
constexpr int32_t kHalfShared = 112 << 10;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int32_t UnitBytes(DType type) {
  const StageShape shape = StageOf(type);
  return shape.bytes() / shape.units;
}

// ---- kSlices

LinearConfig ConfigureSlices(const LinearArgs& args) {
  LinearConfig config;
  config.path = LinearPath::kSlices;
  const int tiles = (args.num_tokens + 7) / 8;
  const int token_tiles = tiles <= 1 ? 1 : tiles <= 2 ? 2 : tiles <= 4 ? 4 : 8;
  config.tokens = 8 * token_tiles;
  config.grid_y = (tiles + token_tiles - 1) / token_tiles;
  config.threads = 32 * kMaxSlices;
  for (int i = 0; i < args.num_tasks; ++i) {
    const int32_t tiles_of_rows = args.tasks[i].weight.tiles;
    LinearConfig::Task& plan = config.tasks[i];
    plan.first_block = config.grid_x;
    plan.slice_groups = SlicesOf(tiles_of_rows);
    plan.tiles_a_block = kMaxSlices / plan.slice_groups;
    config.grid_x += static_cast<int32_t>(CeilDiv(tiles_of_rows, plan.tiles_a_block));
  }
  return config;
}

// ---- kStream

int32_t StreamTokens(int32_t num_tokens) {
  for (const int32_t tokens : {8, 16, 32, 64}) {
    if (num_tokens <= tokens) return tokens;
  }
  return 128;
}

// A way to spread a launch over blocks: warpgroups of a block, blocks of a cluster, tiles of a
// block at most.
struct Spread {
  int32_t warpgroups = 1;
  int32_t cluster = 1;
  int32_t tiles = 4;
};

int32_t NumSlices(const PackedView& weight) {
  return static_cast<int32_t>(CeilDiv(weight.units, SliceUnits(weight.tiles, weight.units)));
}

// Fills in the tasks' plans and the grid; false when the spread does not serve.
bool Apply(const Spread& spread, const LinearArgs& args, LinearConfig& config) {
  config.cluster = spread.cluster;
  config.grid_x = 0;
  config.x_rings = 1;
  const int num_tasks = args.gated ? 1 : args.num_tasks;
  for (int i = 0; i < num_tasks; ++i) {
    const PackedView& weight = args.tasks[i].weight;
    LinearConfig::Task& plan = config.tasks[i];
    plan.slice_groups = static_cast<int32_t>(CeilDiv(NumSlices(weight), spread.cluster));
    int32_t row_groups = spread.warpgroups / plan.slice_groups;
    if (args.gated) row_groups = row_groups % 2 == 0 ? row_groups / 2 : 0;
    if (row_groups == 0) return false;
    plan.tiles_a_block = std::min(spread.tiles, 4 * row_groups);
    plan.first_block = config.grid_x;
    config.grid_x += static_cast<int32_t>(CeilDiv(weight.tiles, plan.tiles_a_block));
    config.x_rings = std::max(config.x_rings, plan.slice_groups);
  }
  config.grid_x *= spread.cluster;
  return true;
}

// A step of a warpgroup, when the other warpgroups keep the multiprocessor busy: of the tensor
// cores, or of making its weights.
double StepNanos(DType type, int32_t tokens) {
  const double cycles = Traits(type).block_values == 256 ? 55.0
                        : Traits(type).quantized         ? 40.0
                                                         : 20.0;
  return std::max(cycles, tokens / 2.0) / 1.7;
}

// How long the launch takes, in nanoseconds, were memory and the way into a multiprocessor all.
double StreamCost(const LinearArgs& args, const Spread& spread, const LinearConfig& config,
                  int32_t multiprocessors) {
  constexpr double kMemoryRate = 4000.0;  // bytes a nanosecond
  constexpr double kBlockRate = 45.0;     // of one multiprocessor
  constexpr double kClusterCost = 500.0;
  constexpr double kStartCost = 1000.0;
  double weights = 0.0;
  double most = 0.0;
  double steps = 0.0;
  const int num_tasks = args.gated ? 1 : args.num_tasks;
  for (int i = 0; i < num_tasks; ++i) {
    const PackedView& weight = args.tasks[i].weight;
    const LinearConfig::Task& plan = config.tasks[i];
    steps = std::max(steps, spread.warpgroups * SliceUnits(weight.tiles, weight.units) *
                                StepNanos(weight.type, config.tokens) * 4);
    const double units = plan.slice_groups * SliceUnits(weight.tiles, weight.units);
    const double tiles = plan.tiles_a_block * (args.gated ? 2 : 1);
    weights += 1.0 * weight.tiles * weight.units * UnitBytes(weight.type) * (args.gated ? 2 : 1);
    most = std::max(most, units * (tiles * UnitBytes(weight.type) + 128.0 * config.tokens));
  }
  // Blocks that a multiprocessor has one after the other; the last ones leave half of them idle.
  const double rounds = static_cast<double>(config.grid_x) * config.grid_y / multiprocessors;
  const double busy = rounds > 1.0 ? rounds + 0.5 : 1.0;
  const double together = spread.warpgroups <= 2 ? 2.0 : 1.0;
  return std::max(weights * config.grid_y / kMemoryRate * busy / std::max(1.0, rounds),
                  busy * std::max(most / kBlockRate, steps)) +
         (config.cluster > 1 ? kClusterCost : 0.0) + kStartCost * std::max(1.0, rounds / together);
}

// Shares shared memory out between weights and operand rows.
void SizeRings(const LinearArgs& args, const Spread& spread, int32_t multiprocessors,
               LinearConfig& config) {
  const int32_t warps = 4 * spread.warpgroups;
  int32_t stage_bytes = 0;
  int32_t wanted_weights = 0;  // stages of a slice
  int32_t wanted_x = 0;
  const int32_t x_units = StreamUnits(config.tokens);
  for (int i = 0; i < args.num_tasks; ++i) {
    const PackedView& weight = args.tasks[i].weight;
    const StageShape shape = StageOf(weight.type);
    const int32_t units = SliceUnits(weight.tiles, weight.units);
    stage_bytes = std::max(stage_bytes, shape.bytes());
    wanted_weights = std::max(wanted_weights, static_cast<int32_t>(CeilDiv(units, shape.units)));
    wanted_x = std::max(wanted_x, static_cast<int32_t>(CeilDiv(units, x_units)));
  }
  const int32_t x_stage_bytes = x_units * 128 * config.tokens;
  const int32_t part_bytes = config.tokens * kPartRow * 4;
  const bool alone = config.grid_x * config.grid_y <= multiprocessors;
  const int32_t budget = config.tokens > 64               ? kMaxShared
                         : alone && spread.warpgroups > 2 ? 160 << 10
                                                          : kHalfShared;
  const auto ring_bytes = [&](int32_t stages) {
    return static_cast<int32_t>(CeilDiv(std::max(stages * stage_bytes, part_bytes), 128) * 128);
  };
  const auto bytes = [&](int32_t weight_stages, int32_t x_stages) {
    return kStreamHead + config.x_rings * x_stages * x_stage_bytes +
           warps * ring_bytes(weight_stages);
  };
  int32_t weight_stages = 2;
  int32_t x_stages = 2;
  for (bool grew = true; grew;) {
    grew = false;
    if (weight_stages < std::min(wanted_weights, kMaxStages) &&
        bytes(weight_stages + 1, x_stages) <= budget) {
      ++weight_stages;
      grew = true;
    }
    if (x_stages < std::min(wanted_x, kMaxStages) && bytes(weight_stages, x_stages + 1) <= budget) {
      ++x_stages;
      grew = true;
    }
  }
  config.ring_bytes = ring_bytes(weight_stages);
  config.x_stages = x_stages;
  config.shared_bytes = bytes(weight_stages, x_stages);
}

// A configuration, and how long it is thought to take.
struct Choice {
  LinearConfig config;
  double nanos = 0.0;
};

Choice ConfigureStream(const LinearArgs& args, int32_t multiprocessors) {
  LinearConfig config;
  config.path = LinearPath::kStream;
  config.tokens = StreamTokens(args.num_tokens);
  config.grid_y = static_cast<int32_t>(CeilDiv(args.num_tokens, config.tokens));
  Spread best;
  double best_cost = 1e30;
  const int32_t max_warpgroups = StreamWarpgroups(config.tokens);
  for (const int32_t cluster : {1, 2, 4, 8}) {
    for (int32_t warpgroups = 1; warpgroups <= max_warpgroups; ++warpgroups) {
      for (int32_t tiles = 1; tiles <= 4 * warpgroups; ++tiles) {
        const Spread spread = {warpgroups, cluster, tiles};
        if (!Apply(spread, args, config)) continue;
        const double cost = StreamCost(args, spread, config, multiprocessors);
        if (cost < 0.999 * best_cost) {
          best = spread;
          best_cost = cost;
        }
      }
    }
  }
  Apply(best, args, config);
  config.threads = 128 * best.warpgroups + 32;
  SizeRings(args, best, multiprocessors, config);
  return {config, best_cost};
}

// ---- kTiles

Choice ConfigureTiles(const LinearArgs& args, int32_t tokens, int32_t multiprocessors) {
  LinearConfig config;
  config.path = tokens == 128 ? LinearPath::kTiles128 : LinearPath::kTiles256;
  config.tokens = tokens;
  config.grid_y = static_cast<int32_t>(CeilDiv(args.num_tokens, tokens));
  config.cluster = 2;
  config.threads = 384;
  int32_t slices = 1;
  int32_t stage_bytes = 0;
  double step_nanos = 0.0;
  const int num_tasks = args.gated ? 1 : args.num_tasks;
  for (int i = 0; i < num_tasks; ++i) {
    const PackedView& weight = args.tasks[i].weight;
    LinearConfig::Task& plan = config.tasks[i];
    plan.first_block = config.grid_x;
    plan.tiles_a_block = args.gated ? kTilesRows / 2 : kTilesRows;
    config.grid_x += static_cast<int32_t>(CeilDiv(weight.tiles, plan.tiles_a_block));
    slices = std::max(slices, NumSlices(weight));
    stage_bytes = std::max(stage_bytes, StageOf(weight.type).bytes());
    // Weights and half of the operand rows come through L2.
    constexpr double kBlockRate = 45.0;
    step_nanos = std::max({step_nanos, 2 * StepNanos(weight.type, tokens),
                           (kTilesRows * UnitBytes(weight.type) / 4 + tokens * 16) / kBlockRate});
  }
  config.grid_x = static_cast<int32_t>(CeilDiv(config.grid_x, 2) * 2);
  const bool totals = slices > 1 && tokens == kMostTilesTokens;
  config.x_stages = totals ? 4 : 8;
  config.ring_bytes = static_cast<int32_t>(
      CeilDiv((totals ? 4 << 10 : 8 << 10) / stage_bytes * stage_bytes, 128) * 128);
  config.shared_bytes = kTilesHead + config.x_stages * kTilesStageBytes +
                        kTilesRows * config.ring_bytes +
                        (totals ? kTilesRows * kTileRows * kMostTilesTokens * 4 : 0);
  const auto rounds =
      static_cast<double>(CeilDiv(int64_t{config.grid_x} * config.grid_y, multiprocessors));
  const double nanos = rounds * (args.input.units * 4 * step_nanos + 3000.0 + 12.0 * tokens +
                                 (totals ? 1200.0 : 100.0) * slices);
  return {config, nanos};
}

}  // namespace

LinearConfig ConfigureLinear(const LinearArgs& args, const LinearDevice& device,
                             std::optional<LinearPath> path) {
  if (!device.has_wgmma || path == LinearPath::kSlices) return ConfigureSlices(args);
  const int32_t multiprocessors = device.multiprocessors;
  Choice best = ConfigureStream(args, multiprocessors);
  // Rows of fewer tokens are not padded to a tile of 256.
  if (args.num_tokens <= 128 || path == LinearPath::kStream) return best.config;
  for (const int32_t tokens : {256, 128}) {
    const Choice tiles = ConfigureTiles(args, tokens, multiprocessors);
    if (path == tiles.config.path) return tiles.config;
    if (tiles.nanos < best.nanos) best = tiles;
  }
  return best.config;
}

std::string Describe(const LinearConfig& config) {
  const char* name = config.path == LinearPath::kSlices   ? "slices"
                     : config.path == LinearPath::kStream ? "stream"
                                                          : "tiles";
  std::string text = std::string(name) + " " + std::to_string(config.grid_x) + "x" +
                     std::to_string(config.grid_y) + " blocks of " +
                     std::to_string(config.threads) + ", " + std::to_string(config.tokens) +
                     " tokens, tiles";
  for (const LinearConfig::Task& task : config.tasks) {
    if (task.tiles_a_block == 0) continue;
    text += " " + std::to_string(task.tiles_a_block) + "/" + std::to_string(task.slice_groups);
  }
  if (config.path == LinearPath::kSlices) return text;
  return text + ", cluster " + std::to_string(config.cluster) + ", " +
         std::to_string(config.x_rings) + "x" + std::to_string(config.x_stages) +
         " operand stages, rings of " + std::to_string(config.ring_bytes) + ", shared " +
         std::to_string(config.shared_bytes);
}

bool FusesGate(const LinearDevice& device, int64_t num_tokens) {
  return device.has_wgmma && num_tokens > 1;
}

int64_t OperandBytes(int64_t max_rows, int64_t cols) {
  return int64_t{OperandGroups(max_rows)} * 8 * ((cols + kUnitCols - 1) / kUnitCols * kUnitCols) *
         2;
}

}  // namespace sluice::kernels::cuda
