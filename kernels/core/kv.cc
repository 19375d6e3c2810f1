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

absl::Status CopyPages(Exec& exec, std::span<const KvLayer> layers, std::span<const int32_t> from,
                       std::span<const int32_t> to) {
  if (exec.backend() == Backend::kCuda) {
    return absl::UnimplementedError("CopyPages: not on backend cuda yet");
  }
  if (from.size() != to.size()) {
    return absl::InvalidArgumentError("CopyPages: expected as many target pages as source pages (" +
                                      std::to_string(from.size()) + "), got " +
                                      std::to_string(to.size()));
  }
  for (const KvLayer& layer : layers) {
    for (size_t i = 0; i < from.size(); ++i) {
      for (const int32_t page : {from[i], to[i]}) {
        if (page < 0 || page >= layer.num_pages) {
          return absl::InvalidArgumentError("CopyPages: expected a page in [0, " +
                                            std::to_string(layer.num_pages) + "), got " +
                                            std::to_string(page));
        }
      }
    }
  }
  for (const KvLayer& layer : layers) {
    const size_t bytes =
        static_cast<size_t>(KvPageBytes(layer.type, layer.num_kv_heads, layer.head_size) / 2);
    for (size_t i = 0; i < from.size(); ++i) {
      if (from[i] == to[i]) continue;
      const size_t source = static_cast<size_t>(from[i]) * bytes;
      const size_t target = static_cast<size_t>(to[i]) * bytes;
      std::memcpy(layer.k + target, layer.k + source, bytes);
      std::memcpy(layer.v + target, layer.v + source, bytes);
    }
  }
  return absl::OkStatus();
}

}  // namespace sluice::kernels
