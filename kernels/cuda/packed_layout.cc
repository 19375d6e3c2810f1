#include "kernels/cuda/packed_weight.h"

namespace sluice::kernels::cuda {
namespace {

int QuantBytes(DType type) {
  switch (type) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      return 2048;
    case DType::kQ8_0:
      return 1024;
    case DType::kQ4_0:
    case DType::kQ4_1:
    case DType::kQ4_K:
    case DType::kIQ4_NL:
      return 512;
    case DType::kQ5_0:
    case DType::kQ5_1:
    case DType::kQ5_K:
      return 512 + 128;
    case DType::kQ6_K:
      return 512 + 256;
    case DType::kQ3_K:
      return 256 + 128;
    case DType::kQ2_K:
      return 256;
  }
  return 0;
}

int ScaleWords(DType type) {
  switch (type) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      return 0;
    case DType::kQ4_1:
    case DType::kQ5_1:
      return 2;
    default:
      return 1;
  }
}

}  // namespace

PackedLayout PackedLayout::Of(DType type, int64_t rows, int64_t cols) {
  PackedLayout layout;
  layout.type = type;
  layout.rows = static_cast<int32_t>(rows);
  layout.cols = static_cast<int32_t>(cols);
  layout.tiles = static_cast<int32_t>((rows + kTileRows - 1) / kTileRows);
  layout.units = static_cast<int32_t>((cols + kUnitCols - 1) / kUnitCols);
  layout.quant_bytes = QuantBytes(type);
  layout.scale_words = ScaleWords(type);
  const int64_t chunks = int64_t{layout.tiles} * layout.units;
  const bool super_blocks = Traits(type).block_values == 256;
  const bool row_factors = type == DType::kF32 || type == DType::kBF16;
  layout.unit_bytes = layout.quant_bytes + layout.scale_words * kTileRows * 4;
  layout.super_bytes = super_blocks ? kSuperBytes : 0;
  layout.rows_at = UnitAt(chunks, layout.unit_bytes, layout.super_bytes);
  layout.bytes = layout.rows_at + (row_factors ? int64_t{layout.tiles} * kTileRows * 4 : 0);
  return layout;
}

PackedView ViewOf(const PackedLayout& layout, const std::byte* storage) {
  PackedView view;
  view.type = layout.type;
  view.rows = layout.rows;
  view.cols = layout.cols;
  view.tiles = layout.tiles;
  view.units = layout.units;
  view.unit_data = storage;
  if (layout.bytes > layout.rows_at) {
    view.row_factors = reinterpret_cast<const float*>(storage + layout.rows_at);
  }
  return view;
}

}  // namespace sluice::kernels::cuda
