#include "engine/model/architecture.h"

#include <array>
#include <optional>
#include <string>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {
namespace {

using kernels::RopeStyle;

constexpr std::array kArchitectures = {
    // Llama 1 to 3, Mistral, SmolLM and others that compute the same. Files older than the key mean
    // the rope base of the first Llama models.
    Architecture{.name = "llama",
                 .data_layout = "Meta AI original pth",
                 .rope_style = RopeStyle::kInterleaved,
                 .needs_rotary_size = true,
                 .default_rope_base = 10000.0f},
    Architecture{.name = "qwen2", .always_has_qkv_bias = true},
    Architecture{.name = "qwen3", .has_head_norm = true},
    // The period is no_rope_layer_interval of the models' configuration.
    Architecture{.name = "smollm3", .rope_style = RopeStyle::kInterleaved, .unrotated_period = 4},
    Architecture{.name = "exaone"},
    Architecture{.name = "internlm2", .rope_style = RopeStyle::kInterleaved},
};

std::string Names() {
  std::string names;
  for (const Architecture& architecture : kArchitectures) {
    names += (names.empty() ? "'" : ", '") + std::string(architecture.name) + "'";
  }
  return names;
}

}  // namespace

absl::StatusOr<Architecture> Architecture::Of(const ModelFile& file) {
  const std::string subject = file.path() + ": key 'general.architecture': expected one of ";
  ASSIGN_OR_RETURN(const std::optional<std::string_view> name,
                   file.GetString("general.architecture"));
  if (!name.has_value()) {
    return InvalidArgument(subject + Names() + ", got none: it is missing from the file");
  }
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == *name) return architecture;
  }
  return Unimplemented(subject + Names() + ", got " + Quoted(*name) +
                       file.At("general.architecture"));
}

void Architecture::ReadTensorTraits(const ModelFile& file, ModelConfig& config) const {
  config.has_head_norm = has_head_norm;
  config.has_qkv_bias = always_has_qkv_bias || file.FindTensor("blk.0.attn_q.bias") != nullptr;
  config.tied_head = file.FindTensor("output.weight") == nullptr;
}

}  // namespace sluice::engine
