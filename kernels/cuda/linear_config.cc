#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/linear_stage.h"

namespace sluice::kernels::cuda {
namespace {

// A way to spread a launch over blocks: warpgroups of a block, blocks of a cluster, tiles of a
// block at most.
struct Spread {
  int32_t warpgroups = 1;
  int32_t cluster = 1;
  int32_t tiles = 4;
};

// A Hopper multiprocessor's shared memory, and what each block takes besides its own.
constexpr int32_t kAllShared = 228 << 10;
constexpr int32_t kBlockShared = 1 << 10;

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

// A step of a warpgroup, when the other warpgroups keep the multiprocessor busy: of making its
// weights and of the tensor cores. Fitted to measurements on an H200.
double StepNanos(DType type, int32_t tokens) {
  const double weights = tokens <= kTokensAlone ? 40.0 : 90.0;
  const double cycles = IsHalf(type) ? 25.0 + 0.6 * tokens : weights + 1.1 * tokens;
  return cycles / 1.7;
}

// Multiprocessors that blocks of a cluster can be on: not those that are left over when its
// eighteen (a processing cluster of the card has about so many) are divided by four or eight.
int32_t Reachable(const Spread& spread, int32_t multiprocessors) {
  return spread.cluster >= 4 ? std::max(spread.cluster, multiprocessors * 16 / 18)
                             : multiprocessors;
}

// Blocks that a multiprocessor has at a time.
int32_t Together(const LinearArgs& args, const Spread& spread, int32_t tokens) {
  return tokens > 64 ? 1 : StreamBlocks(spread.warpgroups, AllHalf(args), tokens);
}

// Shares shared memory out between weights and operand rows.
void SizeRings(const LinearArgs& args, const Spread& spread, int32_t reachable,
               LinearConfig& config) {
  const int32_t warps = 4 * spread.warpgroups;
  int32_t stage_bytes = 0;
  int32_t wanted_weights = 2;  // stages of a slice
  int32_t wanted_x = 2;
  const int32_t x_units = StreamUnits(config.tokens);
  for (int i = 0; i < args.num_tasks; ++i) {
    const PackedView& weight = args.tasks[i].weight;
    const StageShape shape = StageOf(weight.type);
    const int32_t units = SliceUnits(weight.tiles, weight.units);
    stage_bytes = std::max(stage_bytes, shape.bytes());
    wanted_weights = std::max(wanted_weights, static_cast<int32_t>(CeilDiv(units, shape.units)));
    wanted_x = std::max(wanted_x, static_cast<int32_t>(CeilDiv(units, x_units)));
  }
  wanted_weights = std::min(wanted_weights, kMaxStages);
  wanted_x = std::min(wanted_x, kMaxStages);
  const int32_t x_stage_bytes = x_units * 128 * config.tokens;
  const int32_t part_bytes = config.tokens * kPartRow * 4;
  const auto blocks =
      static_cast<int32_t>(CeilDiv(int64_t{config.grid_x} * config.grid_y, reachable));
  const int32_t budget =
      kAllShared / std::min(blocks, Together(args, spread, config.tokens)) - kBlockShared;
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
    if (weight_stages < wanted_weights && bytes(weight_stages + 1, x_stages) <= budget) {
      ++weight_stages;
      grew = true;
    }
    if (x_stages < wanted_x && bytes(weight_stages, x_stages + 1) <= budget) {
      ++x_stages;
      grew = true;
    }
  }
  config.ring_bytes = ring_bytes(weight_stages);
  config.x_stages = x_stages;
  config.shared_bytes = bytes(weight_stages, x_stages);
}

// How long the launch takes, in nanoseconds: bound by memory, by L2, by what a block does one after
// the other, or by how long a ring's stages take to come again.
double StreamCost(const LinearArgs& args, const Spread& spread, const LinearConfig& config,
                  int32_t reachable) {
  constexpr double kMemoryRate = 4200.0;  // bytes a nanosecond
  constexpr double kL2Rate = 55.0;        // of one multiprocessor when all want some
  constexpr double kBlockRate = 60.0;     // when few do
  constexpr double kMemoryLatency = 1600.0;
  constexpr double kL2Latency = 1300.0;
  constexpr double kClusterCost = 150.0;  // for every block of it
  constexpr double kStartCost = 4000.0;
  double weights = 0.0;
  double most = 0.0;     // bytes of a block
  double work = 0.0;     // of a block, which others on the multiprocessor add to
  double waiting = 0.0;  // of a block, which others fill
  const int32_t x_units = StreamUnits(config.tokens);
  const int num_tasks = args.gated ? 1 : args.num_tasks;
  for (int i = 0; i < num_tasks; ++i) {
    const PackedView& weight = args.tasks[i].weight;
    const LinearConfig::Task& plan = config.tasks[i];
    const int32_t slice_units = SliceUnits(weight.tiles, weight.units);
    const double tiles = plan.tiles_a_block * (args.gated ? 2 : 1);
    const double bytes =
        plan.slice_groups * slice_units * (tiles * UnitBytes(weight.type) + 128.0 * config.tokens);
    weights += 1.0 * weight.tiles * weight.units * UnitBytes(weight.type) * (args.gated ? 2 : 1);
    most = std::max(most, bytes);
    const int32_t used = spread.warpgroups / plan.slice_groups * plan.slice_groups;
    const double steps = used * slice_units * StepNanos(weight.type, config.tokens) * 4;
    const StageShape shape = StageOf(weight.type);
    const int32_t held_weights = config.ring_bytes / shape.bytes() * shape.units;
    const int32_t held_x = config.x_stages * x_units;
    double wait = 0.0;
    if (slice_units > held_weights) wait = kMemoryLatency / held_weights;
    if (slice_units > held_x) wait = std::max(wait, kL2Latency / (held_x - x_units));
    work = std::max({work, bytes / kBlockRate, steps});
    waiting = std::max(waiting, slice_units * wait);
  }
  const int64_t blocks = int64_t{config.grid_x} * config.grid_y;
  const int32_t together = Together(args, spread, config.tokens);
  const int64_t rounds = blocks / (int64_t{reachable} * together);
  const int64_t rest = CeilDiv(blocks - rounds * reachable * together, reachable);
  const auto round = [&](int64_t at_once) {
    return at_once == 0 ? 0.0 : std::max(static_cast<double>(at_once) * work, waiting);
  };
  const double busy = static_cast<double>(rounds) * round(together) + round(rest);
  const double flow = static_cast<double>(blocks) * most / (reachable * kL2Rate);
  return std::max({weights * config.grid_y / kMemoryRate, flow, busy}) +
         (config.cluster > 1 ? kClusterCost * config.cluster : 0.0) +
         kStartCost * static_cast<double>(rounds + (rest > 0 ? 1 : 0));
}

LinearChoice ConfigureStream(const LinearArgs& args, int32_t multiprocessors) {
  const std::vector<LinearChoice> choices = LinearChoices(args, multiprocessors);
  return *std::min_element(
      choices.begin(), choices.end(),
      [](const LinearChoice& a, const LinearChoice& b) { return a.nanos < b.nanos; });
}

// ---- kTiles

constexpr double kTilesLaunch = 3000.0;  // nanoseconds

// A cluster a multiprocessor pair, which goes from item to item, or one for each item.
int32_t TilesBlocks(const LinearConfig& config, const LinearDevice& device) {
  const int32_t blocks = (config.end_item - config.first_item) * config.cluster;
  return config.cluster == 2 ? std::min(blocks, device.multiprocessors / 2 * 2) : blocks;
}

// Clusters of `parts` pairs that the card has room for.
int64_t ClustersAtOnce(int32_t parts, const LinearDevice& device) {
  return parts == 1 ? device.multiprocessors / 2
                    : Reachable({.cluster = 2 * parts}, device.multiprocessors) / (2 * parts);
}

// Blocks of 128 or 256 tokens, in clusters of `parts` pairs, each with a slice at a time where
// there are several. Nothing where a pair would have none, or sums of earlier slices would not fit.
std::optional<LinearChoice> ConfigureTiles(const LinearArgs& args, int32_t tokens, int32_t parts,
                                           const LinearDevice& device) {
  LinearConfig config;
  config.path = tokens == 128 ? LinearPath::kTiles128 : LinearPath::kTiles256;
  config.tokens = tokens;
  config.grid_y = static_cast<int32_t>(CeilDiv(args.num_tokens, tokens));
  config.cluster = 2 * parts;
  config.threads = 384;
  config.whole_k = device.whole_k;
  int32_t stage_bytes = 0;
  double nanos = 0.0;
  double item_nanos = 0.0;
  int64_t pairs = 0;         // of one type
  double block_nanos = 0.0;  // the longest of them
  const int num_tasks = args.gated ? 1 : args.num_tasks;
  const int64_t at_once = ClustersAtOnce(parts, device);
  for (int i = 0; i < num_tasks; ++i) {
    const PackedView& weight = args.tasks[i].weight;
    const int32_t slices = device.whole_k ? 1 : NumSlices(weight);
    if (tokens == kMostTilesTokens && (parts == 1 ? slices > 1 : slices < parts))
      return std::nullopt;
    LinearConfig::Task& plan = config.tasks[i];
    plan.first_block = config.grid_x;
    plan.tiles_a_block = args.gated ? kTilesRows / 2 : kTilesRows;
    // Pairs have one task where slices are side by side: both blocks read the same operand rows.
    const auto blocks = static_cast<int32_t>(CeilDiv(weight.tiles, plan.tiles_a_block));
    config.grid_x += parts > 1 ? (blocks + 1) / 2 * 2 : blocks;
    stage_bytes = std::max(stage_bytes, StageOf(weight.type).bytes());
    // Measured on an H200: steps of 16 columns, and what comes after those of a slice and an item.
    const double step =
        IsHalf(weight.type) ? (tokens == 256 ? 188.0 : 125.0) : (tokens == 256 ? 205.0 : 150.0);
    const int64_t turns = CeilDiv(slices, parts);
    const int64_t units =
        parts == 1 ? weight.units : turns * SliceUnits(weight.tiles, weight.units);
    const double after = parts > 1 ? 4000.0 + 4000.0 * turns : 2400.0 + 400.0 * slices;
    block_nanos = std::max(block_nanos, units * 4 * step + after);
    // Types follow each other in launches of their own.
    pairs += CeilDiv(blocks, 2);
    if (i + 1 == num_tasks || args.tasks[i + 1].weight.type != weight.type) {
      nanos += CeilDiv(pairs * config.grid_y, at_once) * block_nanos + kTilesLaunch;
      item_nanos = block_nanos;
      pairs = 0;
      block_nanos = 0.0;
    }
  }
  config.grid_x = static_cast<int32_t>(CeilDiv(config.grid_x, 2) * config.cluster);
  config.end_item = config.grid_x / config.cluster * config.grid_y;
  config.blocks = TilesBlocks(config, device);
  // Up and gate meet in shared memory of their own, while the next item's operand rows come, and so
  // waits there what the outcome is added to.
  const bool adds = args.add_to_out && tokens == 128;
  const int32_t exchange = args.gated && parts == 1 ? tokens * 256 : adds ? kTilesOldBytes : 0;
  config.x_stages = adds ? 5 : exchange > 0 ? 6 : 8;
  const int32_t ring_bytes = exchange > 0 ? 8 << 10 : 12 << 10;
  config.ring_bytes = std::min(kMaxStages, ring_bytes / stage_bytes) * stage_bytes / 128 * 128;
  config.shared_bytes =
      kTilesHead + config.x_stages * kTilesStageBytes + kTilesRows * config.ring_bytes + exchange;
  return LinearChoice{config, nanos, item_nanos};
}

LinearChoice BestTiles(const LinearArgs& args, const LinearDevice& device,
                       std::optional<LinearPath> path) {
  LinearChoice best = *ConfigureTiles(args, 128, 1, device);
  if (path == LinearPath::kTiles128) return best;
  bool found = false;
  for (const int32_t parts : {1, 2, 4}) {
    const std::optional<LinearChoice> choice =
        ConfigureTiles(args, kMostTilesTokens, parts, device);
    if (!choice || (choice->nanos >= best.nanos && (found || !path))) continue;
    best = *choice;
    found = true;
  }
  return best;
}

}  // namespace

