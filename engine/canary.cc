#include "engine/canary.h"

#include <string>

#include "engine/base/status.h"

namespace sluice::engine {

std::vector<TokenId> CanaryTokens(int32_t vocab_size, int count) {
  std::vector<TokenId> tokens;
  uint64_t state = 0x9E3779B97F4A7C15;
  for (int i = 0; i < count; ++i) {
    state = state * 6364136223846793005 + 1442695040888963407;
    tokens.push_back(static_cast<TokenId>((state >> 33) % static_cast<uint64_t>(vocab_size)));
  }
  return tokens;
}

absl::Status ForwardProbe::Append(std::span<const TokenId> tokens, bool all_logits) {
  const auto count = static_cast<int32_t>(tokens.size());
  const int32_t num_pages =
      (next_position_ + count + kernels::kPageTokens - 1) / kernels::kPageTokens;
  if (num_pages >= runner_.kv().num_pages()) {
    return InvalidArgument(std::to_string(next_position_ + count) + " positions need " +
                           std::to_string(num_pages) + " pages, the pool has " +
                           std::to_string(runner_.kv().num_pages() - 1));
  }
  std::vector<int32_t> positions, pages, logit_tokens;
  for (int32_t i = 0; i < count; ++i) {
    positions.push_back(next_position_ + i);
    if (all_logits || i + 1 == count) logit_tokens.push_back(i);
  }
  for (int32_t page = 1; page <= num_pages; ++page) pages.push_back(page);
  const int32_t row_begins[2] = {0, count};
  const int32_t page_begins[2] = {0, num_pages};
  const int32_t adapter = 0;
  next_position_ += count;
  RETURN_IF_ERROR(runner_.Forward({.num_tokens = count,
                                   .num_rows = 1,
                                   .num_logit_rows = static_cast<int64_t>(logit_tokens.size()),
                                   .tokens = tokens.data(),
                                   .positions = positions.data(),
                                   .row_begins = row_begins,
                                   .page_begins = page_begins,
                                   .pages = pages.data(),
                                   .logit_tokens = logit_tokens.data(),
                                   .adapters = &adapter,
                                   .previous_tokens = nullptr,
                                   .num_previous = 0}));
  return runner_.FetchLogits();
}

}  // namespace sluice::engine
