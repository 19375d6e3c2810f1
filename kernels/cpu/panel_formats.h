#pragma once

// How the panels of the quantised types (kernels/cpu/pack.h) are taken apart, sixteen rows at a
// time. A format says
//
//   kColumns     columns of a block, 32 or 256; the head of a block, kHeadBytes, comes before the
//   kChunkBytes  quants of every 32 columns
//   kSubPairs    pairs of columns of a sub-block, 16 or 8: those that share a scale
//   Scales       what the integer sums of the block's sub-blocks are multiplied with and, where
//                kHasMinimum, what the sums of activations are
//   ForPairs     calls use(pair, i16 pairs of sixteen rows) for the sixteen pairs of a chunk,
//                ascending
//
// Unpacking costs two instructions a pair and less (three for IQ4_NL), once a tile of tokens.

#include <cstdint>
#include <utility>

#include "kernels/cpu/pack.h"
#include "kernels/cpu/vec16.h"

namespace sluice::kernels::cpu::SLUICE_ISA {

// Scales and minima of a block's sub-blocks.
template <typename Format>
struct ScalesOf {
  static constexpr int kSubBlocks = Format::kColumns / 2 / Format::kSubPairs;
  F32x16 scale[kSubBlocks];
  F32x16 minimum[Format::kHasMinimum ? kSubBlocks : 1];
};

// ---------------------------------------------------------------- quants (pack_words.h)

// kBits bits from bit kFirst on of every i16.
template <int kFirst, int kBits, bool kSigned>
inline I32x16 Field(I32x16 words) {
  if constexpr (kSigned && kFirst + kBits == 16) {
    return ShiftRightSignedI16<kFirst>(words);
  } else if constexpr (kSigned) {
    return ShiftRightSignedI16<16 - kBits>(ShiftLeftI16<16 - kBits - kFirst>(words));
  } else if constexpr (kFirst + kBits == 16) {
    return ShiftRightI16<kFirst>(words);
  } else if constexpr (kFirst == 0) {
    return And(words, Set1I16((1 << kBits) - 1));
  } else {
    return And(ShiftRightI16<kFirst>(words), Set1I16((1 << kBits) - 1));
  }
}

template <int kBits, bool kSigned>
struct WordPairs;

template <bool kSigned>
struct WordPairs<2, kSigned> {
  template <typename Use>
  [[gnu::always_inline]] static void ForPairs(const uint8_t* words, const Use& use) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const I32x16 word = LoadI(words + 64 * v);
      use(8 * v, Field<0, 2, kSigned>(word));
      use(8 * v + 1, Field<2, 2, kSigned>(word));
      use(8 * v + 2, Field<4, 2, kSigned>(word));
      use(8 * v + 3, Field<6, 2, kSigned>(word));
      use(8 * v + 4, Field<8, 2, kSigned>(word));
      use(8 * v + 5, Field<10, 2, kSigned>(word));
      use(8 * v + 6, Field<12, 2, kSigned>(word));
      use(8 * v + 7, Field<14, 2, kSigned>(word));
    }
  }
};

template <bool kSigned>
struct WordPairs<3, kSigned> {
  template <typename Use>
  [[gnu::always_inline]] static void ForPairs(const uint8_t* words, const Use& use) {
    const I32x16 one = Set1I16(1);
    I32x16 last = ZeroI();
#pragma GCC unroll 3
    for (int v = 0; v < 3; ++v) {
      const I32x16 word = LoadI(words + 64 * v);
      use(5 * v, Field<1, 3, kSigned>(word));
      use(5 * v + 1, Field<4, 3, kSigned>(word));
      use(5 * v + 2, Field<7, 3, kSigned>(word));
      use(5 * v + 3, Field<10, 3, kSigned>(word));
      use(5 * v + 4, Field<13, 3, kSigned>(word));
      last = OrMasked(AddI16(last, last), word, one);
    }
    use(15, kSigned ? Field<0, 3, kSigned>(last) : last);
  }
};

template <bool kSigned>
struct WordPairs<4, kSigned> {
  template <typename Use>
  [[gnu::always_inline]] static void ForPairs(const uint8_t* words, const Use& use) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const I32x16 word = LoadI(words + 64 * v);
      use(4 * v, Field<0, 4, kSigned>(word));
      use(4 * v + 1, Field<4, 4, kSigned>(word));
      use(4 * v + 2, Field<8, 4, kSigned>(word));
      use(4 * v + 3, Field<12, 4, kSigned>(word));
    }
  }
};

