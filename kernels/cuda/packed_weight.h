#pragma once

// The layout of weights on a GPU: tiles of 16 rows by units of 64 columns, each in the order in
// which the lanes of a warp hold the 16 x 16 operands of mma.sync.m16n8k16 (PTX ISA, "Matrix
// Fragments for mma.m16n8k16"), so that one 128-bit load a lane brings a unit of 4-bit weights.
// Rows are padded to 16 and columns to 64 (K-quants: 256 anyway) with zeros.
//
// A unit has four steps j of 16 columns; a step four pairs p of neighbouring columns a lane. Lane
// 4 g + t holds in pair p the columns 16 j + 8 (p / 2) + 2 t and + 1 of row g + 8 (p % 2).
//
//   units    [tile][unit] of quants, behind them scales, so that one copy brings both, and behind
//            every fourth unit of K-quants, a block of 256, its super words; quants are
//     F32 F16 BF16   f16 [j][lane][p][2]; F32 and BF16 times the row's power of two
//     Q8_0           u8 [j / 2][lane][j % 2][p][2], quant + 128
//     others         planes: nibbles [lane][j], one word: pair p's first at bit 4 p, second at
//                    16 + 4 p; two bits [lane][j / 2], at 2 (4 (j % 2) + p) and 16 + that; one bit
//                    [lane], at 4 j + p and 16 + that. 4-bit types have nibbles, 5-bit nibbles and
//                    one bit, Q6_K nibbles and two bits, Q3_K two bits and one bit, Q2_K two bits
//            and scales [row] words: (d, d) f16 of the two blocks; or (d, m), (d, m); or four
//            bytes: scale, minimum, scale, minimum (Q4_K, Q5_K), scale | minimum << 4 of each
//            sixteen (Q2_K), signed scales of each sixteen (Q3_K, Q6_K)
//            and super words [row]: (d, dmin) f16 of a K-quant's block of 256
//   rows     [tile][row] f32: what the product of a row is multiplied by, a power of two (F32,
//   BF16)
//
// About as many bytes as in the file: Q4_K + 2.8 %, Q5_K + 2.3 %, Q3_K + 5.5 %; F32 half.

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/dtype.h"

namespace sluice::kernels::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kUnitCols = 64;
inline constexpr int kBlockUnits = 4;              // of a K-quant's block of 256
inline constexpr int kSuperBytes = kTileRows * 4;  // of such a block's super words

// Bytes from the units' begin to unit `index` = tile * units + unit, and to the super words of its
// block. `super_bytes`: kSuperBytes, or 0 where there are none.
__host__ __device__ constexpr int64_t UnitAt(int64_t index, int32_t unit_bytes,
                                             int32_t super_bytes) {
  return index * unit_bytes + index / kBlockUnits * super_bytes;
}
__host__ __device__ constexpr int64_t SupersAt(int64_t index, int32_t unit_bytes) {
  const int64_t block = index / kBlockUnits;
  return (block + 1) * kBlockUnits * unit_bytes + block * kSuperBytes;
}

// Sizes and offsets of the parts of one packed weight. A pure function of type and shape.
struct PackedLayout {
  DType type = DType::kF32;
  int32_t rows = 0;
  int32_t cols = 0;
  int32_t tiles = 0;        // of 16 rows
  int32_t units = 0;        // of 64 columns
  int32_t quant_bytes = 0;  // of one tile and unit
  int32_t scale_words = 0;  // of one row and unit
  int32_t unit_bytes = 0;   // of one tile and unit, quants and scales
  int32_t super_bytes = 0;  // behind every four units of a tile
  int64_t rows_at = 0;      // where the units end
  int64_t bytes = 0;

  static PackedLayout Of(DType type, int64_t rows, int64_t cols);
};

// Device addresses of a packed weight, for kernels.
struct PackedView {
  DType type = DType::kF32;
  int32_t rows = 0;
  int32_t cols = 0;
  int32_t tiles = 0;
  int32_t units = 0;
  const std::byte* unit_data = nullptr;
  const float* row_factors = nullptr;  // null: 1
};

PackedView ViewOf(const PackedLayout& layout, const std::byte* storage);

}  // namespace sluice::kernels::cuda
