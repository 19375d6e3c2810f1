#include "kernels/cpu/pack.h"

#include <cstring>

#include "kernels/core/check.h"
#include "kernels/core/half.h"
#include "kernels/cpu/cpu_ops.h"

namespace sluice::kernels::cpu {
namespace {

constexpr int64_t kQ8_0Block = 544;
constexpr int64_t kQ4_1Block = 320;

uint16_t LoadU16(const std::byte* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

// `size` bytes a column from each of num_rows <= 16 rows.
template <int kSize>
void PackColumns(const std::byte* stored, int64_t row_bytes, int64_t num_rows, int64_t cols,
                 std::byte* panel) {
  for (int64_t row = 0; row < num_rows; ++row) {
    const std::byte* from = stored + row * row_bytes;
    std::byte* to = panel + row * kSize;
    for (int64_t k = 0; k < cols; ++k) {
      std::memcpy(to + k * kSize * kPanelRows, from + k * kSize, kSize);
    }
  }
}

void PackQ8_0(const std::byte* stored, int64_t row_bytes, int64_t num_rows, int64_t cols,
              std::byte* panel) {
  for (int64_t block = 0; block < cols / 32; ++block, panel += kQ8_0Block) {
    for (int64_t row = 0; row < num_rows; ++row) {
      const std::byte* from = stored + row * row_bytes + block * 34;
      std::memcpy(panel + 2 * row, from, 2);
      std::byte* to = panel + 32 + 2 * row;
      for (int pair = 0; pair < 16; ++pair) std::memcpy(to + 32 * pair, from + 2 + 2 * pair, 2);
    }
  }
}

// The low nibbles of bytes 0, 2, 4 and 6 of `bytes`, next to each other.
uint32_t EvenNibbles(uint64_t bytes) {
  bytes &= 0x000f000f000f000full;
  return static_cast<uint32_t>((bytes | bytes >> 12 | bytes >> 24 | bytes >> 36) & 0xffffu);
}

void PackQ4_1(const std::byte* stored, int64_t row_bytes, int64_t num_rows, int64_t cols,
              std::byte* panel) {
  for (int64_t block = 0; block < cols / 32; ++block, panel += kQ4_1Block) {
    for (int64_t row = 0; row < num_rows; ++row) {
      // Stored: d, m, then bytes whose low nibbles are columns 0..15 and high ones 16..31.
      const std::byte* from = stored + row * row_bytes + block * 20;
      std::memcpy(panel + 2 * row, from, 2);
      std::memcpy(panel + 32 + 2 * row, from + 2, 2);
      for (int v = 0; v < 4; ++v) {
        uint64_t columns;  // eight columns, a byte each
        std::memcpy(&columns, from + 4 + 8 * (v % 2), sizeof(columns));
        if (v >= 2) columns >>= 4;
        const uint32_t word = EvenNibbles(columns) | EvenNibbles(columns >> 8) << 16;
        std::memcpy(panel + 64 + 64 * v + 4 * row, &word, sizeof(word));
      }
    }
  }
}

}  // namespace

int64_t PanelBytes(DType type, int64_t cols) {
  switch (type) {
    case DType::kF32:
      return kPanelRows * 4 * cols;
    case DType::kF16:
      return kPanelRows * 2 * cols;
    case DType::kQ8_0:
      return cols / 32 * kQ8_0Block;
    case DType::kQ4_1:
      return cols / 32 * kQ4_1Block;
    default:
      SLUICE_KERNEL_CHECK(false, "the cpu backend has no panels of this type");
      return 0;
  }
}

bool SupportsWeight(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kQ8_0 || type == DType::kQ4_1;
}

int64_t PackedBytes(DType type, int64_t rows, int64_t cols) {
  return (rows + kPanelRows - 1) / kPanelRows * PanelBytes(type, cols);
}

void PackWeightRows(PackedWeight& weight, int64_t first_row, int64_t num_rows,
                    const std::byte* stored) {
  SLUICE_KERNEL_CHECK(first_row % kPanelRows == 0 && first_row + num_rows <= weight.rows,
                      "a piece starts at a panel and ends inside the weight");
  SLUICE_KERNEL_CHECK(num_rows % kPanelRows == 0 || first_row + num_rows == weight.rows,
                      "only the last piece may end inside a panel");
  const int64_t row_bytes = RowBytes(weight.type, weight.cols);
  const int64_t panel_bytes = PanelBytes(weight.type, weight.cols);
  for (int64_t row = 0; row < num_rows; row += kPanelRows) {
    const int64_t count = num_rows - row < kPanelRows ? num_rows - row : kPanelRows;
    const std::byte* from = stored + row * row_bytes;
    std::byte* panel = weight.storage.bytes() + (first_row + row) / kPanelRows * panel_bytes;
    switch (weight.type) {
      case DType::kF32:
        PackColumns<4>(from, row_bytes, count, weight.cols, panel);
        break;
      case DType::kF16:
        PackColumns<2>(from, row_bytes, count, weight.cols, panel);
        break;
      case DType::kQ8_0:
        PackQ8_0(from, row_bytes, count, weight.cols, panel);
        break;
      case DType::kQ4_1:
        PackQ4_1(from, row_bytes, count, weight.cols, panel);
        break;
      default:
        SLUICE_KERNEL_CHECK(false, "AllocateWeight refuses other types");
    }
  }
}

void UnpackWeightRow(const PackedWeight& weight, int64_t row, float* out) {
  SLUICE_KERNEL_CHECK(row >= 0 && row < weight.rows, "the row is one of the weight's");
  const std::byte* panel =
      weight.storage.bytes() + row / kPanelRows * PanelBytes(weight.type, weight.cols);
  const int64_t lane = row % kPanelRows;
  switch (weight.type) {
    case DType::kF32:
      for (int64_t k = 0; k < weight.cols; ++k) {
        std::memcpy(out + k, panel + (k * kPanelRows + lane) * 4, 4);
      }
      return;
    case DType::kF16:
      for (int64_t k = 0; k < weight.cols; ++k) {
        out[k] = HalfToFloat(LoadU16(panel + (k * kPanelRows + lane) * 2));
      }
      return;
    case DType::kQ8_0:
      for (int64_t block = 0; block < weight.cols / 32; ++block, panel += kQ8_0Block, out += 32) {
        const float d = HalfToFloat(LoadU16(panel + 2 * lane));
        const std::byte* quants = panel + 32 + 2 * lane;
        for (int k = 0; k < 32; ++k) {
          out[k] = d * static_cast<float>(static_cast<int8_t>(quants[k / 2 * 32 + k % 2]));
        }
      }
      return;
    case DType::kQ4_1:
      for (int64_t block = 0; block < weight.cols / 32; ++block, panel += kQ4_1Block, out += 32) {
        const float d = HalfToFloat(LoadU16(panel + 2 * lane));
        const float m = HalfToFloat(LoadU16(panel + 32 + 2 * lane));
        for (int k = 0; k < 32; ++k) {
          const int pair = k / 2;
          const uint16_t nibbles = LoadU16(panel + 64 + pair / 4 * 64 + 4 * lane + 2 * (k % 2));
          out[k] = d * static_cast<float>(nibbles >> (4 * (pair % 4)) & 15) + m;
        }
      }
      return;
    default:
      SLUICE_KERNEL_CHECK(false, "AllocateWeight refuses other types");
  }
}

}  // namespace sluice::kernels::cpu
