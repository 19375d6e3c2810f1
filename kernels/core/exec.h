#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

#include "kernels/core/planted_bug.h"
#include "kernels/core/worker_pool.h"

namespace sluice::kernels {

enum class Backend : uint8_t { kRef, kCpu, kCuda };
std::string_view Name(Backend backend);

// Instruction sets of the CPU backend. Both give equal bits; kAvx512 needs F, BW, VL, DQ and VNNI.
enum class CpuIsa : uint8_t { kAvx2, kAvx512 };
std::string_view Name(CpuIsa isa);
// The best one that this machine has; FAILED_PRECONDITION naming what is missing when it has not
// even AVX2, FMA and F16C.
absl::StatusOr<CpuIsa> DetectCpuIsa();

// Sees the outcome of every op, in order: used by `sluice verify`, dumps and op timing. Called on
// the engine thread.
class OpObserver {
 public:
  virtual ~OpObserver() = default;
  // `layer` is -1 outside the layers. `values` is the op's main outcome, [rows, cols] row-major in
  // f32 on the host.
  virtual void OnOp(std::string_view op, int layer, std::span<const float> values, int64_t rows,
                    int64_t cols) = 0;
};

// Sizes for which an Exec reserves, once, whatever its ops need inside: no op allocates.
struct WorkspaceShape {
  int64_t max_tokens = 0;      // T of the largest step
  int64_t max_logit_rows = 0;  // R of the largest NormLmHead call
  int64_t max_rows = 0;        // S, ragged rows of a step
  int64_t max_pages = 0;       // page-table entries of one row, at most
  int64_t width = 0;           // E
  int64_t num_heads = 0;       // H
  int64_t num_kv_heads = 0;    // G
  int64_t head_size = 0;       // D
  int64_t ffn_width = 0;       // F
  int64_t vocab_size = 0;      // V
};

// CUDA: whether one kernel runs a whole step of one token, and in which form: one for models whose
// stages wait for each other, one for those whose quantised weights are most of the work. The same
// bits. kAuto: whichever suits the model; tests name them.
enum class PersistentDecode : uint8_t { kOff, kAuto, kPrepared, kDirect };

// Where and how ops run: the backend, its threads or stream, its scratch memory, its trace hook;
// later the communicator of a tensor-parallel group. Owned by a DeviceRunner (or a test); engine
// thread only.
class Exec {
 public:
  struct Options {
    Backend backend = Backend::kCpu;
    int num_threads = 1;         // CPU backends
    CpuIsa isa = CpuIsa::kAvx2;  // CPU backend; take it from DetectCpuIsa()
    PlantedBug planted_bug = PlantedBug::kNone;
    // CUDA: steps of one token run as one persistent kernel where device and model allow it. Only
    // for an Exec that has its device to itself: the kernel's blocks wait for each other on all
    // multiprocessors.
    PersistentDecode persistent_decode = PersistentDecode::kAuto;
    // CUDA: what is quicker at the price of bits that depend on the number of tokens of a step.
    bool fast_numerics = false;
    // CUDA: kernels of a graph may begin before the ones they follow have ended (programmatic
    // dependent launch). False only in the test that compares the two.
    bool dependent_launches = true;
  };
  // Scratch memory of one backend; each backend derives its own.
  struct Workspace {
    virtual ~Workspace() = default;
  };

  explicit Exec(const Options& options);
  ~Exec();
  Exec(const Exec&) = delete;
  Exec& operator=(const Exec&) = delete;

  const Options& options() const { return options_; }
  Backend backend() const { return options_.backend; }
  CpuIsa isa() const { return options_.isa; }
  bool planted(PlantedBug bug) const { return IsPlanted(options_.planted_bug, bug); }
  WorkerPool& pool() { return *pool_; }
  int num_threads() const { return options_.num_threads; }
  bool dependent_launches() const { return options_.dependent_launches; }
  std::string Describe() const;  // "cpu avx512 2 threads"

  Workspace* workspace() const { return workspace_.get(); }
  const WorkspaceShape& workspace_shape() const { return workspace_shape_; }
  // Called by kernels::ReserveWorkspace only.
  void set_workspace(const WorkspaceShape& shape, std::unique_ptr<Workspace> workspace);

  OpObserver* observer() const { return observer_; }
  void set_observer(OpObserver* observer) { observer_ = observer; }
  // The layer that following ops belong to, for the observer; -1 outside the layers.
  int layer() const { return layer_; }
  void set_layer(int layer) { layer_ = layer; }

 private:
  const Options options_;
  std::unique_ptr<WorkerPool> pool_;
  WorkspaceShape workspace_shape_;
  std::unique_ptr<Workspace> workspace_;
  OpObserver* observer_ = nullptr;
  int layer_ = -1;
};

}  // namespace sluice::kernels
