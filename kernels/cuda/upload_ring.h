#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/core/buffer.h"
#include "kernels/ops.h"

namespace sluice::kernels::cuda {

// WeightFeed on a device. Every lane has three slots of page-locked memory and as many on the
// device, used in turn: one is being read into, one is on its way over the bus, one is being
// repacked. Lanes share few streams, so that the copies of one meet the repacking of another.
// Memory is allocated once; nothing waits but a lane that finds its next slot still on its way.
//
// The bus is the limit: 55 GB/s on PCIe 5 x 16.
class UploadRing {
 public:
  static absl::StatusOr<std::shared_ptr<UploadRing>> Create(int num_lanes, size_t piece_bytes);
  ~UploadRing();
  UploadRing(const UploadRing&) = delete;
  UploadRing& operator=(const UploadRing&) = delete;

  absl::StatusOr<std::byte*> Next(int lane);
  absl::Status Pack(int lane, PackedWeight& weight, int64_t first_row, int64_t num_rows);
  absl::Status Finish();

 private:
  static constexpr size_t kSlots = 3;    // of a lane
  static constexpr size_t kStreams = 4;  // of all lanes
  struct Slot {
    std::byte* host = nullptr;
    std::byte* device = nullptr;
    cudaEvent_t packed = nullptr;
  };
  struct Lane {
    Slot slots[kSlots];
    size_t turn = 0;
    cudaStream_t stream = nullptr;
  };

  UploadRing() = default;
  absl::Status Allocate(int num_lanes, size_t piece_bytes);

  int device_index_ = 0;
  Buffer pinned_;
  Buffer staging_;
  cudaStream_t streams_[kStreams] = {};
  std::vector<Lane> lanes_;
};

}  // namespace sluice::kernels::cuda
