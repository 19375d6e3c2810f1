#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "engine/base/status.h"
#include "engine/model/architecture.h"
#include "engine/model/model_config.h"
#include "engine/model/tensor_places.h"
#include "engine/model_file/model_file.h"

namespace sluice::engine {
namespace {

constexpr int kMaxDescribedLayers = 1024;

// As many layers as the file says it has or, where it says nothing sensible, as its tensors show.
int NumLayers(const ModelFile& file, std::string_view architecture) {
  const auto said = file.GetUint(std::string(architecture) + ".block_count");
  if (said.ok() && said->has_value() && **said >= 1 && **said <= kMaxDescribedLayers) {
    return static_cast<int>(**said);
  }
  int layers = 0;
  for (const FileTensor& tensor : file.tensors()) {
    constexpr std::string_view kPrefix = "blk.";
    if (!tensor.name.starts_with(kPrefix)) continue;
    int layer = 0;
    const char* begin = tensor.name.data() + kPrefix.size();
    const auto [rest, error] =
        std::from_chars(begin, tensor.name.data() + tensor.name.size(), layer);
    if (error == std::errc() && layer >= 0 && layer < kMaxDescribedLayers) {
      layers = std::max(layers, layer + 1);
    }
  }
  return layers;
}

}  // namespace

absl::StatusOr<TensorRoles> DescribeTensors(const ModelFile& file) {
  ASSIGN_OR_RETURN(const Architecture architecture, Architecture::Of(file));
  ModelConfig config;
  config.architecture = architecture.name;
  config.num_layers = NumLayers(file, architecture.name);
  architecture.ReadTensorTraits(file, config);

  TensorRoles roles;
  std::map<std::string, std::string> role_of;
  for (const TensorPlace& place : TensorPlaces(config)) {
    const bool is_first = role_of.emplace(place.name, place.role).second;
    if (is_first && place.required && file.FindTensor(place.name) == nullptr) {
      roles.missing.push_back(place.name);
    }
  }
  for (const FileTensor& tensor : file.tensors()) {
    const auto found = role_of.find(tensor.name);
    if (found == role_of.end()) roles.unused.push_back(tensor.name);
    std::string role = found == role_of.end() ? "unused" : found->second;
    if (config.tied_head && tensor.name == "token_embd.weight") role += " and output head";
    roles.present.push_back({tensor.name, std::move(role)});
  }
  return roles;
}

}  // namespace sluice::engine
