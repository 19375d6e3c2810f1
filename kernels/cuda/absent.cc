// The CUDA backend of builds without CUDA: nothing of it can be had.

#include "kernels/core/check.h"
#include "kernels/cuda/cuda_ops.h"

namespace sluice::kernels::cuda {
namespace {

absl::Status NotBuilt() {
  return absl::UnimplementedError("backend cuda: this program was built without CUDA");
}

}  // namespace

absl::StatusOr<DeviceFacts> OpenDevice(int) { return NotBuilt(); }
absl::StatusOr<int> LoadKernels() { return NotBuilt(); }
absl::StatusOr<Buffer> AllocateMemory(size_t) { return NotBuilt(); }
absl::Status CopyToDevice(void*, const void*, size_t) { return NotBuilt(); }
absl::Status CopyFromDevice(void*, const void*, size_t) { return NotBuilt(); }
absl::StatusOr<std::unique_ptr<Exec::Workspace>> MakeWorkspace(const WorkspaceShape&, const Exec&) {
  return NotBuilt();
}
absl::StatusOr<BatchView> UploadBatch(Exec&, const BatchView&) { return NotBuilt(); }
absl::StatusOr<Activation> AllocateActivation(int64_t, int64_t) { return NotBuilt(); }
absl::Status ReadStepKv(Exec&, const BatchView&, const KvLayer&, bool, float*) {
  return NotBuilt();
}
absl::Status RunStep(Exec&, const BatchView&, const std::function<absl::Status()>&) {
  return NotBuilt();
}
std::vector<int64_t> RowsOfGraphs(const Exec&) { return {}; }
absl::StatusOr<std::shared_ptr<DeviceSampler>> MakeSampler(Exec&, int, int64_t) {
  return NotBuilt();
}
absl::Status ResetSlot(DeviceSampler&, int, const SamplerParams&, std::span<const int32_t>,
                       std::span<const int32_t>) {
  return NotBuilt();
}
absl::Status LaunchSample(Exec&, DeviceSampler&, ConstMatrixF32, const SampleArgs&) {
  return NotBuilt();
}
absl::Status CollectSample(DeviceSampler&, std::span<SampledToken>) { return NotBuilt(); }
absl::Status MarkStep(DeviceSampler&) { return NotBuilt(); }
std::optional<double> IdleBeforeStep(const DeviceSampler&) { return std::nullopt; }
absl::Status PlantFault(Exec&) { return NotBuilt(); }
absl::Status CopyPages(Exec&, std::span<const KvLayer>, std::span<const int32_t>,
                       std::span<const int32_t>) {
  return NotBuilt();
}
absl::Status Synchronize(Exec&) { return NotBuilt(); }
absl::Status EmbedTokens(Exec&, const PackedWeight&, float, std::span<const Rope>, const BatchView&,
                         MatrixF32) {
  return NotBuilt();
}
absl::Status NormQkvRopeStore(Exec&, const NormQkvRopeStoreArgs&, ConstMatrixF32, const BatchView&,
                              const KvLayer&, MatrixF32) {
  return NotBuilt();
}
absl::Status PagedAttention(Exec&, const PagedAttentionArgs&, ConstMatrixF32, const BatchView&,
                            const KvLayer&, Activation&) {
  return NotBuilt();
}
absl::Status MatMulAddResidual(Exec&, const MatMulAddResidualArgs&, const Activation&,
                               const BatchView&, MatrixF32) {
  return NotBuilt();
}
absl::Status NormGateUpSwiglu(Exec&, const NormGateUpArgs&, ConstMatrixF32, const BatchView&,
                              Activation&) {
  return NotBuilt();
}
absl::Status NormLmHead(Exec&, const NormLmHeadArgs&, ConstMatrixF32, const BatchView&, int64_t,
                        MatrixF32) {
  return NotBuilt();
}
bool SupportsWeight(DType) { return false; }
int64_t PackedBytes(DType, int64_t, int64_t) { return 0; }
absl::Status PackWeightRows(PackedWeight&, int64_t, int64_t, const std::byte*) {
  return NotBuilt();
}
absl::Status UnpackWeightRow(const PackedWeight&, int64_t, float*) { return NotBuilt(); }
absl::StatusOr<std::shared_ptr<UploadRing>> MakeUploadRing(int, size_t) { return NotBuilt(); }
absl::StatusOr<std::byte*> NextPiece(UploadRing&, int) { return NotBuilt(); }
absl::Status PackPiece(UploadRing&, int, PackedWeight&, int64_t, int64_t) { return NotBuilt(); }
absl::Status FinishPieces(UploadRing&) { return NotBuilt(); }

}  // namespace sluice::kernels::cuda
