#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/core/half.h"
#include "kernels/ref/ref_ops.h"

namespace sluice::kernels::ref {
namespace {

float KvValue(const KvLayer& kv, const std::byte* array, int64_t index) {
  if (kv.type == DType::kF32) return reinterpret_cast<const float*>(array)[index];
  return HalfToFloat(reinterpret_cast<const uint16_t*>(array)[index]);
}

// One query q [D] of the token at `position` over one KV head; out [D].
void AttendOne(const PagedAttentionArgs& args, const float* q, const KvLayer& kv, int64_t kv_head,
               const int32_t* pages, int64_t position, float* out) {
  const int64_t head_size = kv.head_size;
  const int64_t first = args.window == 0 ? 0 : std::max<int64_t>(0, position - args.window + 1);
  std::vector<double> scores;
  const auto head_begin = [&](int64_t key) {
    return (pages[key / kPageTokens] * kv.num_kv_heads + kv_head) * head_size * kPageTokens;
  };
  for (int64_t key = first; key <= position; ++key) {
    double dot = 0.0;
    for (int64_t d = 0; d < head_size; ++d) {
      const int64_t at = head_begin(key) + d * kPageTokens + key % kPageTokens;
      dot += static_cast<double>(q[d]) * KvValue(kv, kv.k, at);
    }
    scores.push_back(Softcap(args.scale * dot, args.softcap));
  }
  // max_element may step over a NaN, and exp(-infinity) is an innocent 0: adding 0 * score to the
  // total keeps any score that is not finite visible in the outcome.
  const double most = *std::max_element(scores.begin(), scores.end());
  double total = 0.0;
  std::vector<double> sums(static_cast<size_t>(head_size), 0.0);
  for (int64_t key = first; key <= position; ++key) {
    const double score = scores[static_cast<size_t>(key - first)];
    const double weight = std::exp(score - most);
    total += weight + 0.0 * score;
    for (int64_t d = 0; d < head_size; ++d) {
      const int64_t at = head_begin(key) + key % kPageTokens * head_size + d;
      sums[static_cast<size_t>(d)] += weight * KvValue(kv, kv.v, at);
    }
  }
  for (int64_t d = 0; d < head_size; ++d) {
    out[d] = static_cast<float>(sums[static_cast<size_t>(d)] / total);
  }
}

}  // namespace

void PagedAttention(Exec& exec, const PagedAttentionArgs& args, ConstMatrixF32 q,
                    const BatchView& batch, const KvLayer& kv, Activation& out) {
  const int64_t head_size = kv.head_size;
  const int64_t num_heads = q.cols / head_size;
  const int64_t ratio = num_heads / kv.num_kv_heads;
  for (int64_t row = 0; row < batch.num_rows; ++row) {
    const int32_t* pages = batch.pages + batch.page_begins[row];
    for (int64_t t = batch.row_begins[row]; t < batch.row_begins[row + 1]; ++t) {
      for (int64_t h = 0; h < num_heads; ++h) {
        AttendOne(args, q.row(t) + h * head_size, kv, h / ratio, pages, batch.positions[t],
                  out.values + t * out.cols + h * head_size);
      }
    }
  }
}

}  // namespace sluice::kernels::ref
