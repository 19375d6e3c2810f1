#include "engine/stats.h"

#include <algorithm>
#include <cstddef>

namespace sluice::engine {
namespace {

constexpr std::array<double, 22> kLatencyBounds = {
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075,
    0.1,    0.25,    0.5,    0.75,  1,      2.5,   5,      7.5,  10,    30,   60};
constexpr std::array<double, 13> kCountBounds = {1,   2,   4,   8,    16,   32,  64,
                                                 128, 256, 512, 1024, 2048, 4096};

}  // namespace

std::span<const double> LatencyBounds() { return kLatencyBounds; }
std::span<const double> CountBounds() { return kCountBounds; }

StatHistogram::StatHistogram(std::span<const double> upper_bounds)
    : upper_bounds_(upper_bounds.begin(), upper_bounds.end()), counts_(upper_bounds.size() + 1) {}

void StatHistogram::Observe(double value, uint64_t count) {
  // A bound belongs to its bucket, as Prometheus' `le` has it.
  const auto bound = std::lower_bound(upper_bounds_.begin(), upper_bounds_.end(), value);
  const auto bucket = static_cast<size_t>(bound - upper_bounds_.begin());
  counts_[bucket].fetch_add(count, std::memory_order_relaxed);
  // One writer: a load and a store lose nothing.
  sum_.store(sum_.load(std::memory_order_relaxed) + value * static_cast<double>(count),
             std::memory_order_relaxed);
}

StatHistogram::Snapshot StatHistogram::Read() const {
  Snapshot snapshot;
  snapshot.upper_bounds = upper_bounds_;
  snapshot.counts.reserve(counts_.size());
  for (const std::atomic<uint64_t>& count : counts_)
    snapshot.counts.push_back(count.load(std::memory_order_relaxed));
  snapshot.sum = sum_.load(std::memory_order_relaxed);
  return snapshot;
}

EngineStats::EngineStats()
    : step_duration(LatencyBounds()),
      step_host_gap(LatencyBounds()),
      step_tokens(CountBounds()),
      batch_rows(CountBounds()),
      queue_time(LatencyBounds()),
      time_to_first_token(LatencyBounds()),
      inter_token_latency(LatencyBounds()),
      cancel_to_free(LatencyBounds()) {}

}  // namespace sluice::engine
