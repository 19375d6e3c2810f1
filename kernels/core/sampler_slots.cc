#include "kernels/core/sampler_slots.h"

#include <string>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/core/sampling_math.h"

namespace sluice::kernels {

bool SamplerSlot::greedy() const { return params_.temperature < kGreedyTemperature; }

void SamplerSlot::Reset(const SamplerParams& params, std::span<const int32_t> prompt,
                        std::span<const int32_t> output, int64_t vocab_size) {
  params_ = params;
  vocab_size_ = vocab_size;
  // Ids that name no token cannot be drawn: forbidding or favouring them changes nothing.
  std::erase_if(params_.bias,
                [&](const TokenBias& b) { return b.token < 0 || b.token >= vocab_size; });
  std::erase_if(params_.banned_until_min,
                [&](int32_t token) { return token < 0 || token >= vocab_size; });
  num_output_ = static_cast<int32_t>(output.size());
  penalized_ = params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
               params.frequency_penalty != 0.0f;
  window_.clear();
  counts_.clear();
  count_index_.clear();
  if (!penalized_) return;
  const size_t total = prompt.size() + output.size();
  const size_t window =
      params.penalty_last_n > 0 ? static_cast<size_t>(params.penalty_last_n) : total;
  const size_t first = total > window ? total - window : 0;
  for (size_t i = first; i < total; ++i) {
    const bool is_output = i >= prompt.size();
    Push(is_output ? output[i - prompt.size()] : prompt[i], is_output);
  }
}

void SamplerSlot::Advance(int32_t token) {
  ++num_output_;
  if (penalized_) Push(token, /*output=*/true);
}

void SamplerSlot::Push(int32_t token, bool output) {
  Count({token, output}, 1);
  if (params_.penalty_last_n <= 0) return;
  window_.push_back({token, output});
  if (window_.size() > static_cast<size_t>(params_.penalty_last_n)) {
    Count(window_.front(), -1);
    window_.pop_front();
  }
}

void SamplerSlot::Count(const Entry& entry, int32_t change) {
  SLUICE_KERNEL_CHECK(entry.token >= 0 && entry.token < vocab_size_,
                      "tokens of a sequence lie in the vocabulary");
  const auto [found, inserted] = count_index_.try_emplace(entry.token, counts_.size());
  const size_t index = found->second;
  if (inserted) counts_.push_back({entry.token, 0, 0});
  TokenCount& count = counts_[index];
  count.seen += change;
  if (entry.output) count.output += change;
  if (count.seen > 0) return;
  count_index_.erase(found);
  if (index + 1 < counts_.size()) {
    count = counts_.back();
    count_index_[count.token] = index;
  }
  counts_.pop_back();
}

}  // namespace sluice::kernels
