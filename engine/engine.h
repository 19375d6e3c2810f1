#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/base/clock.h"
#include "engine/mailbox.h"
#include "engine/request.h"
#include "engine/scheduler_limits.h"
#include "engine/stats.h"
#include "engine/step_runner.h"
#include "engine/tokenizer/tokenizer.h"
#include "kernels/core/planted_bug.h"

namespace sluice::engine {

class ChatEncoder;

enum class KvDType : uint8_t { kF16, kF32 };
std::string_view Name(KvDType type);

// How a model is loaded and served. 0 means "choose".
struct EngineOptions {
  std::string device = "cpu";    // "cpu" or "cuda:N"
  int num_engines = 1;           // CPU engines, sharing the weights
  int num_threads = 0;           // of each engine; 0: cores / engines
  uint64_t kv_memory_bytes = 0;  // of each engine; 0: automatic from the model and free memory
  // f32 keeps the logits within 0.01 of the reference; f16 halves the memory and errs by up to
  // 0.03.
  std::optional<KvDType> kv_dtype;  // none: f32 on the CPU, f16 on CUDA
  // On a GPU prompts are read faster, and a reply's bits depend on the steps that its prompt was
  // cut into and so on who else is served; no difference on the CPU.
  bool fast_numerics = false;
  // Of the device's memory, for weights, KV cache and scratch together, when kv_memory_bytes is 0.
  double gpu_memory_fraction = 0.9;
  int max_batch = 64;         // running sequences of an engine
  int max_step_tokens = 512;  // token budget of one step
  int max_queue = 1024;       // waiting sequences of an engine
  int max_context = 0;        // positions of a sequence; 0: the model's
  bool prefix_cache = true;
  std::string chat_template_path;  // file with a template; empty: the model's own
  std::string model_sha256;        // hex; the file must have it, checked before anything is parsed
  bool lock_memory = false;        // weights and KV caches stay in memory, never swapped
  bool force_avx2 = false;         // even where AVX-512 is there; same bits
  kernels::PlantedBug planted_bug = kernels::PlantedBug::kNone;  // test builds only
};

// Facts of the loaded model, for GetModel, logs and provenance. Value.
struct ModelFacts {
  std::string name;
  std::string architecture;
  std::string file;            // base name only
  std::string weights_digest;  // hex
  std::string quantization;    // most frequent matrix type, "Q4_1"
  int64_t num_parameters = 0;
  uint64_t weight_bytes = 0;  // resident
  int32_t vocab_size = 0;
  int32_t context_length = 0;
  int32_t num_layers = 0, width = 0, num_heads = 0, num_kv_heads = 0, head_size = 0, ffn_width = 0;
  std::string backend;   // "cpu avx512 2 threads"
  std::string numerics;  // "exact int16 kv-f16", "fast f16 kv-f16"
  std::string kv_dtype;
  int32_t max_context = 0;  // served
  int64_t kv_pages = 0;     // of each engine, page 0 not counted
  int64_t kv_bytes = 0;     // of each engine
  // Of a GPU; empty and 0 for the CPU.
  std::string device;  // "cuda:0 NVIDIA H200, compute capability 9.0, its own kernels"
  uint64_t device_workspace_bytes = 0;  // taken at load beside weights and KV caches
  uint64_t device_free_bytes = 0;       // left after it
};

// The outcome of the check that ran before the model was called ready.
struct SelfCheck {
  bool passed = false;
  double max_relative_error = 0;  // of the canary's logits against the strict path
  double tolerance = 0;           // the most that it may be
  bool top1_equal = false;
  double seconds = 0;
  double seconds_per_token = 0;  // of the canary through the whole model
  std::string message;           // one line
};

// One engine: a thread that owns a scheduler and a runner, and two mailboxes. Thread-safe handle.
class Engine {
 public:
  // Starts the thread. `tokenizer` may be null: then no text goes out and stop strings are refused
  // by the caller. `outbound` is shared by all engines of a process and outlives them.
  Engine(int index, const SchedulerLimits& limits, std::unique_ptr<StepRunner> runner,
         std::shared_ptr<const Tokenizer> tokenizer, ChunkMailbox* outbound);
  ~Engine();  // Shutdown