std::vector<LinearChoice> LinearChoices(const LinearArgs& args, int32_t multiprocessors) {
  std::vector<LinearChoice> choices;
  LinearConfig config;
  config.path = LinearPath::kStream;
  config.tokens = StreamTokens(args.num_tokens);
  config.grid_y = static_cast<int32_t>(CeilDiv(args.num_tokens, config.tokens));
  const int32_t max_warpgroups = StreamWarpgroups(config.tokens);
  for (const int32_t cluster : {1, 2, 4, 8}) {
    for (int32_t warpgroups = 1; warpgroups <= max_warpgroups; ++warpgroups) {
      for (int32_t tiles = 1; tiles <= 4 * warpgroups; ++tiles) {
        const Spread spread = {warpgroups, cluster, tiles};
        if (!Apply(spread, args, config)) continue;
        config.threads = 128 * warpgroups + 32;
        const int32_t reachable = Reachable(spread, multiprocessors);
        SizeRings(args, spread, reachable, config);
        choices.push_back({config, StreamCost(args, spread, config, reachable)});
      }
    }
  }
  return choices;
}

LinearConfig ConfigureLinear(const LinearArgs& args, const LinearDevice& device,
                             std::optional<LinearPath> path) {
  if (!device.has_wgmma || path == LinearPath::kSlices) return ConfigureSlices(args);
  const int32_t multiprocessors = device.multiprocessors;
  // Rows of fewer tokens are not padded to a tile of 256.
  if (args.num_tokens <= 128 || path == LinearPath::kStream) {
    return ConfigureStream(args, multiprocessors).config;
  }
  const LinearChoice tiles = BestTiles(args, device, path);
  if (path || args.num_tokens > 256) return tiles.config;
  // Stream has all slices, and all types, at once.
  const LinearChoice stream = ConfigureStream(args, multiprocessors);
  return stream.nanos < tiles.nanos ? stream.config : tiles.config;
}

