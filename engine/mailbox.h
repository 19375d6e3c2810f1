#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <variant>
#include <vector>

#include "absl/status/status.h"

#include "engine/base/mutex.h"
#include "engine/base/status.h"
#include "engine/request.h"

namespace sluice::engine {

// Commands for an engine, applied at the next step boundary.
struct SubmitCommand {
  Request request;
};
struct CancelCommand {
  RequestHandle request;
  absl::Status status;  // what the request ends with: CANCELLED, ABORTED, UNAVAILABLE
  Time issued;
};
struct PauseCommand {  // the sequence keeps its pages and is not scheduled: its reader fell behind
  RequestHandle request;
};
struct ResumeCommand {
  RequestHandle request;
};
struct DrainCommand {};  // refuse new work with UNAVAILABLE, finish the rest

using Command =
    std::variant<SubmitCommand, CancelCommand, PauseCommand, ResumeCommand, DrainCommand>;

// Commands from any thread to the engine thread. Thread-safe. Submissions are bounded by
// `capacity`; the others are not refused (they are at most a few a live request).
class CommandMailbox {
 public:
  explicit CommandMailbox(size_t capacity) : capacity_(capacity) {}

  // RESOURCE_EXHAUSTED when `capacity` submissions are waiting, UNAVAILABLE after Close; the
  // command is untouched then.
  absl::Status Post(Command&& command);
  // Takes everything. With `wait`, blocks until there is something, Close is called, or `until` (if
  // set) passes.
  std::vector<Command> Drain(bool wait, std::optional<Time> until = std::nullopt);
  // Nothing is accepted any more; a blocked Drain returns.
  void Close();
  bool closed() const;

 private:
  const size_t capacity_;
  mutable Mutex mutex_;
  CondVar not_empty_;
  std::vector<Command> commands_ ABSL_GUARDED_BY(mutex_);
  size_t submissions_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

// Chunks from the engine thread to delivery threads, by hash of the request. Holds one pending
// chunk a sequence: posting merges into it, so posting neither blocks nor drops and the size is
// bounded by the sequences. Thread-safe.
class ChunkMailbox {
 public:
  // `num_lanes`: delivery threads; a request's chunks all go through lane handle % num_lanes.
  explicit ChunkMailbox(int num_lanes);

  int num_lanes() const { return static_cast<int>(lanes_.size()); }
  void Post(std::vector<TokenChunk>&& chunks);
  // Takes everything of a lane, in order of first posting, except that a request's end comes after
  // all else of the request. Blocks until there is something, `until`
  // passes or Close was called.
  std::vector<TokenChunk> Take(int lane, std::optional<Time> until = std::nullopt);
  // The same without waiting: empty when there is nothing.
  std::vector<TokenChunk> TakeNow(int lane);
  void Close();
  bool closed() const;

 private:
  struct Lane {
    mutable Mutex mutex;
    CondVar not_empty;
    std::vector<TokenChunk> chunks ABSL_GUARDED_BY(mutex);
    // (request, index) -> place in `chunks`
    std::unordered_map<uint64_t, size_t> places ABSL_GUARDED_BY(mutex);
    bool closed ABSL_GUARDED_BY(mutex) = false;

    void Add(TokenChunk&& chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
    std::vector<TokenChunk> TakeAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  };
  std::vector<std::unique_ptr<Lane>> lanes_;
};

}  // namespace sluice::engine
