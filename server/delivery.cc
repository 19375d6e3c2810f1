#include "server/delivery.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace sluice::server {

Delivery::Delivery(engine::ChunkMailbox* chunks, CallRegistry* calls)
    : chunks_(chunks), calls_(calls) {
  for (int lane = 0; lane < chunks->num_lanes(); ++lane) {
    threads_.emplace_back([this, lane] { Run(lane); });
  }
}

Delivery::~Delivery() {
  for (std::thread& thread : threads_) thread.join();
}

void Delivery::Run(int lane) {
  while (true) {
    std::vector<engine::TokenChunk> taken = chunks_->Take(lane);
    if (taken.empty() && chunks_->closed()) return;
    std::vector<std::shared_ptr<Call>> touched;
    for (engine::TokenChunk& chunk : taken) {
      std::shared_ptr<Call> call = calls_->Find(chunk.request);
      if (call == nullptr) continue;  // over on both sides: a late chunk hits nothing
      call->Add(std::move(chunk));
      if (touched.empty() || touched.back() != call) touched.push_back(std::move(call));
    }
    for (const std::shared_ptr<Call>& call : touched) call->Pump();
  }
}

}  // namespace sluice::server
