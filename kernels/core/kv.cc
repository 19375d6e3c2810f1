#include <cstring>
#include <string>

#include "kernels/core/half.h"
#include "kernels/ops.h"

namespace sluice::kernels {

int64_t KvPageBytes(DType type, int64_t num_kv_heads, int64_t head_size) {
  return 2 * kPageTokens * num_kv_heads * head_size * RowBytes(type, 1);
}

void ReadKv(const KvLayer& layer, std::span<const int32_t> pages,
            std::span<const int32_t> positions, bool value, float* out) {
  const std::byte* array = value ? layer.v : layer.k;
  const int64_t head_size = layer.head_size;
  for (const int32_t position : positions) {
    const int64_t page = pages[static_cast<size_t>(position / kPageTokens)];
    const int64_t slot = position % kPageTokens;
    for (int64_t g = 0; g < layer.num_kv_heads; ++g) {
      const int64_t begin = (page * layer.num_kv_heads + g) * head_size * kPageTokens;
      for (int64_t d = 0; d < head_size; ++d) {
        // K pages are [D, 16], V pages [16, D].
        const int64_t at = begin + (value ? slot * head_size + d : d * kPageTokens + slot);
        if (layer.type == DType::kF32) {
          *out++ = reinterpret_cast<const float*>(array)[at];
          continue;
        }
        const uint16_t bits = reinterpret_cast<const uint16_t*>(array)[at];
        *out++ = layer.type == DType::kBF16 ? BFloat16ToFloat(bits) : HalfToFloat(bits);
      }
    }
  }
}

}  // namespace sluice::kernels
