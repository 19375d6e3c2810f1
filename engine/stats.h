#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/base/clock.h"

namespace sluice::engine {

// A histogram with fixed upper bounds that one thread writes and any thread reads. Lock-free.
class StatHistogram {
 public:
  explicit StatHistogram(std::span<const double> upper_bounds);

  void Observe(double value, uint64_t count = 1);

  struct Snapshot {
    std::vector<double> upper_bounds;
    std::vector<uint64_t> counts;  // one a bound and one above the last; not cumulative
    double sum = 0;
  };
  Snapshot Read() const;

 private:
  std::vector<double> upper_bounds_;
  std::vector<std::atomic<uint64_t>> counts_;
  std::atomic<double> sum_{0};
};

// Bounds shared by the latency histograms, in seconds: 100 us to 60 s.
std::span<const double> LatencyBounds();
// Bounds for counts: powers of two to 4096.
std::span<const double> CountBounds();

// What one engine has done and is doing. The engine thread writes, any thread reads.
struct EngineStats {
  EngineStats();

  std::atomic<int64_t> requests_running{0};  // sequences that hold pages
  std::atomic<int64_t> requests_waiting{0};  // sequences in the queue, preempted ones included
  std::atomic<int64_t> waiting_prompt_tokens{0};
  std::atomic<int64_t> kv_pages_total{0};   // page 0 not counted
  std::atomic<int64_t> kv_pages_free{0};    // can be taken: cached ones that nobody uses included
  std::atomic<int64_t> kv_pages_cached{0};  // those
  std::atomic<int64_t> leaked_pages{0};     // checked whenever the engine is idle; must be 0
  std::atomic<bool> up{false};              // serves; false for ever after a fault
  std::string fault;  // what that was; set before `up` falls, read by who has seen it fall
  std::atomic<int64_t> last_step_nanos{
      0};  // steady clock at the end of the last step, or when last idle
  std::atomic<double> tokens_per_second{0};  // generated, over about the last second

  std::atomic<uint64_t> steps{0};
  std::atomic<uint64_t> prompt_tokens{0};
  std::atomic<uint64_t> generation_tokens{0};
  std::atomic<uint64_t> preemptions{0};
  std::atomic<uint64_t> recomputed_tokens{0};
  std::atomic<uint64_t> nonfinite_logits{0};
  std::atomic<uint64_t> prefix_cache_queries{0};  // prompt tokens looked up
  std::atomic<uint64_t> prefix_cache_hits{0};     // of those, found
  std::atomic<uint64_t> cancelled_waiting{0};
  std::atomic<uint64_t> cancelled_running{0};

  StatHistogram step_duration;  // seconds
  // Seconds between two steps when there was work: on the CPU from the end of a step to the launch
  // of the next; on a device by its own clock, from the arrival of a step's tokens on the host to
  // the begin of the next step; of some steps only, that sample and follow one that does.
  StatHistogram step_host_gap;
  StatHistogram step_tokens;
  StatHistogram batch_rows;
  StatHistogram queue_time;  // seconds
  StatHistogram time_to_first_token;
  StatHistogram inter_token_latency;
  StatHistogram cancel_to_free;  // seconds from the cancel command to the pages' return
};

}  // namespace sluice::engine
