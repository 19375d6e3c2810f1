#include "engine/gguf/gguf_text.h"

#include <array>

namespace sluice::engine {
namespace {

// Numbers 0 to 39 of enum ggml_type (ggml/docs/gguf.md); a leading '-' marks those that were taken
// out of the format.
constexpr std::array<std::string_view, 40> kTensorTypes = {
    "F32",   "F16",         "Q4_0",        "Q4_1",        "-Q4_2",     "-Q4_3",     "Q5_0",
    "Q5_1",  "Q8_0",        "Q8_1",        "Q2_K",        "Q3_K",      "Q4_K",      "Q5_K",
    "Q6_K",  "Q8_K",        "IQ2_XXS",     "IQ2_XS",      "IQ3_XXS",   "IQ1_S",     "IQ4_NL",
    "IQ3_S", "IQ2_S",       "IQ4_XS",      "I8",          "I16",       "I32",       "I64",
    "F64",   "IQ1_M",       "BF16",        "-Q4_0_4_4",   "-Q4_0_4_8", "-Q4_0_8_8", "TQ1_0",
    "TQ2_0", "-IQ4_NL_4_4", "-IQ4_NL_4_8", "-IQ4_NL_8_8", "MXFP4"};

constexpr std::array<std::string_view, 13> kValueTypes = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};

}  // namespace

std::string Quoted(std::string_view text) {
  constexpr size_t kMost = 64;
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "'";
  for (const char c : text.substr(0, kMost)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  out += '\'';
  if (text.size() > kMost) out += "... (" + std::to_string(text.size()) + " bytes)";
  return out;
}

std::string DimsString(const std::vector<uint64_t>& dims) {
  std::string out = "[";
  for (size_t i = 0; i < dims.size(); ++i) {
    if (i > 0) out += ", ";
    out += std::to_string(dims[i]);
  }
  return out + "]";
}

std::string ValueTypeName(uint32_t type) {
  if (type < kValueTypes.size()) return std::string(kValueTypes[type]);
  return "type " + std::to_string(type);
}

TensorTypeName DescribeTensorType(uint32_t ggml_type) {
  if (ggml_type >= kTensorTypes.size()) {
    return {TensorTypeStanding::kUnknown, "type " + std::to_string(ggml_type)};
  }
  const std::string_view name = kTensorTypes[ggml_type];
  if (name[0] == '-') return {TensorTypeStanding::kRemoved, std::string(name.substr(1))};
  return {TensorTypeStanding::kKnown, std::string(name)};
}

}  // namespace sluice::engine
