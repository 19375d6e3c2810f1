#include "kernels/core/philox.h"

#include <cstdint>
#include <set>

#include "gtest/gtest.h"

namespace sluice::kernels {
namespace {

// The known answers for philox4x32 with 10 rounds that the authors publish with Random123
// (kat_vectors): zeros, ones, and digits of pi.
TEST(PhiloxTest, GivesThePublishedAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, EveryPartOfTheKeyChangesTheBits) {
  constexpr uint64_t kMax = ~uint64_t{0};
  const std::set<uint64_t> bits = {
      SampleBits(0, 0, 0, 0),
      SampleBits(1, 0, 0, 0),
      SampleBits(uint64_t{1} << 32, 0, 0, 0),
      SampleBits(kMax, 0, 0, 0),
      SampleBits(0, 1, 0, 0),
      SampleBits(0, 0, 1, 0),
      SampleBits(0, 0, 0, 1),
      SampleBits(0, 0, 0x7fffffff, 0),
      SampleBits(0, 0xffffffff, 0, 0),
  };
  EXPECT_EQ(bits.size(), 9u);
  // Zeros give the first two words of the first known answer.
  EXPECT_EQ(SampleBits(0, 0, 0, 0), 0xe169c58d6627e8d5u);
}

}  // namespace
}  // namespace sluice::kernels
