#pragma once

#include <string>

#include "absl/status/status.h"

namespace sluice::kernels::cuda {

// What driver and runtime say of a device before anything of it is used. A value, so that what we
// say about it is tested without one.
struct DeviceQuery {
  enum class Driver {
    kWorks,
    kNone,        // no driver is loaded
    kTooOld,      // for the runtime in this program
    kMismatch,    // its library and its kernel module are of different versions
    kNoDevice,    // it works and has none
    kOtherError,  // `error` says which
  };
  Driver driver = Driver::kWorks;
  std::string error;        // "CUDA error 999 (cudaErrorUnknown): unknown error"
  int driver_version = 0;   // the newest CUDA that the driver serves: 12040 is 12.4
  int runtime_version = 0;  // the CUDA of this program
  int num_devices = 0;
  std::string name;  // of the device: "NVIDIA H200"
  int major = 0;     // its compute capability
  int minor = 0;
  bool has_kernels = true;     // this program has code for it
  std::string built_for = {};  // compute capabilities, "90a"
};

// OK, or FAILED_PRECONDITION: one line that says what is wrong with device `index` and what is
// expected instead.
absl::Status CheckDevice(int index, const DeviceQuery& query);

}  // namespace sluice::kernels::cuda
