#pragma once

// Quants of 2 to 6 bits in words of 16: what the panels (kernels/cpu/pack.h) keep of one row for 32
// columns. Word v has two halves, [v][j] for the columns 2p + j of pairs p = 0 .. 15. A half holds,
// lowest bit first:
//
//   2 bits  two words, pair p in bits 2 (p % 8) of word p / 8
//   3 bits  three words, pair p < 15 in bits 1 + 3 (p % 5) of word p / 5
//   4 bits  four words, pair p in bits 4 (p % 4) of word p / 4
//   5 bits  five words, pair p < 15 in bits 1 + 5 (p % 3) of word p / 3
//   6 bits  three words for eight pairs: pairs 2i and 2i + 1 in bits 4 and 10 of word i = 0 .. 2,
//           the low nibbles of pairs 6 and 7 in bits 0 of words 0 and 1, their high two bits in
//           bits 0 and 2 of word 2
//
// Pair 15 of three and five bits is spread over bit 0 of the words, its highest bit in word 0. No
// bit is spare, and most quants take two shifts (or a shift and a mask) to get out.
//
#include <cstdint>
#include <cstring>

namespace sluice::kernels::cpu {

// Pairs in full fields of one word (three, four and five bits), and the bit of the first.
constexpr int PairsAWord(int bits) { return bits == 4 ? 4 : 15 / bits; }
constexpr int FirstBit(int bits) { return bits == 4 ? 0 : 1; }

// Every number of a pair of columns, low half first.
constexpr uint32_t Both(uint32_t number) { return number | number << 16; }

inline constexpr int kPanelStride = 64;  // bytes of a panel from a row's word to its next

// Thirty-two quants of kBits bits -> the words of one row of a panel, whose first is at `words`.
template <int kBits>
inline void PutWords(const uint8_t* quants, uint8_t* words) {
  uint16_t wide[32];
  for (int i = 0; i < 32; ++i) wide[i] = quants[i];
  uint32_t pairs[16];
  std::memcpy(pairs, wide, sizeof(pairs));
  uint32_t out[kBits];
  if constexpr (kBits == 2) {
    for (int v = 0; v < 2; ++v) {
      out[v] = 0;
      for (int i = 0; i < 8; ++i) out[v] |= pairs[8 * v + i] << (2 * i);
    }
  } else if constexpr (kBits == 6) {
    for (int v = 0; v < 2; ++v) {
      const uint32_t* p = pairs + 8 * v;
      const uint32_t high = (p[6] >> 4 & Both(3)) | (p[7] >> 4 & Both(3)) << 2;
      out[3 * v] = p[0] << 4 | p[1] << 10 | (p[6] & Both(15));
      out[3 * v + 1] = p[2] << 4 | p[3] << 10 | (p[7] & Both(15));
      out[3 * v + 2] = p[4] << 4 | p[5] << 10 | high;
    }
  } else {
    constexpr int kPairs = PairsAWord(kBits);
    for (int v = 0; v < kBits; ++v) {
      out[v] = kBits == 4 ? 0 : pairs[15] >> (kBits - 1 - v) & Both(1);
      for (int i = 0; i < kPairs; ++i) {
        out[v] |= pairs[kPairs * v + i] << (FirstBit(kBits) + kBits * i);
      }
    }
  }
  for (int v = 0; v < kBits; ++v) std::memcpy(words + v * kPanelStride, &out[v], 4);
}

// The way back.
template <int kBits>
inline void TakeWords(const uint8_t* words, uint8_t* quants) {
  constexpr uint32_t kMask = Both((1u << kBits) - 1);
  uint32_t in[kBits];
  for (int v = 0; v < kBits; ++v) std::memcpy(&in[v], words + v * kPanelStride, 4);
  uint32_t pairs[16];
  if constexpr (kBits == 2) {
    for (int p = 0; p < 16; ++p) pairs[p] = in[p / 8] >> (2 * (p % 8)) & kMask;
  } else if constexpr (kBits == 6) {
    for (int v = 0; v < 2; ++v) {
      uint32_t* p = pairs + 8 * v;
      const uint32_t* word = in + 3 * v;
      for (int i = 0; i < 3; ++i) {
        p[2 * i] = word[i] >> 4 & kMask;
        p[2 * i + 1] = word[i] >> 10 & kMask;
      }
      p[6] = (word[0] & Both(15)) | (word[2] & Both(3)) << 4;
      p[7] = (word[1] & Both(15)) | (word[2] >> 2 & Both(3)) << 4;
    }
  } else {
    constexpr int kPairs = PairsAWord(kBits);
    uint32_t last = 0;
    for (int v = 0; v < kBits; ++v) {
      for (int i = 0; i < kPairs; ++i) {
        pairs[kPairs * v + i] = in[v] >> (FirstBit(kBits) + kBits * i) & kMask;
      }
      last = last << 1 | (in[v] & Both(1));
    }
    if constexpr (kBits != 4) pairs[15] = last;
  }
  uint16_t wide[32];
  std::memcpy(wide, pairs, sizeof(wide));
  for (int i = 0; i < 32; ++i) quants[i] = static_cast<uint8_t>(wide[i]);
}

}  // namespace sluice::kernels::cpu
