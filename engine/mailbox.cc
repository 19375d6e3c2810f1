#include "engine/mailbox.h"

#include <algorithm>
#include <string>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/failpoint.h"

namespace sluice::engine {
namespace {

// Sequences of a request that a chunk's key has room for; the scheduler refuses more.
constexpr int kIndexBits = 8;

uint64_t Key(const TokenChunk& chunk) {
  return (chunk.request.value << kIndexBits) | static_cast<uint64_t>(chunk.index);
}

}  // namespace

absl::Status CommandMailbox::Post(Command&& command) {
  const bool fails = Fails(Failpoint::kMailbox);
  {
    MutexLock lock(mutex_);
    if (closed_) return Unavailable("the engine has stopped");
    if (std::holds_alternative<SubmitCommand>(command)) {
      if (submissions_ >= capacity_ || fails) {
        return ResourceExhausted("the engine's queue is full: " + std::to_string(submissions_) +
                                 " of " + std::to_string(capacity_) + " requests wait");
      }
      ++submissions_;
    }
    commands_.push_back(std::move(command));
  }
  not_empty_.NotifyOne();
  return absl::OkStatus();
}

std::vector<Command> CommandMailbox::Drain(bool wait, std::optional<Time> until) {
  std::vector<Command> taken;
  MutexLock lock(mutex_);
  while (wait && commands_.empty() && !closed_) {
    if (!until) {
      not_empty_.Wait(mutex_);
    } else if (!not_empty_.WaitUntil(mutex_, *until)) {
      break;
    }
  }
  taken.swap(commands_);
  submissions_ = 0;
  return taken;
}

void CommandMailbox::Close() {
  {
    MutexLock lock(mutex_);
    closed_ = true;
  }
  not_empty_.NotifyAll();
}

bool CommandMailbox::closed() const {
  MutexLock lock(mutex_);
  return closed_;
}

ChunkMailbox::ChunkMailbox(int num_lanes) {
  SLUICE_CHECK(num_lanes >= 1, "a mailbox has one lane at least");
  for (int i = 0; i < num_lanes; ++i) lanes_.push_back(std::make_unique<Lane>());
}

void ChunkMailbox::Lane::Add(TokenChunk&& chunk) {
  const uint64_t key = Key(chunk);
  const auto place = places.find(key);
  if (place == places.end()) {
    places.emplace(key, chunks.size());
    chunks.push_back(std::move(chunk));
    return;
  }
  const size_t at = place->second;
  if (chunks[at].request_end) return;  // of an engine that was given up and came back
  const bool ends_request = chunk.request_end.has_value();
  chunks[at].Merge(std::move(chunk));
  if (!ends_request || at + 1 == chunks.size()) return;
  // The end of a request follows what its other sequences have waiting here.
  TokenChunk last = std::move(chunks[at]);
  chunks.erase(chunks.begin() + static_cast<std::ptrdiff_t>(at));
  for (auto& [other, index] : places) index -= index > at;
  if (last.admitted) {
    const auto first = std::find_if(chunks.begin(), chunks.end(), [&](const TokenChunk& waiting) {
      return waiting.request == last.request;
    });
    if (first != chunks.end()) std::swap(first->admitted, last.admitted);
  }
  places[key] = chunks.size();
  chunks.push_back(std::move(last));
}

std::vector<TokenChunk> ChunkMailbox::Lane::TakeAll() {
  places.clear();
  return std::exchange(chunks, {});
}

void ChunkMailbox::Post(std::vector<TokenChunk>&& chunks) {
  // A step's chunks are many and the lanes few: one lock and one wake a lane.
  for (size_t i = 0; i < lanes_.size(); ++i) {
    Lane& lane = *lanes_[i];
    bool posted = false;
    {
      MutexLock lock(lane.mutex);
      for (TokenChunk& chunk : chunks) {
        if (chunk.request.value % lanes_.size() != i) continue;
        lane.Add(std::move(chunk));
        posted = true;
      }
    }
    if (posted) lane.not_empty.NotifyOne();
  }
}

std::vector<TokenChunk> ChunkMailbox::Take(int lane_index, std::optional<Time> until) {
  Lane& lane = *lanes_[static_cast<size_t>(lane_index)];
  MutexLock lock(lane.mutex);
  while (lane.chunks.empty() && !lane.closed) {
    if (!until) {
      lane.not_empty.Wait(lane.mutex);
    } else if (!lane.not_empty.WaitUntil(lane.mutex, *until)) {
      break;
    }
  }
  return lane.TakeAll();
}

std::vector<TokenChunk> ChunkMailbox::TakeNow(int lane_index) {
  Lane& lane = *lanes_[static_cast<size_t>(lane_index)];
  MutexLock lock(lane.mutex);
  return lane.TakeAll();
}

void ChunkMailbox::Close() {
  for (const std::unique_ptr<Lane>& lane : lanes_) {
    {
      MutexLock lock(lane->mutex);
      lane->closed = true;
    }
    lane->not_empty.NotifyAll();
  }
}

bool ChunkMailbox::closed() const {
  MutexLock lock(lanes_.front()->mutex);
  return lanes_.front()->closed;
}

}  // namespace sluice::engine
