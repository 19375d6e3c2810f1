#pragma once

#include <thread>
#include <vector>

#include "engine/mailbox.h"
#include "server/call_registry.h"

namespace sluice::server {

// The threads that carry chunks from the engines' mailbox to the streams, one a lane, so that
// serialising and sending never delay a step. Every chunk that waits is given to its stream before
// any stream writes: what came together leaves together.
class Delivery {
 public:
  // Both outlive the delivery.
  Delivery(engine::ChunkMailbox* chunks, CallRegistry* calls);
  ~Delivery();  // the mailbox must be closed; delivers what is left and joins

 private:
  void Run(int lane);

  engine::ChunkMailbox* const chunks_;
  CallRegistry* const calls_;
  std::vector<std::thread> threads_;
};

}  // namespace sluice::server
