// linear_tiles for half-precision weights.

#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/linear_tiles.cuh"

namespace sluice::kernels::cuda {
namespace {

const KernelModule kModule(tiles::linear_tiles<UnitHalf, 256>);

}  // namespace

cudaError_t LaunchTilesHalf(const LinearArgs& args, const LinearConfig& config,
                            cudaStream_t stream) {
  return tiles::Run<UnitHalf>(args, config, stream);
}

bool HasWgmmaCode() {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, tiles::linear_tiles<UnitHalf, 256>) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  return attributes.binaryVersion == 90;
}

}  // namespace sluice::kernels::cuda
