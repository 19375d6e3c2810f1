#pragma once

#include <cstdint>
#include <string>

namespace sluice::bench {

// Bytes a second that `num_threads` threads read from memory together: the better of a few passes
// over 256 MiB a thread.
double ReadBandwidth(int num_threads);

// "Intel(R) Xeon(R) Processor, 2 threads".
std::string MachineName();

// Share of the machine's processor time that other processes took between construction and
// OthersShare(), 0 to 1. Figures taken while others used more than 5 % of it are not worth
// recording.
class BusyMeter {
 public:
  BusyMeter();
  double OthersShare() const;

 private:
  uint64_t busy_ticks_;
  uint64_t all_ticks_;
  double own_seconds_;
};
inline constexpr double kBusyLimit = 0.05;

}  // namespace sluice::bench
