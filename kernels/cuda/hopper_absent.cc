// In place of the kernels for compute capability 9.0 in a build without them
// (SLUICE_CUDA_HOPPER=OFF): HasWgmmaCode answers that they are not here, so none of the others is
// called.

#include "absl/status/status.h"

#include "kernels/cuda/attention.h"
#include "kernels/cuda/decode_program.h"
#include "kernels/cuda/linear_paths.h"

namespace sluice::kernels::cuda {

bool HasWgmmaCode() { return false; }

cudaError_t LaunchStreamFew(const LinearArgs&, const LinearConfig&, cudaStream_t) {
  return cudaErrorNotSupported;
}
cudaError_t LaunchStreamMany(const LinearArgs&, const LinearConfig&, cudaStream_t) {
  return cudaErrorNotSupported;
}
cudaError_t LaunchTilesHalf(const LinearArgs&, const LinearConfig&, cudaStream_t) {
  return cudaErrorNotSupported;
}
cudaError_t LaunchTilesLegacy(const LinearArgs&, const LinearConfig&, cudaStream_t) {
  return cudaErrorNotSupported;
}
cudaError_t LaunchTilesSuper(const LinearArgs&, const LinearConfig&, cudaStream_t) {
  return cudaErrorNotSupported;
}
bool HasPromptKernel(const AttentionArgs&) { return false; }
absl::Status LaunchPrompt(const AttentionArgs&, cudaStream_t) {
  return absl::UnimplementedError("attention_prompt: built without SLUICE_CUDA_HOPPER");
}
absl::Status ListChunks(const DecodeArgs&, int, int32_t*, cudaStream_t) {
  return absl::UnimplementedError("persistent_decode: built without SLUICE_CUDA_HOPPER");
}
absl::Status PreparePersistentDecode(const DecodeArgs&, size_t) {
  return absl::UnimplementedError("persistent_decode: built without SLUICE_CUDA_HOPPER");
}
absl::Status LaunchPersistentDecode(const DecodeArgs&, const DecodeStep&, int, size_t,
                                    cudaStream_t) {
  return absl::UnimplementedError("persistent_decode: built without SLUICE_CUDA_HOPPER");
}

}  // namespace sluice::kernels::cuda
