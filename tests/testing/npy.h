#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sluice::testing {

// A float32 array of NumPy's .npy format, version 1, C order (numpy/lib/format.py).
struct NpyArray {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// Aborts with the path when the file is absent or of another kind: golden data is part of the tree.
NpyArray LoadNpy(const std::string& path);

}  // namespace sluice::testing
