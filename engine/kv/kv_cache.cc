#include "engine/kv/kv_cache.h"

#include <string>
#include <utility>

#include "engine/base/status.h"

namespace sluice::engine {

int64_t KvCache::PageBytes(const ModelConfig& config, kernels::DType type) {
  return config.num_layers * kernels::KvPageBytes(type, config.num_kv_heads, config.head_size);
}

absl::Status KvCache::Lock() const { return Prefix("KV cache", storage_.Lock()); }

absl::StatusOr<KvCache> KvCache::Allocate(const ModelConfig& config, kernels::Backend backend,
                                          kernels::DType type, int64_t num_pages) {
  const int64_t page_bytes = PageBytes(config, type);
  absl::StatusOr<kernels::Buffer> storage =
      kernels::AllocateMemory(backend, static_cast<size_t>(num_pages * page_bytes));
  if (!storage.ok()) {
    return Prefix("KV cache of " + std::to_string(num_pages) + " pages of " +
                      std::to_string(page_bytes) + " bytes",
                  storage.status());
  }
  KvCache cache;
  cache.num_pages_ = num_pages;
  cache.storage_ = *std::move(storage);
  const int64_t half = num_pages * page_bytes / config.num_layers / 2;
  std::byte* next = cache.storage_.bytes();
  for (int layer = 0; layer < config.num_layers; ++layer) {
    cache.layers_.push_back({.type = type,
                             .num_pages = num_pages,
                             .num_kv_heads = config.num_kv_heads,
                             .head_size = config.head_size,
                             .k = next,
                             .v = next + half});
    next += 2 * half;
  }
  return cache;
}

}  // namespace sluice::engine
