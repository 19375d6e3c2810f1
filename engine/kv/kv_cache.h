#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/model/model_config.h"
#include "kernels/ops.h"

namespace sluice::engine {

// The device arrays behind the page ids that the scheduler hands out: K and V of every layer for
// every page. Owned by a DeviceRunner; engine thread only. Holds no bookkeeping.
class KvCache {
 public:
  // `num_pages` includes page 0, the scratch page. RESOURCE_EXHAUSTED with the numbers when memory
  // is short.
  static absl::StatusOr<KvCache> Allocate(const ModelConfig& config, kernels::Backend backend,
                                          kernels::DType type, int64_t num_pages);
  // As kernels::Buffer::Lock.
  absl::Status Lock() const;

  // Bytes that one page takes over all layers.
  static int64_t PageBytes(const ModelConfig& config, kernels::DType type);

  std::span<const kernels::KvLayer> layers() const { return layers_; }
  int64_t num_pages() const { return num_pages_; }

 private:
  KvCache() = default;
  int64_t num_pages_ = 0;
  kernels::Buffer storage_;
  std::vector<kernels::KvLayer> layers_;
};

}  // namespace sluice::engine
