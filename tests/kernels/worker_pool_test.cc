#include "kernels/core/worker_pool.h"

#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace sluice::kernels {
namespace {

TEST(WorkerPoolTest, RunsEveryChunkOnce) {
  for (int num_workers : {1, 2, 3, 5}) {
    WorkerPool pool(num_workers);
    EXPECT_EQ(pool.num_workers(), num_workers);
    for (int64_t num_chunks : {0, 1, 2, 3, 7, 64, 1000}) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(num_chunks));
      pool.ParallelFor(num_chunks, [&](int64_t chunk, int worker) {
        EXPECT_GE(worker, 0);
        EXPECT_LT(worker, num_workers);
        calls[static_cast<size_t>(chunk)].fetch_add(1);
      });
      for (const auto& count : calls) EXPECT_EQ(count.load(), 1);
    }
  }
}

// Sections follow each other at once, with plain memory passed from one to the next: what TSan
// watches, and where a worker that comes late would take a chunk of the wrong section.
TEST(WorkerPoolTest, SectionsFollowEachOther) {
  WorkerPool pool(3);
  constexpr int64_t kSize = 17;
  std::vector<int64_t> values(kSize, 0);
  for (int64_t round = 1; round <= 20000; ++round) {
    const int64_t num_chunks = 1 + round % kSize;
    pool.ParallelFor(num_chunks,
                     [&](int64_t chunk, int) { values[static_cast<size_t>(chunk)] += round; });
    ASSERT_EQ(values[0], round * (round + 1) / 2);
  }
  int64_t total = 0;
  int64_t want = 0;
  for (int64_t round = 1; round <= 20000; ++round) want += round * (1 + round % kSize);
  for (int64_t value : values) total += value;
  EXPECT_EQ(total, want);
}

// Chunks so short that workers meet at the counter all the time: none is taken twice, none is lost.
TEST(WorkerPoolTest, CrowdedCounterGivesEachChunkOnce) {
  WorkerPool pool(3);
  constexpr int64_t kChunks = 4000;
  constexpr int kRounds = 1500;
  std::vector<std::atomic<int>> calls(kChunks);
  for (int round = 0; round < kRounds; ++round) {
    pool.ParallelFor(kChunks, [&](int64_t chunk, int) {
      calls[static_cast<size_t>(chunk)].fetch_add(1, std::memory_order_relaxed);
    });
  }
  for (const auto& count : calls) ASSERT_EQ(count.load(), kRounds);
}

TEST(WorkerPoolTest, WorkersThatParkedComeBack) {
  WorkerPool pool(3);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> arrived{0};
    // Chunks that wait for each other prove that every worker came.
    pool.ParallelFor(3, [&](int64_t, int) {
      arrived.fetch_add(1);
      while (arrived.load() < 3) std::this_thread::yield();
    });
    EXPECT_EQ(arrived.load(), 3);
    if (round % 2 == 0) pool.Park();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

// A worker held up in its chunk holds back that chunk only.
TEST(WorkerPoolTest, SlowWorkerHoldsBackOneChunk) {
  WorkerPool pool(2);
  std::atomic<int> others{0};
  pool.ParallelFor(50, [&](int64_t chunk, int) {
    if (chunk == 0) {
      while (others.load() < 49) std::this_thread::yield();
    } else {
      others.fetch_add(1);
    }
  });
  EXPECT_EQ(others.load(), 49);
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

TEST(WorkerPoolTest, IdlePoolCostsNothing) {
  WorkerPool pool(4);
  pool.ParallelFor(100, [](int64_t, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const double before = CpuSeconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  EXPECT_LT(CpuSeconds() - before, 0.005);  // 1 % of a core
}

TEST(WorkerPoolTest, EndsWhileWorkersSpinOrPark) {
  for (int round = 0; round < 200; ++round) {
    WorkerPool pool(3);
    if (round % 3 != 0) pool.ParallelFor(5, [](int64_t, int) {});
    if (round % 3 == 1) std::this_thread::sleep_for(std::chrono::microseconds(120));
  }
}

}  // namespace
}  // namespace sluice::kernels
