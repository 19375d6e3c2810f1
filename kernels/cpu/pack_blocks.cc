// Panels of the types whose blocks are 32 columns (kernels/cpu/pack.h has the layouts).

#include <cstring>

#include "kernels/core/half.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/pack_types.h"
#include "kernels/cpu/pack_words.h"

namespace sluice::kernels::cpu {
namespace {

float Half(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return HalfToFloat(bits);
}

// ---- Q8_0

constexpr int64_t kQ8_0Block = 544;

void PackQ8_0(const uint8_t* stored, int64_t row_bytes, int64_t num_rows, int64_t cols,
              uint8_t* panel) {
  for (int64_t block = 0; block < cols / 32; ++block, panel += kQ8_0Block) {
    for (int64_t row = 0; row < num_rows; ++row) {
      const uint8_t* from = stored + row * row_bytes + block * 34;
      std::memcpy(panel + 2 * row, from, 2);
      uint8_t* to = panel + 32 + 2 * row;
      for (int pair = 0; pair < 16; ++pair) std::memcpy(to + 32 * pair, from + 2 + 2 * pair, 2);
    }
  }
}

void UnpackQ8_0(const uint8_t* panel, int64_t lane, int64_t cols, float* out) {
  for (int64_t block = 0; block < cols / 32; ++block, panel += kQ8_0Block, out += 32) {
    const float d = Half(panel + 2 * lane);
    const uint8_t* quants = panel + 32 + 2 * lane;
    for (int k = 0; k < 32; ++k) {
      out[k] = d * static_cast<float>(static_cast<int8_t>(quants[k / 2 * 32 + k % 2]));
    }
  }
}

// ---- quants of four and five bits

// Low nibbles are columns 0..15, high ones 16..31.
void TakeNibbles(const uint8_t* __restrict nibbles, uint8_t* __restrict quants) {
  for (int i = 0; i < 16; ++i) quants[i] = nibbles[i] & 15;
  for (int i = 0; i < 16; ++i) quants[16 + i] = nibbles[i] >> 4;
}

// Bit i of `high` becomes bit 4 of quants[i], i < 8.
void AddFifths(uint8_t high, uint8_t* quants) {
  constexpr uint64_t kOnes = 0x0101010101010101;
  // Byte i keeps bit i, which the sum carries to the byte's top.
  const uint64_t bits = (kOnes * high & 0x8040201008040201) + 127 * kOnes;
  uint64_t eight;
  std::memcpy(&eight, quants, sizeof(eight));
  eight |= (bits >> 7 & kOnes) << 4;
  std::memcpy(quants, &eight, sizeof(eight));
}

// Stored: kHalves f16 (d, m), a word with the fifth bits when there are five, nibbles.
template <int kNumBits, int kNumHalves>
struct Block {
  static constexpr int kBits = kNumBits;
  static constexpr int kHalves = kNumHalves;
  static constexpr int kHighAt = 2 * kHalves;
  static constexpr int kNibblesAt = kHighAt + (kBits == 5 ? 4 : 0);
  static constexpr int kStoredBytes = kNibblesAt + 16;

  static void Take(const uint8_t* stored, uint8_t* quants) {
    TakeNibbles(stored + kNibblesAt, quants);
    if constexpr (kBits == 5) {
      for (int i = 0; i < 4; ++i) AddFifths(stored[kHighAt + i], quants + 8 * i);
    }
  }
};

struct BlockQ4_0 : Block<4, 1> {
  static constexpr uint8_t kFlip = 8;  // of the quants: q - 8 in two's complement
  static float Value(float d, float, int quant) { return d * static_cast<float>(quant - 8); }
};
struct BlockQ4_1 : Block<4, 2> {
  static constexpr uint8_t kFlip = 0;
  static float Value(float d, float m, int quant) { return d * static_cast<float>(quant) + m; }
};
struct BlockQ5_0 : Block<5, 1> {
  static constexpr uint8_t kFlip = 16;
  static float Value(float d, float, int quant) { return d * static_cast<float>(quant - 16); }
};
struct BlockQ5_1 : Block<5, 2> {
  static constexpr uint8_t kFlip = 0;
  static float Value(float d, float m, int quant) { return d * static_cast<float>(quant) + m; }
};
struct BlockIQ4_NL : Block<4, 1> {
  static constexpr uint8_t kFlip = 0;
  static float Value(float d, float, int quant) {
    return d * static_cast<float>(kIq4NlLevels[quant]);
  }
};

template <typename T>
constexpr int64_t kPanelBlock = kPanelRows* T::kStoredBytes;

template <typename T>
void PackBlocks(const uint8_t* stored, int64_t row_bytes, int64_t num_rows, int64_t cols,
                uint8_t* panel) {
  for (int64_t block = 0; block < cols / 32; ++block, panel += kPanelBlock<T>) {
    for (int64_t row = 0; row < num_rows; ++row) {
      const uint8_t* from = stored + row * row_bytes + block * T::kStoredBytes;
      for (int half = 0; half < T::kHalves; ++half) {
        std::memcpy(panel + 32 * half + 2 * row, from + 2 * half, 2);
      }
      uint8_t quants[32];
      T::Take(from, quants);
      for (uint8_t& quant : quants) quant ^= T::kFlip;
      PutWords<T::kBits>(quants, panel + 32 * T::kHalves + 4 * row);
    }
  }
}

template <typename T>
void UnpackBlocks(const uint8_t* panel, int64_t lane, int64_t cols, float* out) {
  for (int64_t block = 0; block < cols / 32; ++block, panel += kPanelBlock<T>, out += 32) {
    const float d = Half(panel + 2 * lane);
    const float m = T::kHalves == 2 ? Half(panel + 32 + 2 * lane) : 0.0f;
    uint8_t quants[32];
    TakeWords<T::kBits>(panel + 32 * T::kHalves + 4 * lane, quants);
    for (int k = 0; k < 32; ++k) out[k] = T::Value(d, m, quants[k] ^ T::kFlip);
  }
}

template <typename T>
constexpr PanelType kBlocks = {PackBlocks<T>, UnpackBlocks<T>};

}  // namespace

PanelType BlockPanelOf(DType type) {
  switch (type) {
    case DType::kQ8_0:
      return {PackQ8_0, UnpackQ8_0};
    case DType::kQ4_0:
      return kBlocks<BlockQ4_0>;
    case DType::kQ4_1:
      return kBlocks<BlockQ4_1>;
    case DType::kQ5_0:
      return kBlocks<BlockQ5_0>;
    case DType::kQ5_1:
      return kBlocks<BlockQ5_1>;
    case DType::kIQ4_NL:
      return kBlocks<BlockIQ4_NL>;
    default:
      return {};
  }
}

}  // namespace sluice::kernels::cpu
