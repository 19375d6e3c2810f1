// linear_tiles for types in blocks of 32.

#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/linear_tiles.cuh"

namespace sluice::kernels::cuda {
namespace {

const KernelModule kModule(tiles::linear_tiles<UnitLegacy<DType::kQ4_0>, 256>);

}  // namespace

cudaError_t LaunchTilesLegacy(const LinearArgs& args, const LinearConfig& config,
                              cudaStream_t stream) {
  switch (args.tasks[0].weight.type) {
    case DType::kQ4_0:
      return tiles::Run<UnitLegacy<DType::kQ4_0>>(args, config, stream);
    case DType::kQ4_1:
      return tiles::Run<UnitLegacy<DType::kQ4_1>>(args, config, stream);
    case DType::kQ5_0:
      return tiles::Run<UnitLegacy<DType::kQ5_0>>(args, config, stream);
    case DType::kQ5_1:
      return tiles::Run<UnitLegacy<DType::kQ5_1>>(args, config, stream);
    case DType::kQ8_0:
      return tiles::Run<UnitLegacy<DType::kQ8_0>>(args, config, stream);
    case DType::kIQ4_NL:
      return tiles::Run<UnitLegacy<DType::kIQ4_NL>>(args, config, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace sluice::kernels::cuda
