#pragma once

// The operations of kernels/ops.h on an NVIDIA GPU. All arrays of the arguments are device memory,
// except where stated; everything is asynchronous on the Exec's stream. Shapes are checked by
// kernels/ops.cc. In builds without CUDA every function answers UNIMPLEMENTED (absent.cc).

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/ops.h"

namespace sluice::kernels::cuda {

absl::StatusOr<DeviceFacts> OpenDevice(int index);
absl::StatusOr<int> LoadKernels();  // kernel_module.h

absl::StatusOr<Buffer> AllocateMemory(size_t bytes);
absl::Status CopyToDevice(void* to, const void* from, size_t bytes);
absl::Status CopyFromDevice(void* to, const void* from, size_t bytes);

absl::StatusOr<Activation> AllocateActivation(int64_t max_rows, int64_t cols);

absl::StatusOr<std::unique_ptr<Exec::Workspace>> MakeWorkspace(const WorkspaceShape& shape,
                                                               const Exec& exec);
absl::StatusOr<BatchView> UploadBatch(Exec& exec, const BatchView& host);
absl::Status RunStep(Exec& exec, const BatchView& batch, const std::function<absl::Status()>& ops);
std::vector<int64_t> RowsOfGraphs(const Exec& exec);

class DeviceSampler;
absl::StatusOr<std::shared_ptr<DeviceSampler>> MakeSampler(Exec& exec, int num_slots,
                                                           int64_t vocab_size);
absl::Status ResetSlot(DeviceSampler& sampler, int slot, const SamplerParams& params,
                       std::span<const int32_t> prompt, std::span<const int32_t> output);
absl::Status LaunchSample(Exec& exec, DeviceSampler& sampler, ConstMatrixF32 logits,
                          const SampleArgs& args);
absl::Status CollectSample(DeviceSampler& sampler, std::span<SampledToken> out);
absl::Status MarkStep(DeviceSampler& sampler);
std::optional<double> IdleBeforeStep(const DeviceSampler& sampler);

// Launches a kernel that faults: nothing of this process can use the device from then on.
absl::Status PlantFault(Exec& exec);

absl::Status CopyPages(Exec& exec, std::span<const KvLayer> layers, std::span<const int32_t> from,
                       std::span<const int32_t> to);

// K or V of the step that was last uploaded, as stored, for the observer: out [T, G*D] on the host.
absl::Status ReadStepKv(Exec& exec, const BatchView& batch, const KvLayer& kv, bool value,
                        float* out);
// Waits for everything launched so far.
absl::Status Synchronize(Exec& exec);

absl::Status EmbedTokens(Exec& exec, const PackedWeight& table, float scale,
                         std::span<const Rope> ropes, const BatchView& batch, MatrixF32 residual);
absl::Status NormQkvRopeStore(Exec& exec, const NormQkvRopeStoreArgs& args, ConstMatrixF32 residual,
                              const BatchView& batch, const KvLayer& kv, MatrixF32 q_out);
absl::Status PagedAttention(Exec& exec, const PagedAttentionArgs& args, ConstMatrixF32 q,
                            const BatchView& batch, const KvLayer& kv, Activation& out);
absl::Status MatMulAddResidual(Exec& exec, const MatMulAddResidualArgs& args,
                               const Activation& input, const BatchView& batch, MatrixF32 residual);
absl::Status NormGateUpSwiglu(Exec& exec, const NormGateUpArgs& args, ConstMatrixF32 residual,
                              const BatchView& batch, Activation& out);
absl::Status NormLmHead(Exec& exec, const NormLmHeadArgs& args, ConstMatrixF32 residual,
                        const BatchView& batch, int64_t first, MatrixF32 logits);

bool SupportsWeight(DType type);
int64_t PackedBytes(DType type, int64_t rows, int64_t cols);
// `stored` is host memory; blocks until it has been read. From several threads at once.
absl::Status PackWeightRows(PackedWeight& weight, int64_t first_row, int64_t num_rows,
                            const std::byte* stored);
absl::Status UnpackWeightRow(const PackedWeight& weight, int64_t row, float* out_on_host);

// WeightFeed of kernels/ops.h.
absl::StatusOr<std::shared_ptr<UploadRing>> MakeUploadRing(int num_lanes, size_t piece_bytes);
absl::StatusOr<std::byte*> NextPiece(UploadRing& ring, int lane);
absl::Status PackPiece(UploadRing& ring, int lane, PackedWeight& weight, int64_t first_row,
                       int64_t num_rows);
absl::Status FinishPieces(UploadRing& ring);

}  // namespace sluice::kernels::cuda
