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

// Thirty-two quants of kBits bits (32 bytes) -> the words of one row of a panel, kPanelStride bytes
// from word to word.
inline constexpr int kPanelStride = 64;

template <int kBits>
inline void PutWords(const uint8_t* quants, uint8_t* words) {
  uint16_t halves[kBits][2];
  for (int j = 0; j < 2; ++j) {
    const uint8_t* q = quants + j;  // pair p: q[2 p]
    if constexpr (kBits == 2) {
      for (int v = 0; v < 2; ++v) {
        unsigned word = 0;
        for (int i = 0; i < 8; ++i) word |= unsigned{q[2 * (8 * v + i)]} << (2 * i);
        halves[v][j] = static_cast<uint16_t>(word);
      }
    } else if constexpr (kBits == 6) {
      for (int v = 0; v < 6; v += 3, q += 16) {
        const unsigned six = q[12], seven = q[14];
        const unsigned spare[3] = {six & 15, seven & 15, six >> 4 | seven >> 4 << 2};
        for (int i = 0; i < 3; ++i) {
          const unsigned word = unsigned{q[4 * i]} << 4 | unsigned{q[4 * i + 2]} << 10 | spare[i];
          halves[v + i][j] = static_cast<uint16_t>(word);
        }
      }
    } else {
      constexpr int kPairs = PairsAWord(kBits);
      for (int v = 0; v < kBits; ++v) {
        unsigned word = kBits == 4 ? 0 : unsigned{q[30]} >> (kBits - 1 - v) & 1;
        for (int i = 0; i < kPairs; ++i) {
          word |= unsigned{q[2 * (kPairs * v + i)]} << (FirstBit(kBits) + kBits * i);
        }
        halves[v][j] = static_cast<uint16_t>(word);
      }
    }
  }
  for (int v = 0; v < kBits; ++v) std::memcpy(words + v * kPanelStride, halves[v], 4);
}

// The way back.
template <int kBits>
inline void TakeWords(const uint8_t* words, uint8_t* quants) {
  constexpr unsigned kMask = (1u << kBits) - 1;
  uint16_t halves[kBits][2];
  for (int v = 0; v < kBits; ++v) std::memcpy(halves[v], words + v * kPanelStride, 4);
  for (int j = 0; j < 2; ++j) {
    uint8_t* q = quants + j;
    if constexpr (kBits == 2) {
      for (int p = 0; p < 16; ++p) {
        q[2 * p] = static_cast<uint8_t>(halves[p / 8][j] >> (2 * (p % 8)) & kMask);
      }
    } else if constexpr (kBits == 6) {
      for (int v = 0; v < 6; v += 3, q += 16) {
        const unsigned w[3] = {halves[v][j], halves[v + 1][j], halves[v + 2][j]};
        for (int i = 0; i < 3; ++i) {
          q[4 * i] = static_cast<uint8_t>(w[i] >> 4 & kMask);
          q[4 * i + 2] = static_cast<uint8_t>(w[i] >> 10);
        }
        q[12] = static_cast<uint8_t>((w[0] & 15) | (w[2] & 3) << 4);
        q[14] = static_cast<uint8_t>((w[1] & 15) | (w[2] >> 2 & 3) << 4);
      }
    } else {
      constexpr int kPairs = PairsAWord(kBits);
      unsigned last = 0;
      for (int v = 0; v < kBits; ++v) {
        const unsigned word = halves[v][j];
        for (int i = 0; i < kPairs; ++i) {
          q[2 * (kPairs * v + i)] =
              static_cast<uint8_t>(word >> (FirstBit(kBits) + kBits * i) & kMask);
        }
        last = last << 1 | (word & 1);
      }
      if constexpr (kBits != 4) q[30] = static_cast<uint8_t>(last);
    }
  }
}

}  // namespace sluice::kernels::cpu
