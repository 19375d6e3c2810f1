#pragma once

// The layout of weights on the CPU: panels of 16 rows, lane = row, so that one vector load brings a
// value (or a pair of integers) of sixteen rows. Rows are padded with zeros to a multiple of 16;
// panels follow each other without gaps. The same number of bytes as in the file.
//
// Quants of n = 2 to 6 bits stand in words(n) = u16[n][16 rows][2] for every 32 columns: element j
// of the last index has the columns 2p + j, p = 0 .. 15 the pair of columns; pack_words.h says
// which bits of which word. Signed ones (s) are in two's complement, others (u) as stored.
//
//   F32, F16, BF16  column k: value[16 rows]
//
//   blocks of 32 columns:
//   Q8_0            f16 d[16 rows], i8 q[16 pairs of columns][16 rows][2]
//   Q4_0            f16 d[16 rows], s words(4): q - 8
//   Q5_0            f16 d[16 rows], s words(5): q - 16
//   Q4_1            f16 d[16 rows], f16 m[16 rows], u words(4)
//   Q5_1            f16 d[16 rows], f16 m[16 rows], u words(5)
//   IQ4_NL          f16 d[16 rows], u words(4): index into the format's levels
//
//   blocks of 256 columns, each with the words of eight times 32 columns at its end:
//   Q4_K, Q5_K      f16 d[16 rows], f16 dmin[16 rows], u32 six[3][16 rows], u words(4 or 5)[8];
//                   six has the scales of eight sub-blocks of 32, then their minima
//   Q2_K            f16 d[16 rows], f16 dmin[16 rows], u8 scale | minimum << 4
//                   [16 sub-blocks of 16][16 rows], u words(2)[8]
//   Q3_K            f16 d[16 rows], u32 six[3][16 rows], s words(3)[8]: q - 4; six has the scales
//                   of sixteen sub-blocks of 16, each 32 too large
//   Q6_K            f16 d[16 rows], i8 scale[16 sub-blocks of 16][16 rows], s words(6)[8]: q - 32
//
// Sixteen numbers of six bits, x[i], stand in three u32: x[i] in bits 6 (i % 5) .. + 5 of word
// i / 5, x[15] two bits a word in bits 30 and 31, the lowest two in word 0.

#include <cstdint>

#include "kernels/core/dtype.h"

namespace sluice::kernels::cpu {

inline constexpr int64_t kPanelRows = 16;

// The levels that the quants of IQ4_NL stand for.
inline constexpr int8_t kIq4NlLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                            1,    13,   25,  38,  53,  69,  89,  113};

// Bytes of one panel of 16 rows of `cols` columns.
int64_t PanelBytes(DType type, int64_t cols);

}  // namespace sluice::kernels::cpu
