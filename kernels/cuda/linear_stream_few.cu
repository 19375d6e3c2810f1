// linear_stream for up to 32 tokens a block.

#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/linear_stream.cuh"

namespace sluice::kernels::cuda {
namespace {

const KernelModule kModule(stream::linear_stream<8, 2, true>);

}  // namespace

cudaError_t LaunchStreamFew(const LinearArgs& args, const LinearConfig& config,
                            cudaStream_t stream) {
  switch (config.tokens) {
    case 8:
      return stream::Run<8>(args, config, stream);
    case 16:
      return stream::Run<16>(args, config, stream);
    case 32:
      return stream::Run<32>(args, config, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace sluice::kernels::cuda
