// linear_tiles for types in blocks of 256.

#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/linear_tiles.cuh"

namespace sluice::kernels::cuda {
namespace {

const KernelModule kModule(tiles::linear_tiles<UnitSuper<DType::kQ4_K>, 256>);

}  // namespace

cudaError_t LaunchTilesSuper(const LinearArgs& args, const LinearConfig& config,
                             cudaStream_t stream) {
  switch (args.tasks[0].weight.type) {
    case DType::kQ2_K:
      return tiles::Run<UnitSuper<DType::kQ2_K>>(args, config, stream);
    case DType::kQ3_K:
      return tiles::Run<UnitSuper<DType::kQ3_K>>(args, config, stream);
    case DType::kQ4_K:
      return tiles::Run<UnitSuper<DType::kQ4_K>>(args, config, stream);
    case DType::kQ5_K:
      return tiles::Run<UnitSuper<DType::kQ5_K>>(args, config, stream);
    case DType::kQ6_K:
      return tiles::Run<UnitSuper<DType::kQ6_K>>(args, config, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace sluice::kernels::cuda
