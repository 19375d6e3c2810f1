#include "engine/pool_size.h"

#include <algorithm>
#include <limits>

#include "engine/base/status.h"
#include "kernels/ops.h"

namespace sluice::engine {
namespace {

// Pages of one engine, page 0 included.
absl::StatusOr<int64_t> NumPages(const EngineOptions& options, const MemoryOffer& offer,
                                 int64_t page_bytes, int64_t sequence_pages) {
  const int64_t most = 1 + sequence_pages * options.max_batch;
  if (options.kv_memory_bytes == 0) {
    const int64_t share = (offer.all_for_kv ? offer.bytes : offer.bytes / 4) / options.num_engines;
    const int64_t least = 1 + std::min<int64_t>(sequence_pages, 2048 / kernels::kPageTokens);
    return std::max(least, std::min(most, share / page_bytes));
  }
  const auto pages =
      static_cast<int64_t>(options.kv_memory_bytes / static_cast<uint64_t>(page_bytes));
  if (pages < 2) {
    return InvalidArgument("KV memory: at least 2 pages of " + std::to_string(page_bytes) +
                           " bytes are needed, got " + std::to_string(options.kv_memory_bytes) +
                           " bytes");
  }
  return std::min(pages, most);
}

}  // namespace

absl::StatusOr<PoolSize> SizePool(const EngineOptions& options, const MemoryOffer& offer,
                                  int32_t context_length, int64_t page_bytes) {
  if (context_length < 2) {
    return InvalidArgument("context_length: expected at least 2 positions, got " +
                           std::to_string(context_length));
  }
  const int32_t wanted = options.max_context > 0 ? options.max_context : context_length;
  if (wanted > context_length) {
    return InvalidArgument("context: the model has " + std::to_string(context_length) +
                           " positions, asked for " + std::to_string(wanted));
  }
  const int64_t sequence_pages =
      (int64_t{wanted} + kernels::kPageTokens - 1) / kernels::kPageTokens;
  ASSIGN_OR_RETURN(const int64_t pages, NumPages(options, offer, page_bytes, sequence_pages));
  if (pages > std::numeric_limits<int32_t>::max() / 2) {
    return InvalidArgument("KV memory: at most 2^30 pages, got " + std::to_string(pages));
  }
  if (pages * page_bytes * options.num_engines > offer.bytes) {
    return ResourceExhausted("KV memory: " + std::to_string(options.num_engines) + " x " +
                             std::to_string(pages) + " pages of " + std::to_string(page_bytes) +
                             " bytes do not fit the " + std::to_string(offer.bytes) +
                             " bytes that the weights leave available" + offer.facts);
  }
  const int64_t positions = (pages - 1) * kernels::kPageTokens;
  if (options.max_context > positions) {
    return InvalidArgument("context: " + std::to_string(options.max_context) +
                           " positions were asked for, the KV pool holds " +
                           std::to_string(positions));
  }
  return PoolSize{pages, static_cast<int32_t>(std::min<int64_t>(wanted, positions))};
}

}  // namespace sluice::engine
