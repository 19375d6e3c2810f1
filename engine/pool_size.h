#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

#include "engine/engine.h"

namespace sluice::engine {

// Memory that KV caches may take.
struct MemoryOffer {
  int64_t bytes = 0;        // that the weights and everything else leave
  bool all_for_kv = false;  // a device of its own; else others live in the same memory
  std::string facts = {};   // of the device, for messages: "; the device has .."
};

// Pages and served context of one engine's pool.
struct PoolSize {
  int64_t num_pages = 0;  // page 0 included
  int32_t max_context = 0;
};

// The pool of each engine: as large as options.kv_memory_bytes says; or for max_batch sequences of
// full context, at most a quarter of the offer (all of it where it is all for KV) shared by the
// engines, at least one sequence of 2,048 positions. INVALID_ARGUMENT for limits that contradict
// each other, RESOURCE_EXHAUSTED with the numbers when the pools do not fit the offer.
absl::StatusOr<PoolSize> SizePool(const EngineOptions& options, const MemoryOffer& offer,
                                  int32_t context_length, int64_t page_bytes);

}  // namespace sluice::engine
