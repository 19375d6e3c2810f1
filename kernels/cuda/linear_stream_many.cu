// linear_stream for 64 and 128 tokens a block.

#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/linear_stream.cuh"

namespace sluice::kernels::cuda {
namespace {

const KernelModule kModule(stream::linear_stream<64, 2, true>);

}  // namespace

cudaError_t LaunchStreamMany(const LinearArgs& args, const LinearConfig& config,
                             cudaStream_t stream) {
  switch (config.tokens) {
    case 64:
      return stream::Run<64>(args, config, stream);
    case 128:
      return stream::Run<128>(args, config, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace sluice::kernels::cuda
