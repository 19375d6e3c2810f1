#include "kernels/cpu/attention_kernels.h"

namespace sluice::kernels::cpu {

const AttentionKernels kAttentionAvx2 = {avx2::Attend, avx2::AttendSplit, avx2::Merge,
                                         avx2::QuantizeRow};

}  // namespace sluice::kernels::cpu
