#pragma once

#include <cstdint>

namespace sluice::engine {

// Arithmetic on numbers that a file claims: a sum or product that does not fit in 64 bits makes the
// value, and everything computed from it, invalid instead of wrapping. Value.
class CheckedU64 {
 public:
  constexpr CheckedU64(uint64_t value) : value_(value) {}  // NOLINT: numbers mix freely

  constexpr bool valid() const { return valid_; }
  // Meaningful only when valid.
  constexpr uint64_t value() const { return value_; }
  constexpr bool AtMost(uint64_t limit) const { return valid_ && value_ <= limit; }

  friend constexpr CheckedU64 operator+(CheckedU64 a, CheckedU64 b) {
    CheckedU64 out(0);
    out.valid_ = !__builtin_add_overflow(a.value_, b.value_, &out.value_) && a.valid_ && b.valid_;
    return out;
  }
  friend constexpr CheckedU64 operator*(CheckedU64 a, CheckedU64 b) {
    CheckedU64 out(0);
    out.valid_ = !__builtin_mul_overflow(a.value_, b.value_, &out.value_) && a.valid_ && b.valid_;
    return out;
  }
  // The next multiple of `unit`, which is a power of two.
  constexpr CheckedU64 RoundedUp(uint64_t unit) const {
    CheckedU64 out = *this + (unit - 1);
    out.value_ &= ~(unit - 1);
    return out;
  }

 private:
  uint64_t value_;
  bool valid_ = true;
};

}  // namespace sluice::engine
