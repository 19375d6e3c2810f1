#include "kernels/core/worker_pool.h"

#include <immintrin.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/core/check.h"

namespace sluice::kernels {
namespace {

// Ops of a step follow each other within microseconds; waking a parked thread costs about as much
// as this.
constexpr auto kSpinTime = std::chrono::microseconds(50);
// Looks at the work word between two looks at the clock.
constexpr int kSpinsPerClock = 32;

constexpr uint64_t kRemainingMask = 0xffffffffu;
constexpr uint64_t kOneJob = uint64_t{1} << 32;

}  // namespace

struct WorkerPool::State {
  // The job's number in the upper half, its chunks not yet taken in the lower: one word, so that a
  // worker that comes late can never take a chunk of a later job with what it knows of an earlier.
  alignas(64) std::atomic<uint64_t> work{0};
  alignas(64) std::atomic<int64_t> unfinished{0};
  // The job. Written while no chunk is out, read by a worker that holds one.
  alignas(64) ChunkFn fn = nullptr;
  const void* context = nullptr;
  int64_t num_chunks = 0;

  std::atomic<bool> park_now{false};
  std::atomic<bool> stop{false};
  std::atomic<int> num_parked{0};
  std::mutex mutex;
  std::condition_variable wake;
  uint64_t num_wakes = 0;  // guarded by mutex

  std::vector<std::thread> threads;

  bool HasWork() const { return (work.load(std::memory_order_acquire) & kRemainingMask) != 0; }
  void RunChunks(int worker);
  void SpinForWork();
  void ParkUntilWoken();
  void WakeAll();
  void WorkerLoop(int worker);
};

// Takes chunks until none is left.
void WorkerPool::State::RunChunks(int worker) {
  uint64_t seen = work.load(std::memory_order_acquire);
  while ((seen & kRemainingMask) != 0) {
    if (!work.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel,
                                    std::memory_order_acquire)) {
      continue;
    }
    const int64_t chunk = num_chunks - static_cast<int64_t>(seen & kRemainingMask);
    fn(context, chunk, worker);
    unfinished.fetch_sub(1, std::memory_order_release);
    seen = work.load(std::memory_order_acquire);
  }
}

// Returns when there is work, when told to park or to stop, or after kSpinTime.
void WorkerPool::State::SpinForWork() {
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kSpinsPerClock; ++i) {
      if (HasWork() || park_now.load(std::memory_order_relaxed)) return;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < end);
}

void WorkerPool::State::ParkUntilWoken() {
  std::unique_lock<std::mutex> lock(mutex);
  const uint64_t wakes = num_wakes;
  // Announces itself, then looks at the work once more; Run publishes the work, then looks for
  // parked workers. Both in sequentially consistent order, so at least one sees the other.
  num_parked.fetch_add(1, std::memory_order_seq_cst);
  const bool idle = (work.load(std::memory_order_seq_cst) & kRemainingMask) == 0;
  if (idle && !stop.load(std::memory_order_seq_cst)) {
    wake.wait(lock, [&] { return num_wakes != wakes; });
  }
  num_parked.fetch_sub(1, std::memory_order_relaxed);
}

void WorkerPool::State::WakeAll() {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    ++num_wakes;
  }
  wake.notify_all();
}

void WorkerPool::State::WorkerLoop(int worker) {
  pthread_setname_np(pthread_self(), "sluice-kernels");
  while (!stop.load(std::memory_order_acquire)) {
    RunChunks(worker);
    SpinForWork();
    if (!HasWork()) ParkUntilWoken();
  }
}

WorkerPool::WorkerPool(int num_workers) : state_(std::make_unique<State>()) {
  SLUICE_KERNEL_CHECK(num_workers >= 1, "a pool needs at least its caller");
  for (int worker = 1; worker < num_workers; ++worker) {
    state_->threads.emplace_back([state = state_.get(), worker] { state->WorkerLoop(worker); });
  }
}

WorkerPool::~WorkerPool() {
  state_->park_now.store(true, std::memory_order_relaxed);
  state_->stop.store(true, std::memory_order_seq_cst);
  state_->WakeAll();
  for (std::thread& thread : state_->threads) thread.join();
}

int WorkerPool::num_workers() const { return static_cast<int>(state_->threads.size()) + 1; }

void WorkerPool::Park() { state_->park_now.store(true, std::memory_order_relaxed); }

void WorkerPool::Run(int64_t num_chunks, ChunkFn fn, const void* context) {
  SLUICE_KERNEL_CHECK(num_chunks <= static_cast<int64_t>(kRemainingMask), "too many chunks");
  if (num_chunks <= 0) return;
  State& state = *state_;
  if (state.threads.empty() || num_chunks == 1) {
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) fn(context, chunk, 0);
    return;
  }
  state.fn = fn;
  state.context = context;
  state.num_chunks = num_chunks;
  state.unfinished.store(num_chunks, std::memory_order_relaxed);
  state.park_now.store(false, std::memory_order_relaxed);
  const uint64_t job = (state.work.load(std::memory_order_relaxed) & ~kRemainingMask) + kOneJob;
  state.work.store(job | static_cast<uint64_t>(num_chunks), std::memory_order_seq_cst);
  if (state.num_parked.load(std::memory_order_seq_cst) != 0) state.WakeAll();

  state.RunChunks(0);
  // The last chunks of others: long only when another process holds their core, which yielding
  // gives back sooner.
  for (int spins = 0; state.unfinished.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < 1000) {
      _mm_pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace sluice::kernels
