#include "engine/gguf/checked_u64.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace sluice::engine {
namespace {

TEST(CheckedU64Test, SumsAndProductsThatFitAreExact) {
  EXPECT_EQ((CheckedU64(UINT64_MAX - 1) + 1).value(), UINT64_MAX);
  EXPECT_TRUE((CheckedU64(UINT64_MAX - 1) + 1).valid());
  EXPECT_EQ((CheckedU64(uint64_t{1} << 32) * (uint64_t{1} << 31)).value(), uint64_t{1} << 63);
  EXPECT_EQ(CheckedU64(33).RoundedUp(32).value(), 64u);
  EXPECT_EQ(CheckedU64(64).RoundedUp(32).value(), 64u);
}

TEST(CheckedU64Test, WhatWrapsIsInvalidAndStaysSo) {
  const CheckedU64 sum = CheckedU64(UINT64_MAX) + 1;
  EXPECT_FALSE(sum.valid());
  EXPECT_FALSE((sum * 0).valid());
  EXPECT_FALSE((sum + 1).AtMost(UINT64_MAX));
  EXPECT_FALSE((CheckedU64(uint64_t{1} << 32) * (uint64_t{1} << 32)).valid());
  EXPECT_FALSE(CheckedU64(UINT64_MAX - 3).RoundedUp(32).valid());
}

}  // namespace
}  // namespace sluice::engine
