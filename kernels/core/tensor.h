#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kernels/core/dtype.h"

namespace sluice::kernels {

// A view of a dense row-major array on the device of the Exec it is used with. Owns nothing. Value
// type. rank 1: [cols]; rank 2: [rows, cols].
template <typename T>
struct Matrix {
  T* values = nullptr;  // [rows, cols] row-major, contiguous
  int64_t rows = 0;
  int64_t cols = 0;

  T* row(int64_t r) const { return values + r * cols; }
  Matrix Rows(int64_t count) const { return {values, count, cols}; }
  std::span<T> flat() const { return {values, static_cast<size_t>(rows * cols)}; }
};

using MatrixF32 = Matrix<float>;
using ConstMatrixF32 = Matrix<const float>;

}  // namespace sluice::kernels
