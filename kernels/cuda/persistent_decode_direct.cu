// persistent_decode where making operands of quants is most of the work.

#include "kernels/cuda/persistent_decode.cuh"

namespace sluice::kernels::cuda {

DecodeKernel DirectDecodeKernel(int head_size) { return DecodeKernelOf<1>(head_size); }

}  // namespace sluice::kernels::cuda
