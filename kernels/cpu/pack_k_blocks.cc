// Panels of the types whose blocks are 256 columns (kernels/cpu/pack.h has the layouts).

#include <cstring>

#include "kernels/core/half.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/pack_types.h"
#include "kernels/cpu/pack_words.h"

namespace sluice::kernels::cpu {
namespace {

constexpr int kBlock = 256;

float Half(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return HalfToFloat(bits);
}

// ---- sixteen numbers of six bits in three words of a row, 64 bytes apart

void PutSixes(const uint8_t* x, uint8_t* words) {
  for (int v = 0; v < 3; ++v) {
    uint32_t word = uint32_t{x[15]} >> (2 * v) << 30;
    for (int i = 0; i < 5; ++i) word |= uint32_t{x[5 * v + i]} << (6 * i);
    std::memcpy(words + 64 * v, &word, sizeof(word));
  }
}

void TakeSixes(const uint8_t* words, uint8_t* x) {
  x[15] = 0;
  for (int v = 0; v < 3; ++v) {
    uint32_t word;
    std::memcpy(&word, words + 64 * v, sizeof(word));
    for (int i = 0; i < 5; ++i) x[5 * v + i] = word >> (6 * i) & 63;
    x[15] |= static_cast<uint8_t>(word >> 30 << (2 * v));
  }
}

// ---- the bits of 256 quants as files have them (restrict: these loops become vector code)

// Two bits each: bytes 0..31 hold columns 0..127, 32 apart; bytes 32..63 the rest.
void TakeTwos(const uint8_t* __restrict from, uint8_t* __restrict quants) {
  for (int i = 0; i < 256; i += 32) {
    const uint8_t* bytes = from + i / 128 * 32;
    const int shift = i % 128 / 32 * 2;
    for (int k = 0; k < 32; ++k) quants[i + k] = bytes[k] >> shift & 3;
  }
}

// 32 bytes hold 64 columns, low nibbles first.
void TakeFours(const uint8_t* __restrict from, uint8_t* __restrict quants) {
  for (int i = 0; i < 256; i += 64, from += 32) {
    for (int k = 0; k < 32; ++k) quants[i + k] = from[k] & 15;
    for (int k = 0; k < 32; ++k) quants[i + 32 + k] = from[k] >> 4;
  }
}

// One bit each, bit i / 32 of byte i % 32, to be bit kTo of the quants.
template <int kTo>
void AddOnes(const uint8_t* __restrict from, uint8_t* __restrict quants) {
  for (int i = 0; i < 256; i += 32) {
    for (int k = 0; k < 32; ++k) {
      quants[i + k] |= static_cast<uint8_t>((from[k] >> (i / 32) & 1) << kTo);
    }
  }
}

// ---- the types
//
// kHeadBytes of a panel's block come before the words. PutHead writes a row's part of them;
// TakeHead gives what each of kSubBlocks sub-blocks is multiplied with, and what is subtracted.

struct Scales {
  float scale[16];
  float minimum[16] = {};
};

// f16 d, f16 dmin, six-bit scales and minima of eight sub-blocks in 12 bytes.
struct SixBitHead {
  static constexpr int kSubBlocks = 8;
  static constexpr bool kHasMinimum = true;
  static constexpr int kHeadBytes = 64 + 192;
  static void PutHead(const uint8_t* stored, int64_t row, uint8_t* block) {
    std::memcpy(block + 2 * row, stored, 2);
    std::memcpy(block + 32 + 2 * row, stored + 2, 2);
    const uint8_t* packed = stored + 4;
    uint8_t sixes[16];
    for (int sub = 0; sub < 4; ++sub) {
      sixes[sub] = packed[sub] & 63;
      sixes[8 + sub] = packed[sub + 4] & 63;
      sixes[4 + sub] = static_cast<uint8_t>((packed[sub + 8] & 15) | packed[sub] >> 6 << 4);
      sixes[12 + sub] = static_cast<uint8_t>(packed[sub + 8] >> 4 | packed[sub + 4] >> 6 << 4);
    }
    PutSixes(sixes, block + 64 + 4 * row);
  }
  static void TakeHead(const uint8_t* block, int64_t row, Scales* scales) {
    const float d = Half(block + 2 * row);
    const float dmin = Half(block + 32 + 2 * row);
    uint8_t sixes[16];
    TakeSixes(block + 64 + 4 * row, sixes);
    for (int sub = 0; sub < 8; ++sub) {
      scales->scale[sub] = d * static_cast<float>(sixes[sub]);
      scales->minimum[sub] = dmin * static_cast<float>(sixes[8 + sub]);
    }
  }
};

struct BlockQ4_K : SixBitHead {
  static constexpr int kBits = 4;
  static constexpr int kStoredBytes = 144;
  static constexpr uint8_t kFlip = 0;
  static void Take(const uint8_t* stored, uint8_t* quants) { TakeFours(stored + 16, quants); }
};

struct BlockQ5_K : SixBitHead {
  static constexpr int kBits = 5;
  static constexpr int kStoredBytes = 176;
  static constexpr uint8_t kFlip = 0;
  static void Take(const uint8_t* stored, uint8_t* quants) {
    TakeFours(stored + 48, quants);
    AddOnes<4>(stored + 16, quants);
  }
};

// u8 scale | minimum << 4 of sixteen sub-blocks, u8 quants[64], f16 d, f16 dmin.
struct BlockQ2_K {
  static constexpr int kBits = 2;
  static constexpr int kStoredBytes = 84;
  static constexpr uint8_t kFlip = 0;
  static constexpr int kSubBlocks = 16;
  static constexpr bool kHasMinimum = true;
  static constexpr int kHeadBytes = 64 + 256;
  static void Take(const uint8_t* stored, uint8_t* quants) { TakeTwos(stored + 16, quants); }
  static void PutHead(const uint8_t* stored, int64_t row, uint8_t* block) {
    std::memcpy(block + 2 * row, stored + 80, 2);
    std::memcpy(block + 32 + 2 * row, stored + 82, 2);
    for (int sub = 0; sub < 16; ++sub) block[64 + 16 * sub + row] = stored[sub];
  }
  static void TakeHead(const uint8_t* block, int64_t row, Scales* scales) {
    const float d = Half(block + 2 * row);
    const float dmin = Half(block + 32 + 2 * row);
    for (int sub = 0; sub < 16; ++sub) {
      const uint8_t both = block[64 + 16 * sub + row];
      scales->scale[sub] = d * static_cast<float>(both & 15);
      scales->minimum[sub] = dmin * static_cast<float>(both >> 4);
    }
  }
};

// u8 high_bits[32], u8 quants[64], six-bit scales of sixteen sub-blocks in 12 bytes, f16 d.
struct BlockQ3_K {
  static constexpr int kBits = 3;
  static constexpr int kStoredBytes = 110;
  static constexpr uint8_t kFlip = 4;
  static constexpr int kSubBlocks = 16;
  static constexpr bool kHasMinimum = false;
  static constexpr int kHeadBytes = 32 + 192;
  static void Take(const uint8_t* stored, uint8_t* quants) {
    TakeTwos(stored + 32, quants);
    AddOnes<2>(stored, quants);
  }
  static void PutHead(const uint8_t* stored, int64_t row, uint8_t* block) {
    std::memcpy(block + 2 * row, stored + 108, 2);
    const uint8_t* packed = stored + 96;
    uint8_t sixes[16];
    for (int sub = 0; sub < 16; ++sub) {
      const int low = sub < 8 ? packed[sub] & 15 : packed[sub - 8] >> 4;
      const int high = packed[8 + sub % 4] >> (2 * (sub / 4)) & 3;
      sixes[sub] = static_cast<uint8_t>(low | high << 4);
    }
    PutSixes(sixes, block + 32 + 4 * row);
  }
  static void TakeHead(const uint8_t* block, int64_t row, Scales* scales) {
    const float d = Half(block + 2 * row);
    uint8_t sixes[16];
    TakeSixes(block + 32 + 4 * row, sixes);
    for (int sub = 0; sub < 16; ++sub) {
      scales->scale[sub] = d * static_cast<float>(sixes[sub] - 32);
    }
  }
};

// u8 low_bits[128], u8 high_bits[64], i8 scales[16], f16 d.
struct BlockQ6_K {
  static constexpr int kBits = 6;
  static constexpr int kStoredBytes = 210;
  static constexpr uint8_t kFlip = 32;
  static constexpr int kSubBlocks = 16;
  static constexpr bool kHasMinimum = false;
  static constexpr int kHeadBytes = 32 + 256;
  static void Take(const uint8_t* __restrict stored, uint8_t* __restrict quants) {
    for (int half = 0; half < 2; ++half, stored += 64, quants += 128) {
      const uint8_t* high = stored + 128 - 32 * half;
      for (int i = 0; i < 128; i += 32) {
        const uint8_t* low = stored + i % 64;
        for (int k = 0; k < 32; ++k) {
          quants[i + k] = static_cast<uint8_t>((low[k] >> (i / 64 * 4) & 15) |
                                               (high[k] >> (i / 32 * 2) & 3) << 4);
        }
      }
    }
  }
  static void PutHead(const uint8_t* stored, int64_t row, uint8_t* block) {
    std::memcpy(block + 2 * row, stored + 208, 2);
    for (int sub = 0; sub < 16; ++sub) block[32 + 16 * sub + row] = stored[192 + sub];
  }
  static void TakeHead(const uint8_t* block, int64_t row, Scales* scales) {
    const float d = Half(block + 2 * row);
    for (int sub = 0; sub < 16; ++sub) {
      scales->scale[sub] = d * static_cast<float>(static_cast<int8_t>(block[32 + 16 * sub + row]));
    }
  }
};

// ---- all of them

template <typename T>
void PackBlocks(const uint8_t* stored, int64_t row_bytes, int64_t num_rows, int64_t cols,
                uint8_t* panel) {
  static_assert(T::kHeadBytes + 8 * T::kBits * kPanelStride == kPanelRows * T::kStoredBytes);
  for (int64_t block = 0; block < cols / kBlock; ++block) {
    for (int64_t row = 0; row < num_rows; ++row) {
      const uint8_t* from = stored + row * row_bytes + block * T::kStoredBytes;
      T::PutHead(from, row, panel);
      uint8_t quants[kBlock];
      T::Take(from, quants);
      if (T::kFlip != 0) {
        for (uint8_t& quant : quants) quant ^= T::kFlip;
      }
      uint8_t* words = panel + T::kHeadBytes + 4 * row;
      for (int i = 0; i < kBlock; i += 32, words += T::kBits * kPanelStride) {
        PutWords<T::kBits>(quants + i, words);
      }
    }
    panel += kPanelRows * T::kStoredBytes;
  }
}

template <typename T>
void UnpackBlocks(const uint8_t* panel, int64_t lane, int64_t cols, float* out) {
  constexpr int kSubColumns = kBlock / T::kSubBlocks;
  constexpr int kOffset = T::kFlip;  // of a quant without two's complement
  for (int64_t block = 0; block < cols / kBlock; ++block) {
    Scales scales;
    T::TakeHead(panel, lane, &scales);
    const uint8_t* words = panel + T::kHeadBytes + 4 * lane;
    for (int i = 0; i < kBlock; i += 32, words += T::kBits * kPanelStride, out += 32) {
      uint8_t quants[32];
      TakeWords<T::kBits>(words, quants);
      for (int k = 0; k < 32; ++k) {
        const int sub = (i + k) / kSubColumns;
        const float value =
            scales.scale[sub] * static_cast<float>((quants[k] ^ T::kFlip) - kOffset);
        out[k] = T::kHasMinimum ? value - scales.minimum[sub] : value;
      }
    }
    panel += kPanelRows * T::kStoredBytes;
  }
}

template <typename T>
constexpr PanelType kBlocks = {PackBlocks<T>, UnpackBlocks<T>};

}  // namespace

PanelType KBlockPanelOf(DType type) {
  switch (type) {
    case DType::kQ2_K:
      return kBlocks<BlockQ2_K>;
    case DType::kQ3_K:
      return kBlocks<BlockQ3_K>;
    case DType::kQ4_K:
      return kBlocks<BlockQ4_K>;
    case DType::kQ5_K:
      return kBlocks<BlockQ5_K>;
    case DType::kQ6_K:
      return kBlocks<BlockQ6_K>;
    default:
      return {};
  }
}

}  // namespace sluice::kernels::cpu
