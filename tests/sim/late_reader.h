#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/mailbox.h"
#include "engine/request.h"
#include "tests/sim/call.h"
#include "tests/sim/random.h"

namespace sluice::sim {

// A delivery thread that comes late: gets every chunk a second time, through a mailbox of its own
// into which it looks now and then, so that chunks of many turns merge there. They must come out in
// an order in which a stream can be written.
class LateReader {
 public:
  // `find`: the call with a handle; null when there is none.
  LateReader(uint64_t seed, int num_lanes, std::function<const Call*(uint64_t handle)> find)
      : random_(seed), mailbox_(num_lanes), find_(std::move(find)) {}

  void Post(std::vector<engine::TokenChunk> chunks) { mailbox_.Post(std::move(chunks)); }
  // Looks into some lanes, or into all. Returns what is wrong; empty when nothing is.
  std::string Look(bool everywhere);

 private:
  struct Stream {
    bool admitted = false;
    bool ended = false;
    int num_ended = 0;
    std::vector<int> num_tokens;  // by sequence; -1: it has ended
  };
  const char* Take(const engine::TokenChunk& chunk);

  Random random_;
  engine::ChunkMailbox mailbox_;
  const std::function<const Call*(uint64_t)> find_;
  std::unordered_map<uint64_t, Stream> streams_;
};

}  // namespace sluice::sim
