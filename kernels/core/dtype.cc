#include "kernels/core/dtype.h"

#include <array>

namespace sluice::kernels {
namespace {

constexpr std::array<DTypeTraits, 14> kTraits = {{
    {DType::kF32, "F32", 0, 1, 4, false},
    {DType::kF16, "F16", 1, 1, 2, false},
    {DType::kBF16, "BF16", 30, 1, 2, false},
    {DType::kQ4_0, "Q4_0", 2, 32, 18, true},
    {DType::kQ4_1, "Q4_1", 3, 32, 20, true},
    {DType::kQ5_0, "Q5_0", 6, 32, 22, true},
    {DType::kQ5_1, "Q5_1", 7, 32, 24, true},
    {DType::kQ8_0, "Q8_0", 8, 32, 34, true},
    {DType::kQ2_K, "Q2_K", 10, 256, 84, true},
    {DType::kQ3_K, "Q3_K", 11, 256, 110, true},
    {DType::kQ4_K, "Q4_K", 12, 256, 144, true},
    {DType::kQ5_K, "Q5_K", 13, 256, 176, true},
    {DType::kQ6_K, "Q6_K", 14, 256, 210, true},
    {DType::kIQ4_NL, "IQ4_NL", 20, 32, 18, true},
}};

}  // namespace

const DTypeTraits& Traits(DType type) { return kTraits[static_cast<size_t>(type)]; }

std::optional<DType> DTypeFromGgml(uint32_t ggml_type) {
  for (const DTypeTraits& traits : kTraits) {
    if (traits.ggml_type == ggml_type) return traits.type;
  }
  return std::nullopt;
}

int64_t RowBytes(DType type, int64_t values) {
  const DTypeTraits& traits = Traits(type);
  return values / traits.block_values * traits.block_bytes;
}

}  // namespace sluice::kernels
