#include "kernels/cpu/sampling_kernels.h"

namespace sluice::kernels::cpu {

const SamplingKernels kSamplingAvx2 = {avx2::Scan, avx2::SumBlocks, avx2::BlockWeights};

}  // namespace sluice::kernels::cpu