template <bool kSigned>
struct WordPairs<5, kSigned> {
  template <typename Use>
  [[gnu::always_inline]] static void ForPairs(const uint8_t* words, const Use& use) {
    const I32x16 one = Set1I16(1);
    I32x16 last = ZeroI();
#pragma GCC unroll 5
    for (int v = 0; v < 5; ++v) {
      const I32x16 word = LoadI(words + 64 * v);
      use(3 * v, Field<1, 5, kSigned>(word));
      use(3 * v + 1, Field<6, 5, kSigned>(word));
      use(3 * v + 2, Field<11, 5, kSigned>(word));
      last = OrMasked(AddI16(last, last), word, one);
    }
    use(15, kSigned ? Field<0, 5, kSigned>(last) : last);
  }
};

template <>
struct WordPairs<6, true> {
  template <typename Use>
  [[gnu::always_inline]] static void ForPairs(const uint8_t* words, const Use& use) {
    const I32x16 high = Set1I16(static_cast<int16_t>(0xc000));
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const I32x16 a = LoadI(words + 192 * v);
      const I32x16 b = LoadI(words + 192 * v + 64);
      const I32x16 c = LoadI(words + 192 * v + 128);
      use(8 * v, Field<4, 6, true>(a));
      use(8 * v + 1, Field<10, 6, true>(a));
      use(8 * v + 2, Field<4, 6, true>(b));
      use(8 * v + 3, Field<10, 6, true>(b));
      use(8 * v + 4, Field<4, 6, true>(c));
      use(8 * v + 5, Field<10, 6, true>(c));
      // Nibbles below the two high bits that c has at its foot.
      const I32x16 six = SelectBits(high, ShiftLeftI16<14>(c), ShiftLeftI16<10>(a));
      const I32x16 seven = SelectBits(high, ShiftLeftI16<12>(c), ShiftLeftI16<10>(b));
      use(8 * v + 6, ShiftRightSignedI16<10>(six));
      use(8 * v + 7, ShiftRightSignedI16<10>(seven));
    }
  }
};

// ---------------------------------------------------------------- blocks of 32 columns

template <int kBits, bool kSigned, int kHalves>
struct BlockFormat : WordPairs<kBits, kSigned> {
  static constexpr int kColumns = 32;
  static constexpr int kSubPairs = 16;
  static constexpr bool kHasMinimum = kHalves == 2;
  static constexpr int kHeadBytes = 32 * kHalves;
  static constexpr int kChunkBytes = 64 * kBits;
  static constexpr int kBlockBytes = kHeadBytes + kChunkBytes;
  [[gnu::always_inline]] static void Scales(const uint8_t* block, F32x16* scale, F32x16* minimum) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(block);
    scale[0] = LoadF16(halves);
    if constexpr (kHasMinimum) minimum[0] = LoadF16(halves + 16);
  }
};

struct FormatQ4_0 : BlockFormat<4, true, 1> {};
struct FormatQ4_1 : BlockFormat<4, false, 2> {};
struct FormatQ5_0 : BlockFormat<5, true, 1> {};
struct FormatQ5_1 : BlockFormat<5, false, 2> {};

template <>
struct WordPairs<8, true> {};  // no words: bytes

struct FormatQ8_0 : BlockFormat<8, true, 1> {
  template <typename Use>
  [[gnu::always_inline]] static void ForPairs(const uint8_t* quants, const Use& use) {
    const int8_t* pairs = reinterpret_cast<const int8_t*>(quants);
#pragma GCC unroll 16
    for (int pair = 0; pair < 16; ++pair) use(pair, LoadI8AsI16(pairs + 32 * pair));
  }
};
struct FormatIQ4_NL : BlockFormat<4, false, 1> {
  template <typename Use>
  [[gnu::always_inline]] static void ForPairs(const uint8_t* words, const Use& use) {
    const I32x16 table = LoadTable(kIq4NlLevels);
    const I32x16 nibbles = Set1I16(0x0f0f);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      // Bytes of levels: of pairs 0 and 2 in one, 1 and 3 in the other.
      const I32x16 word = LoadI(words + 64 * v);
      const I32x16 even = LookUpI8(table, And(word, nibbles));
      const I32x16 odd = LookUpI8(table, And(ShiftRightI16<4>(word), nibbles));
      use(4 * v, Field<0, 8, true>(even));
      use(4 * v + 1, Field<0, 8, true>(odd));
      use(4 * v + 2, Field<8, 8, true>(even));
      use(4 * v + 3, Field<8, 8, true>(odd));
    }
  }
};

