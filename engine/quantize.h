#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "kernels/core/dtype.h"

namespace sluice::engine {

// The types that matrices can be rounded to, as the command line names them: "q8_0".
std::vector<std::string> QuantizedTypeNames();
std::optional<kernels::DType> QuantizedTypeNamed(std::string_view name);

struct QuantizeOptions {
  kernels::DType type = kernels::DType::kQ8_0;  // one of QuantizedTypeNames
  int num_threads = 0;                          // 0: one for each core
  bool replace = false;                         // a file that is there already
  bool keep_output = false;                     // output.weight, or token_embd.weight when tied
  bool only_floats = false;                     // refuse a model that holds quantised tensors
  // After each piece, with the bytes of tensors written and to write; false stops the work.
  std::function<bool(uint64_t done, uint64_t total)> progress;
};

struct QuantizeReport {
  uint64_t bytes_in = 0;      // all that describes the model
  uint64_t bytes_out = 0;     // the file's size
  uint64_t tensor_bytes = 0;  // of them, the tensors'
  uint64_t num_values = 0;
  int num_tensors = 0;
  int num_quantized = 0;
  std::vector<std::string> notes;  // what was left as it is, and why

  double BitsPerWeight() const {
    return 8.0 * static_cast<double>(tensor_bytes) / static_cast<double>(num_values);
  }
};

// Writes `out`, a GGUF file of version 3, with the model of `in` (a GGUF file or a directory of
// safetensors). F32, F16 and BF16 matrices whose rows are whole blocks are rounded to the nearest
// values of the type (QuantizeBlocks); vectors and norms become F32; what is quantised already is
// copied. Metadata is copied, general.file_type and general.quantization_version say what was done.
// Rows of Q and K that Hugging Face keeps in another order are put into GGUF's. `out` appears when
// it is complete, or not at all; memory does not depend on the model's size.
//
// Errors: those of ModelFile::Open and GgufWriter; INVALID_ARGUMENT naming tensor, row and column
// of a value that the type cannot hold, or when `out` is a file of `in`; FAILED_PRECONDITION for
// quantised tensors with only_floats; CANCELLED; DATA_LOSS when `in` changed meanwhile.
absl::StatusOr<QuantizeReport> QuantizeModel(const std::string& in, const std::string& out,
                                             const QuantizeOptions& options);

}  // namespace sluice::engine