  int index() const { return index_; }
  const SchedulerLimits& limits() const { return limits_; }
  // RESOURCE_EXHAUSTED when the queue is full, UNAVAILABLE when the engine is down or draining.
  absl::Status Submit(Request&& request);
  void Cancel(RequestHandle request, absl::Status status);
  void Pause(RequestHandle request);
  void Resume(RequestHandle request);
  // New work is refused; what was accepted goes on.
  void Drain();
  // Ends what still runs with UNAVAILABLE, stops and joins the thread. Idempotent.
  void Shutdown();
  // Takes the engine out of service for good, whatever its thread is doing: not up, no command is
  // taken. Shutdown does not wait for a thread that does not come back, and leaves it what it uses;
  // one that does posts chunks of requests that have been ended in its place.
  void Abandon();

  const EngineStats& stats() const;
  bool up() const { return stats().up.load(std::memory_order_acquire); }
  bool abandoned() const;
  // An exception ended the thread: nothing moves here any more.
  bool crashed() const;
  // Abandoned, and the thread has not come back: never to be freed.
  bool lost() const;
  // Nothing waiting, running or in the mailbox.
  bool idle() const;
  // The kernel's number of its thread; 0 when that has not begun.
  int thread_id() const;
  // Known tokens of all sequences that are in the mailbox, waiting or running.
  int64_t load_tokens() const;

 private:
  class Impl;
  const int index_;
  const SchedulerLimits limits_;
  std::unique_ptr<Impl> impl_;
};

// A served model: engines that share weights, and the mailbox on which their chunks arrive.
// Thread-safe handle; the least loaded engine takes a request. One more indirection than an engine
// so that the server knows only this class.
class Dispatcher {
 public:
  Dispatcher(std::vector<std::unique_ptr<Engine>> engines, std::unique_ptr<ChunkMailbox> outbound);
  ~Dispatcher();

  // Takes the engine with the fewest waiting and running tokens that is up. RESOURCE_EXHAUSTED when
  // all queues are full; UNAVAILABLE when none is up or all drain. Not moved from on failure.
  absl::Status Dispatch(Request&& request);
  void Cancel(RequestHandle request, absl::Status status);
  void Pause(RequestHandle request);
  void Resume(RequestHandle request);
  void Drain();
  // Shuts every engine down and closes the mailbox of chunks, which can still be emptied.
  void Shutdown();
  // Abandons an engine, and ends in its place what it was given: INTERNAL ENGINE_FAULT.
  void Abandon(int engine, const std::string& why);

  // A request's route is forgotten when its RequestEnd has been delivered.
  void Forget(RequestHandle request);

  ChunkMailbox& chunks() { return *outbound_; }
  const std::vector<std::unique_ptr<Engine>>& engines() const { return engines_; }
  bool any_up() const;
  bool idle() const;  // all engines

 private:
  Engine* Route(RequestHandle request);

  std::unique_ptr<ChunkMailbox> outbound_;
  std::vector<std::unique_ptr<Engine>> engines_;
  Mutex mutex_;
  std::unordered_map<uint64_t, int> routes_ ABSL_GUARDED_BY(mutex_);  // request -> engine
};

// A model ready to serve.
struct LoadedModel {
  ModelFacts facts;
  std::shared_ptr<const Tokenizer> tokenizer;  // null when the file has no vocabulary
  std::shared_ptr<const ChatEncoder> chat;     // null when it cannot chat
  std::string chat_error;                      // why not: "line 3: ..."
  std::vector<std::string> warnings;
  std::vector<std::string> notes;  // lines for the log: how long what took, where memory went
  SelfCheck self_check;
  std::unique_ptr<Dispatcher> dispatcher;
};

struct LoadProgress {
  std::string_view phase;        // "open", "weights", "self-check"
  uint64_t done = 0, total = 0;  // bytes, in phase "weights"
};

// INVALID_ARGUMENT when an option is out of its range or does not fit another, whatever the model.
absl::Status CheckOptions(const EngineOptions& options);

// Opens and checks the file, loads weights, sizes and allocates the KV pool, runs the self-check,
// starts the engines. `num_lanes`: delivery threads. Errors as ModelFile, ModelConfig, Weights and
// Tokenizer give them; FAILED_PRECONDITION when the self-check fails or memory cannot be locked;
// RESOURCE_EXHAUSTED with numbers when memory is short.
absl::StatusOr<LoadedModel> LoadModel(const std::string& path, const EngineOptions& options,
                                      int num_lanes,
                                      const std::function<void(const LoadProgress&)>& progress);

}  // namespace sluice::engine
