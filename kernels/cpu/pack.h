#pragma once

// The layout of weights on the CPU: panels of 16 rows, lane = row, so that one vector load brings a
// value (or a pair of integers) of sixteen rows. Rows are padded with zeros to a multiple of 16;
// panels follow each other without gaps.
//
//   F32, F16  column k: value[16 rows]
//   Q8_0      block of 32 columns, 544 bytes: f16 d[16 rows], i8 q[16 pairs of columns][16 rows][2]
//   Q4_1      block of 32 columns, 320 bytes: f16 d[16 rows], f16 m[16 rows],
//             u16 nibbles[4][16 rows][2]: bits 4n .. 4n + 3 of nibbles[v][row][j] are the quant of
//             column 2 (4 v + n) + j
//
// The same number of bytes as in the file.

#include <cstdint>

#include "kernels/core/dtype.h"

namespace sluice::kernels::cpu {

inline constexpr int64_t kPanelRows = 16;

// Bytes of one panel of 16 rows of `cols` columns.
int64_t PanelBytes(DType type, int64_t cols);

}  // namespace sluice::kernels::cpu
