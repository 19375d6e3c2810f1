#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::engine {

// Text from a file made fit for a message: at most 64 bytes, what is not printable ASCII as \xNN,
// in single quotes.
std::string Quoted(std::string_view text);

// "[576, 49152]"
std::string DimsString(const std::vector<uint64_t>& dims);

// "u32" for the format's value type 4; "type 99" for none of the format's.
std::string ValueTypeName(uint32_t type);

// What the format says about a tensor type's number.
enum class TensorTypeStanding { kKnown, kRemoved, kUnknown };
struct TensorTypeName {
  TensorTypeStanding standing = TensorTypeStanding::kUnknown;
  std::string name;  // "IQ2_XXS"; "type 77" when unknown
};
TensorTypeName DescribeTensorType(uint32_t ggml_type);

}  // namespace sluice::engine