// ---------------------------------------------------------------- blocks of 256 columns

// Number kIndex of sixteen with six bits in three words a row.
template <int kIndex>
inline I32x16 Six(const I32x16 (&words)[3]) {
  const I32x16 mask = Set1I32(63);
  if constexpr (kIndex < 15) {
    return And(ShiftRightI32<6 * (kIndex % 5)>(words[kIndex / 5]), mask);
  } else {
    const I32x16 two = ShiftRightI32<30>(words[0]);
    const I32x16 four = OrMasked(two, ShiftRightI32<28>(words[1]), Set1I32(12));
    return OrMasked(four, ShiftRightI32<26>(words[2]), Set1I32(48));
  }
}

// Calls fn(index, number) for the sixteen numbers of six bits at `p`.
template <typename Fn>
[[gnu::always_inline]] inline void ForSixes(const uint8_t* p, const Fn& fn) {
  const I32x16 words[3] = {LoadI(p), LoadI(p + 64), LoadI(p + 128)};
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) __attribute__((always_inline)) {
    (fn(kIndex, Six<kIndex>(words)), ...);
  }
  (std::make_integer_sequence<int, 16>());
}

template <int kBits, bool kSigned, int kHeadBytesValue, int kSubPairsValue, bool kHasMinimumValue>
struct KBlockFormat : WordPairs<kBits, kSigned> {
  static constexpr int kColumns = 256;
  static constexpr int kSubPairs = kSubPairsValue;
  static constexpr bool kHasMinimum = kHasMinimumValue;
  static constexpr int kHeadBytes = kHeadBytesValue;
  static constexpr int kChunkBytes = 64 * kBits;
  static constexpr int kBlockBytes = kHeadBytes + 8 * kChunkBytes;
};

// f16 d[16], f16 dmin[16], six-bit scales and minima: d * scale, and -dmin * minimum, which is
// added.
template <int kBits>
struct SixBitFormat : KBlockFormat<kBits, false, 256, 16, true> {
  [[gnu::always_inline]] static void Scales(const uint8_t* block, F32x16* scale, F32x16* minimum) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(block);
    const F32x16 d = LoadF16(halves);
    const F32x16 minus_dmin = Sub(Zero(), LoadF16(halves + 16));
    ForSixes(
        block + 64, [&](int i, I32x16 six) __attribute__((always_inline)) {
          if (i < 8) {
            scale[i] = Mul(d, ToF32(six));
          } else {
            minimum[i - 8] = Mul(minus_dmin, ToF32(six));
          }
        });
  }
};
struct FormatQ4_K : SixBitFormat<4> {};
struct FormatQ5_K : SixBitFormat<5> {};

struct FormatQ2_K : KBlockFormat<2, false, 320, 8, true> {
  [[gnu::always_inline]] static void Scales(const uint8_t* block, F32x16* scale, F32x16* minimum) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(block);
    const F32x16 d = LoadF16(halves);
    const F32x16 minus_dmin = Sub(Zero(), LoadF16(halves + 16));
    const I32x16 mask = Set1I32(15);
#pragma GCC unroll 16
    for (int sub = 0; sub < 16; ++sub) {
      const I32x16 both = LoadU8AsI32(block + 64 + 16 * sub);
      scale[sub] = Mul(d, ToF32(And(both, mask)));
      minimum[sub] = Mul(minus_dmin, ToF32(ShiftRightI32<4>(both)));
    }
  }
};

struct FormatQ3_K : KBlockFormat<3, true, 224, 8, false> {
  [[gnu::always_inline]] static void Scales(const uint8_t* block, F32x16* scale, F32x16*) {
    const F32x16 d = LoadF16(reinterpret_cast<const uint16_t*>(block));
    const I32x16 offset = Set1I32(32);
    ForSixes(
        block + 32, [&](int sub, I32x16 six) __attribute__((always_inline)) {
          scale[sub] = Mul(d, ToF32(SubI32(six, offset)));
        });
  }
};

struct FormatQ6_K : KBlockFormat<6, true, 288, 8, false> {
  [[gnu::always_inline]] static void Scales(const uint8_t* block, F32x16* scale, F32x16*) {
    const F32x16 d = LoadF16(reinterpret_cast<const uint16_t*>(block));
#pragma GCC unroll 16
    for (int sub = 0; sub < 16; ++sub) {
      scale[sub] = Mul(d, ToF32(LoadI8AsI32(block + 32 + 16 * sub)));
    }
  }
};

}  // namespace sluice::kernels::cpu::SLUICE_ISA
