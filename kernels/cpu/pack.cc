#include "kernels/cpu/pack.h"

#include <cstring>

#include "kernels/core/check.h"
#include "kernels/core/half.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/pack_types.h"

namespace sluice::kernels::cpu {
namespace {

uint16_t LoadU16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

// ---- types of one value a block

template <int kSize>
void PackColumns(const uint8_t* stored, int64_t row_bytes, int64_t num_rows, int64_t cols,
                 uint8_t* panel) {
  for (int64_t row = 0; row < num_rows; ++row) {
    const uint8_t* from = stored + row * row_bytes;
    uint8_t* to = panel + row * kSize;
    for (int64_t k = 0; k < cols; ++k) {
      std::memcpy(to + k * kSize * kPanelRows, from + k * kSize, kSize);
    }
  }
}

void UnpackF32(const uint8_t* panel, int64_t lane, int64_t cols, float* out) {
  for (int64_t k = 0; k < cols; ++k) std::memcpy(out + k, panel + (k * kPanelRows + lane) * 4, 4);
}

template <float (*kToFloat)(uint16_t)>
void UnpackHalves(const uint8_t* panel, int64_t lane, int64_t cols, float* out) {
  for (int64_t k = 0; k < cols; ++k) {
    out[k] = kToFloat(LoadU16(panel + (k * kPanelRows + lane) * 2));
  }
}

PanelType PanelOf(DType type) {
  switch (type) {
    case DType::kF32:
      return {PackColumns<4>, UnpackF32};
    case DType::kF16:
      return {PackColumns<2>, UnpackHalves<HalfToFloat>};
    case DType::kBF16:
      return {PackColumns<2>, UnpackHalves<BFloat16ToFloat>};
    default:
      return Traits(type).block_values == 32 ? BlockPanelOf(type) : KBlockPanelOf(type);
  }
}

}  // namespace

int64_t PanelBytes(DType type, int64_t cols) { return kPanelRows * RowBytes(type, cols); }

bool SupportsWeight(DType type) { return PanelOf(type).pack != nullptr; }

int64_t PackedBytes(DType type, int64_t rows, int64_t cols) {
  return (rows + kPanelRows - 1) / kPanelRows * PanelBytes(type, cols);
}

void PackWeightRows(PackedWeight& weight, int64_t first_row, int64_t num_rows,
                    const std::byte* stored) {
  SLUICE_KERNEL_CHECK(first_row % kPanelRows == 0 && first_row + num_rows <= weight.rows,
                      "a piece starts at a panel and ends inside the weight");
  SLUICE_KERNEL_CHECK(num_rows % kPanelRows == 0 || first_row + num_rows == weight.rows,
                      "only the last piece may end inside a panel");
  const PackPanelFn pack = PanelOf(weight.type).pack;
  const int64_t row_bytes = RowBytes(weight.type, weight.cols);
  const int64_t panel_bytes = PanelBytes(weight.type, weight.cols);
  const uint8_t* from = reinterpret_cast<const uint8_t*>(stored);
  uint8_t* panels = reinterpret_cast<uint8_t*>(weight.storage.bytes());
  for (int64_t row = 0; row < num_rows; row += kPanelRows) {
    const int64_t count = num_rows - row < kPanelRows ? num_rows - row : kPanelRows;
    pack(from + row * row_bytes, row_bytes, count, weight.cols,
         panels + (first_row + row) / kPanelRows * panel_bytes);
  }
}

void UnpackWeightRow(const PackedWeight& weight, int64_t row, float* out) {
  SLUICE_KERNEL_CHECK(row >= 0 && row < weight.rows, "the row is one of the weight's");
  const uint8_t* panels = reinterpret_cast<const uint8_t*>(weight.storage.bytes());
  PanelOf(weight.type)
      .unpack(panels + row / kPanelRows * PanelBytes(weight.type, weight.cols), row % kPanelRows,
              weight.cols, out);
}

}  // namespace sluice::kernels::cpu
