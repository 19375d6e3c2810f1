#include "kernels/cpu/activation_kernels.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/panel_kernels.h"
#include "kernels/cpu/row_kernels.h"

namespace sluice::kernels::cpu {

const LinearKernels kLinearAvx512 = {avx512::Product,     avx512::RmsNorm, avx512::LayerNorm,
                                     avx512::QuantizeRow, avx512::GateUp,  avx512::Activate,
                                     avx512::Rotate,      avx512::AddRow,  avx512::ScaleRow,
                                     avx512::SoftcapRow,  avx512::ToF16};

}  // namespace sluice::kernels::cpu
