#pragma once

// Chooses among the ways to run a product of few tokens by how long they took. All give the same
// bits, so that nothing but time depends on the choice.

#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "absl/status/status.h"

#include "kernels/cuda/linear_paths.h"

namespace sluice::kernels::cuda {

// One trial step runs the model's layers, which have products of the same shape with weights of
// their own, each layer in another way and between two events: nothing runs twice, and weights come
// from memory as they do when it counts. Not thread-safe; one stream.
class LinearTuner {
 public:
  LinearTuner() = default;
  ~LinearTuner();
  LinearTuner(const LinearTuner&) = delete;
  LinearTuner& operator=(const LinearTuner&) = delete;

  // LaunchLinear, in the way that was quickest, or, before that is known, is thought to be.
  absl::Status Launch(const LinearArgs& args, const LinearDevice& device, cudaStream_t stream);

  // Launches from here to EndTrial are timed. Not while the stream is captured.
  void BeginTrial() { in_trial_ = true; }
  void EndTrial() { in_trial_ = false; }
  // Decides by what trials have measured. Their step has ended, or is waited for.
  absl::Status Learn();

 private:
  // Tokens of a block, gated or not, and of every task type, tiles and units.
  using Key = std::array<int32_t, 2 + 3 * kMaxTasks>;
  struct Way {
    LinearConfig config;
    float least_ms = 0.0f;
    int32_t samples = 0;
  };
  struct Product {
    std::vector<Way> ways;  // the one thought quickest first
    size_t chosen = 0;
    size_t next = 0;
    bool decided = false;
  };
  struct Timing {
    Product* product;
    size_t way;
    cudaEvent_t begin;
    cudaEvent_t end;
  };

  static Key KeyOf(const LinearArgs& args);
  absl::Status LaunchTimed(const LinearArgs& args, const LinearDevice& device, cudaStream_t stream,
                           Product& product);

  std::map<Key, Product> products_;
  std::vector<Timing> timings_;
  bool in_trial_ = false;
};

// At most six of `choices`, by which a trial is worth its time: of each number of warpgroups and
// size of clusters the one that is thought quickest, unless it is thought much slower than the
// first.
std::vector<LinearConfig> WaysWorthTrying(std::vector<LinearChoice> choices);

}  // namespace sluice::kernels::cuda
