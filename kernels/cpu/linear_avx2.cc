#include "kernels/cpu/activation_kernels.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/panel_kernels.h"
#include "kernels/cpu/row_kernels.h"

namespace sluice::kernels::cpu {

const LinearKernels kLinearAvx2 = {
    avx2::Product, avx2::RmsNorm, avx2::LayerNorm, avx2::QuantizeRow, avx2::GateUp, avx2::Activate,
    avx2::Rotate,  avx2::AddRow,  avx2::ScaleRow,  avx2::SoftcapRow,  avx2::ToF16};

}  // namespace sluice::kernels::cpu
