#include "kernels/cpu/attention_kernels.h"

namespace sluice::kernels::cpu {

const AttentionKernels kAttentionAvx512 = {avx512::Attend, avx512::AttendSplit, avx512::Merge,
                                           avx512::QuantizeRow};

}  // namespace sluice::kernels::cpu
