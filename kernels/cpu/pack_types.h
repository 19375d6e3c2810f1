#pragma once

// Packing and unpacking of panels, type by type: what pack.cc chooses from.

#include <cstdint>

#include "kernels/core/dtype.h"

namespace sluice::kernels::cpu {

// num_rows <= 16 rows of `cols` columns as stored in a file, row_bytes apart, into one panel whose
// other rows are zero.
using PackPanelFn = void (*)(const uint8_t* stored, int64_t row_bytes, int64_t num_rows,
                             int64_t cols, uint8_t* panel);
// Row `lane` of a panel as f32, bit-equal to the format's definition: out [cols].
using UnpackLaneFn = void (*)(const uint8_t* panel, int64_t lane, int64_t cols, float* out);

struct PanelType {
  PackPanelFn pack = nullptr;
  UnpackLaneFn unpack = nullptr;
};

PanelType BlockPanelOf(DType type);   // types of blocks of 32 columns
PanelType KBlockPanelOf(DType type);  // types of blocks of 256 columns

}  // namespace sluice::kernels::cpu
