#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace sluice::kernels {

// Element types of tensors: those of the GGUF format (ggml/docs/gguf.md, ggml-common.h) that hold
// floating-point values. Values are ours; FromGgml/ToGgml translate the numbers found in files.
enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
};

struct DTypeTraits {
  DType type;
  std::string_view name;  // as GGUF tools print it: "F32", "Q4_1"
  uint32_t ggml_type;     // the number in a file
  int block_values;       // values of one block along a row
  int block_bytes;        // bytes of one block as stored in a file
  bool quantized;         // products use integer activations on the CPU
};

const DTypeTraits& Traits(DType type);
inline std::string_view Name(DType type) { return Traits(type).name; }

// The type whose number in GGUF files is `ggml_type`; nullopt when it is none of the above.
std::optional<DType> DTypeFromGgml(uint32_t ggml_type);

// Bytes of a row of `values` values as stored in a file. `values` must be a multiple of
// block_values.
int64_t RowBytes(DType type, int64_t values);

}  // namespace sluice::kernels
