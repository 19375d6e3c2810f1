#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace sluice::kernels {

// A small pool of threads for the CPU backends. Owned by an Exec; used by one thread at a time,
// which is worker 0. Workers spin briefly after a parallel section (the next one follows within
// microseconds inside a step) and then park, so an idle engine costs nothing.
class WorkerPool {
 public:
  // `num_workers` >= 1 counts the calling thread: a pool of 1 starts no thread and runs everything
  // inline.
  explicit WorkerPool(int num_workers);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int num_workers() const;

  // Calls fn(chunk, worker) once for every chunk in [0, num_chunks), and returns when all are done.
  // Workers take chunks from a shared counter in ascending order, so a worker whose core is busy
  // elsewhere holds back one chunk, not half of the work. `fn` must not call ParallelFor and must
  // not throw.
  template <typename Fn>
  void ParallelFor(int64_t num_chunks, const Fn& fn) {
    Run(
        num_chunks,
        [](const void* context, int64_t chunk, int worker) {
          (*static_cast<const Fn*>(context))(chunk, worker);
        },
        &fn);
  }

  // Ends the spinning of idle workers now: called when a step is over and no next one is known.
  void Park();

 private:
  using ChunkFn = void (*)(const void* context, int64_t chunk, int worker);
  void Run(int64_t num_chunks, ChunkFn fn, const void* context);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::kernels
