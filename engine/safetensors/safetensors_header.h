#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/model_file/open_file.h"
#include "kernels/core/dtype.h"

namespace sluice::engine {

// One tensor of a safetensors file. Value.
struct StoredTensor {
  std::string name;
  std::string dtype;                   // as the file spells it: "BF16"
  std::optional<kernels::DType> type;  // of F32, F16, BF16; others have no products here
  std::vector<uint64_t> shape;         // as in the file: the last one is the length of a row
  uint64_t begin = 0;                  // from the start of the file
  uint64_t bytes = 0;
};

// What the header of a safetensors file says (https://github.com/huggingface/safetensors#format):
// eight bytes of length, so many bytes of one JSON object, the data.
struct SafetensorsHeader {
  static constexpr uint64_t kMaxHeaderBytes = uint64_t{100} << 20;
  static constexpr size_t kMaxTensors = 65'536;

  std::string json;                   // as stored
  uint64_t data_begin = 0;            // from the start of the file
  std::vector<StoredTensor> tensors;  // in the order of their data, which they fill without a gap

  // INVALID_ARGUMENT "FILE: header: .." or "FILE: tensor 'NAME': .." for a header that is not
  // within the file, is no JSON object, or whose tensors do not lie in the file side by side, each
  // with as many bytes as its shape and type take. UNIMPLEMENTED for a type that is not known.
  static absl::StatusOr<SafetensorsHeader> Read(const OpenFile& file);
};

}  // namespace sluice::engine