std::vector<LinearConfig> TilesLaunches(const LinearArgs& args, const LinearConfig& config,
                                        const LinearDevice& device) {
  constexpr int32_t kParts = kMostTilesCluster / 2;
  const int32_t at_once = device.multiprocessors / 2;
  const int32_t left = at_once > 0 ? config.end_item % at_once : 0;
  if (config.cluster > 2 || config.tokens != 128 || config.grid_y % 2 != 0 || left == 0 ||
      left == config.end_item) {
    return {config};
  }
  const std::optional<LinearChoice> one = ConfigureTiles(args, 128, 1, device);
  const std::optional<LinearChoice> other = ConfigureTiles(args, kMostTilesTokens, kParts, device);
  if (!other || other->config.grid_x / other->config.cluster != config.grid_x / 2) return {config};
  for (int i = 0; i < args.num_tasks; ++i) {
    if (other->config.tasks[i].first_block != config.tasks[i].first_block) return {config};
  }
  LinearConfig whole = config;
  LinearConfig rest = other->config;
  whole.end_item -= left + left % 2;
  rest.first_item = whole.end_item / 2;
  whole.blocks = TilesBlocks(whole, device);
  rest.blocks = TilesBlocks(rest, device);
  const int64_t rounds = CeilDiv(rest.end_item - rest.first_item, ClustersAtOnce(kParts, device));
  const double nanos = static_cast<double>(rounds) * other->item_nanos + kTilesLaunch;
  if (nanos >= one->item_nanos) return {config};
  return {whole, rest};
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

bool FusesGate(const LinearDevice& device) { return device.has_wgmma; }

int64_t OperandBytes(int64_t max_rows, int64_t cols) {
  return int64_t{OperandGroups(max_rows)} * 8 * ((cols + kUnitCols - 1) / kUnitCols * kUnitCols) *
         2;
}

}  // namespace sluice::kernels::cuda
