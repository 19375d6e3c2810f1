#include "engine/model/architecture.h"

#include <array>
#include <optional>
#include <string>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {
namespace {

constexpr std::array<Architecture, 2> kArchitectures = {{
    {"llama", kernels::RopeStyle::kInterleaved, /*always_has_qkv_bias=*/false,
     /*needs_rotary_size=*/true, /*default_rope_base=*/10000.0f, "Meta AI original pth"},
    {"qwen2", kernels::RopeStyle::kHalfSplit, /*always_has_qkv_bias=*/true,
     /*needs_rotary_size=*/false, /*default_rope_base=*/0.0f, "reference"},
}};

}  // namespace

absl::StatusOr<Architecture> Architecture::Of(const ModelFile& file) {
  const std::string subject = file.path() + ": key 'general.architecture': expected ";
  ASSIGN_OR_RETURN(const std::optional<std::string_view> name,
                   file.GetString("general.architecture"));
  if (!name.has_value()) {
    return InvalidArgument(subject + "'llama' or 'qwen2', got none: it is missing from the file");
  }
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == *name) return architecture;
  }
  return Unimplemented(subject + "'llama' or 'qwen2', got " + Quoted(*name) +
                       file.At("general.architecture"));
}

void Architecture::ReadTensorTraits(const ModelFile& file, ModelConfig& config) const {
  config.has_qkv_bias = always_has_qkv_bias || file.FindTensor("blk.0.attn_q.bias") != nullptr;
  config.tied_head = file.FindTensor("output.weight") == nullptr;
}

}  // namespace sluice::engine
