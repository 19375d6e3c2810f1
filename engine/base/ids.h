#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace sluice::engine {

// An integer that cannot be mistaken for another kind of id.
template <typename Tag, typename Rep>
struct StrongId {
  Rep value{};
  friend constexpr auto operator<=>(const StrongId&, const StrongId&) = default;
};

using TokenId = int32_t;  // index into the vocabulary, as the tokenizer and the model count it

// A page of the KV pool. Page 0 is scratch: never handed out.
using PageId = StrongId<struct PageIdTag, int32_t>;
// A sampler slot, in [0, max_batch).
using SlotId = StrongId<struct SlotIdTag, int32_t>;
// One Generate request inside this process. Never reused, so a late event for an ended request
// finds nothing.
using RequestHandle = StrongId<struct RequestHandleTag, uint64_t>;
// One sequence of an engine's scheduler (a request has `n` of them). Never reused.
using SequenceId = StrongId<struct SequenceIdTag, uint64_t>;

}  // namespace sluice::engine

template <typename Tag, typename Rep>
struct std::hash<sluice::engine::StrongId<Tag, Rep>> {
  size_t operator()(const sluice::engine::StrongId<Tag, Rep>& id) const {
    return std::hash<Rep>{}(id.value);
  }
};
