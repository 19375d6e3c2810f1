#include "engine/device_choice.h"

#include <charconv>

#include "engine/base/status.h"

namespace sluice::engine {

kernels::DType DeviceChoice::KvType(const EngineOptions& options) const {
  const KvDType type = options.kv_dtype.value_or(is_cuda() ? KvDType::kF16 : KvDType::kF32);
  return type == KvDType::kF16 ? kernels::DType::kF16 : kernels::DType::kF32;
}

std::string DeviceChoice::Describe() const {
  return name + ", compute capability " + std::to_string(major) + "." + std::to_string(minor) +
         (own_kernels ? ", its own kernels" : ", generic kernels");
}

absl::StatusOr<DeviceChoice> DeviceChoice::Open(const std::string& device) {
  DeviceChoice choice;
  if (device == "cpu") return choice;
  const std::string prefix = "cuda:";
  const char* end = device.data() + device.size();
  const bool has_prefix = device.rfind(prefix, 0) == 0;
  const auto [rest, error] = std::from_chars(
      device.data() + (has_prefix ? prefix.size() : device.size()), end, choice.index);
  if (!has_prefix || error != std::errc() || rest != end || choice.index < 0) {
    return InvalidArgument("device: expected 'cpu' or 'cuda:N', got '" + device.substr(0, 64) +
                           "'");
  }
  choice.backend = kernels::Backend::kCuda;
  ASSIGN_OR_RETURN(const kernels::DeviceFacts facts, kernels::OpenDevice(choice.index));
  choice.name = device + " " + facts.name;
  choice.major = facts.major;
  choice.minor = facts.minor;
  choice.own_kernels = facts.own_kernels;
  choice.free_bytes = facts.free_bytes;
  choice.total_bytes = facts.total_bytes;
  return choice;
}

}  // namespace sluice::engine
