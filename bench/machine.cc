#include "bench/machine.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

namespace sluice::bench {
namespace {

constexpr size_t kBytes = size_t{256} << 20;
constexpr int kPasses = 5;

struct Ticks {
  uint64_t busy = 0;
  uint64_t all = 0;
};

// Line "cpu" of /proc/stat: user nice system idle iowait irq softirq steal.
Ticks ReadTicks() {
  std::ifstream stat("/proc/stat");
  std::string line;
  std::getline(stat, line);
  std::istringstream fields(line.substr(line.find(' ')));
  Ticks ticks;
  uint64_t value = 0;
  for (int i = 0; i < 8 && fields >> value; ++i) {
    ticks.all += value;
    if (i != 3 && i != 4) ticks.busy += value;
  }
  return ticks;
}

double OwnSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

uint64_t SumWords(const std::vector<uint64_t>& words) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i + 8 <= words.size(); i += 8) {
    for (size_t k = 0; k < 8; ++k) sums[k] += words[i + k];
  }
  uint64_t sum = 0;
  for (uint64_t s : sums) sum += s;
  return sum;
}

}  // namespace

double ReadBandwidth(int num_threads) {
  std::vector<std::vector<uint64_t>> arrays(static_cast<size_t>(num_threads));
  for (auto& array : arrays) array.assign(kBytes / sizeof(uint64_t), 1);
  std::atomic<uint64_t> sink{0};
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (const auto& array : arrays) threads.emplace_back([&] { sink += SumWords(array); });
    for (std::thread& thread : threads) thread.join();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, static_cast<double>(kBytes) * num_threads / seconds);
  }
  return best;
}

std::string MachineName() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpuinfo, line)) {
    if (line.rfind("model name", 0) == 0) {
      return line.substr(line.find(':') + 2) + ", " +
             std::to_string(std::thread::hardware_concurrency()) + " threads";
    }
  }
  return "unknown processor";
}

BusyMeter::BusyMeter() : busy_ticks_(0), all_ticks_(0), own_seconds_(OwnSeconds()) {
  const Ticks ticks = ReadTicks();
  busy_ticks_ = ticks.busy;
  all_ticks_ = ticks.all;
}

double BusyMeter::OthersShare() const {
  const Ticks now = ReadTicks();
  const double all = static_cast<double>(now.all - all_ticks_);
  if (all <= 0) return 0;
  const double own = (OwnSeconds() - own_seconds_) * static_cast<double>(sysconf(_SC_CLK_TCK));
  return std::max(0.0, (static_cast<double>(now.busy - busy_ticks_) - own) / all);
}

}  // namespace sluice::bench
