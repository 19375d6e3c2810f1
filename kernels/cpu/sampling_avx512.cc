#include "kernels/cpu/sampling_kernels.h"

namespace sluice::kernels::cpu {

const SamplingKernels kSamplingAvx512 = {avx512::Scan, avx512::SumBlocks, avx512::BlockWeights};

}  // namespace sluice::kernels::cpu
