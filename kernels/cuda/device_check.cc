#include "kernels/cuda/device_check.h"

namespace sluice::kernels::cuda {
namespace {

constexpr int kLeastMajor = 8;  // compute capability

std::string Version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// Empty when the driver works.
std::string DriverProblem(const DeviceQuery& query) {
  switch (query.driver) {
    case DeviceQuery::Driver::kWorks:
      return "";
    case DeviceQuery::Driver::kNone:
      return "no NVIDIA driver is loaded";
    case DeviceQuery::Driver::kTooOld:
      return "the NVIDIA driver is too old: expected one for CUDA " +
             Version(query.runtime_version) + " or newer, got one for CUDA " +
             Version(query.driver_version);
    case DeviceQuery::Driver::kMismatch:
      return "the NVIDIA driver's library and kernel module are of different versions: restart the "
             "machine, or load the module anew";
    case DeviceQuery::Driver::kNoDevice:
      return "the NVIDIA driver finds no device";
    case DeviceQuery::Driver::kOtherError:
      return "the NVIDIA driver does not work: " + query.error;
  }
  return "";
}

}  // namespace

absl::Status CheckDevice(int index, const DeviceQuery& query) {
  const std::string subject = "cuda:" + std::to_string(index) + ": ";
  const auto problem = [&](const std::string& what) {
    return absl::FailedPreconditionError(subject + what);
  };
  if (const std::string driver = DriverProblem(query); !driver.empty()) return problem(driver);
  if (index < 0 || index >= query.num_devices) {
    return problem("expected a device below " + std::to_string(query.num_devices) +
                   ", the number found");
  }
  const std::string capability = std::to_string(query.major) + "." + std::to_string(query.minor);
  if (query.major < kLeastMajor) {
    return problem(query.name + ": expected compute capability " + std::to_string(kLeastMajor) +
                   ".0 or more, got " + capability);
  }
  if (!query.has_kernels) {
    return problem(query.name + ": this program has no kernels for compute capability " +
                   capability + ", only for " + query.built_for);
  }
  return absl::OkStatus();
}

}  // namespace sluice::kernels::cuda
