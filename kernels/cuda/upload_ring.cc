#include "kernels/cuda/upload_ring.h"

#include <utility>

#include "kernels/core/status.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/packed_weight.h"

namespace sluice::kernels::cuda {
namespace {

constexpr size_t kAlignment = 4096;

}  // namespace

absl::StatusOr<std::shared_ptr<UploadRing>> UploadRing::Create(int num_lanes, size_t piece_bytes) {
  std::shared_ptr<UploadRing> ring(new UploadRing());
  RETURN_IF_ERROR(ring->Allocate(num_lanes, piece_bytes));
  return ring;
}

absl::Status UploadRing::Allocate(int num_lanes, size_t piece_bytes) {
  RETURN_IF_ERROR(ToStatus(cudaGetDevice(&device_index_), "the current device"));
  const size_t slot_bytes = (piece_bytes + kAlignment - 1) / kAlignment * kAlignment;
  const size_t bytes = slot_bytes * kSlots * static_cast<size_t>(num_lanes);
  auto pinned = AllocatePinned(bytes, /*clear=*/false);
  if (!pinned.ok()) return pinned.status();
  pinned_ = std::move(*pinned);
  auto staging = AllocateOnDevice(device_index_, bytes);
  if (!staging.ok()) return staging.status();
  staging_ = std::move(*staging);
  for (cudaStream_t& stream : streams_) {
    RETURN_IF_ERROR(ToStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream"));
  }
  lanes_.resize(static_cast<size_t>(num_lanes));
  size_t at = 0;
  for (size_t i = 0; i < lanes_.size(); ++i) {
    lanes_[i].stream = streams_[i % kStreams];
    for (Slot& slot : lanes_[i].slots) {
      slot.host = pinned_.bytes() + at;
      slot.device = staging_.bytes() + at;
      at += slot_bytes;
      RETURN_IF_ERROR(
          ToStatus(cudaEventCreateWithFlags(&slot.packed, cudaEventDisableTiming), "event"));
    }
  }
  return absl::OkStatus();
}

UploadRing::~UploadRing() {
  // Nothing may be freed under a copy. Errors were reported by a call before, or nobody asks.
  for (cudaStream_t stream : streams_) {
    if (stream == nullptr) continue;
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }
  for (Lane& lane : lanes_) {
    for (Slot& slot : lane.slots) {
      if (slot.packed != nullptr) cudaEventDestroy(slot.packed);
    }
  }
}

absl::StatusOr<std::byte*> UploadRing::Next(int lane_index) {
  RETURN_IF_ERROR(ToStatus(cudaSetDevice(device_index_), "choosing the device"));
  Lane& lane = lanes_[static_cast<size_t>(lane_index)];
  Slot& slot = lane.slots[lane.turn % kSlots];
  RETURN_IF_ERROR(ToStatus(cudaEventSynchronize(slot.packed), "packing weights"));
  return slot.host;
}

absl::Status UploadRing::Pack(int lane_index, PackedWeight& weight, int64_t first_row,
                              int64_t num_rows) {
  Lane& lane = lanes_[static_cast<size_t>(lane_index)];
  Slot& slot = lane.slots[lane.turn++ % kSlots];
  const auto bytes = static_cast<size_t>(num_rows * RowBytes(weight.type, weight.cols));
  RETURN_IF_ERROR(
      ToStatus(cudaMemcpyAsync(slot.device, slot.host, bytes, cudaMemcpyHostToDevice, lane.stream),
               "uploading weights"));
  RETURN_IF_ERROR(PackRows(PackedLayout::Of(weight.type, weight.rows, weight.cols),
                           weight.storage.bytes(), first_row, num_rows, slot.device, lane.stream));
  return ToStatus(cudaEventRecord(slot.packed, lane.stream), "packing weights");
}

absl::Status UploadRing::Finish() {
  for (cudaStream_t stream : streams_) {
    RETURN_IF_ERROR(ToStatus(cudaStreamSynchronize(stream), "packing weights"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<UploadRing>> MakeUploadRing(int num_lanes, size_t piece_bytes) {
  return UploadRing::Create(num_lanes, piece_bytes);
}
absl::StatusOr<std::byte*> NextPiece(UploadRing& ring, int lane) { return ring.Next(lane); }
absl::Status PackPiece(UploadRing& ring, int lane, PackedWeight& weight, int64_t first_row,
                       int64_t num_rows) {
  return ring.Pack(lane, weight, first_row, num_rows);
}
absl::Status FinishPieces(UploadRing& ring) { return ring.Finish(); }

}  // namespace sluice::kernels::cuda
