#include "kernels/cuda/kernel_module.h"

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <string>
#include <vector>

#include "kernels/core/status.h"
#include "kernels/cuda/device.h"

namespace sluice::kernels::cuda {
namespace {

// A kernel of each module.
std::vector<const void*>& Modules() {
  static std::vector<const void*> modules;
  return modules;
}

// The runtime has no calls for this.
struct Driver {
  PFN_cuFuncGetModule_v11000 module_of = nullptr;
  PFN_cuModuleGetFunctionCount_v12040 count = nullptr;
  PFN_cuModuleEnumerateFunctions_v12040 enumerate = nullptr;
  PFN_cuFuncLoad_v12040 load = nullptr;
};

template <typename Function>
absl::Status Find(const char* name, unsigned version, Function& function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = {};
  RETURN_IF_ERROR(ToStatus(
      cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &result), name));
  if (result != cudaDriverEntryPointSuccess) {
    return absl::InternalError(std::string("the driver lacks ") + name);
  }
  function = reinterpret_cast<Function>(found);
  return absl::OkStatus();
}

absl::Status FindDriver(Driver& driver) {
  RETURN_IF_ERROR(Find("cuFuncGetModule", 11000, driver.module_of));
  RETURN_IF_ERROR(Find("cuModuleGetFunctionCount", 12040, driver.count));
  RETURN_IF_ERROR(Find("cuModuleEnumerateFunctions", 12040, driver.enumerate));
  return Find("cuFuncLoad", 12040, driver.load);
}

absl::Status Check(CUresult result) {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  if (result == CUDA_ERROR_OUT_OF_MEMORY) {
    return absl::ResourceExhaustedError("loading kernels: no device memory is left");
  }
  return absl::InternalError("loading kernels: CUDA driver error " +
                             std::to_string(static_cast<int>(result)));
}

}  // namespace

KernelModule::KernelModule(const void* kernel) { Modules().push_back(kernel); }

absl::StatusOr<int> LoadKernels() {
  int loaded = 0;
  Driver driver;
  RETURN_IF_ERROR(FindDriver(driver));
  for (const void* kernel : Modules()) {
    cudaFunction_t one = nullptr;
    const cudaError_t error = cudaGetFuncBySymbol(&one, kernel);
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
      cudaGetLastError();
      continue;
    }
    RETURN_IF_ERROR(ToStatus(error, "loading kernels"));
    CUmodule module = nullptr;
    RETURN_IF_ERROR(Check(driver.module_of(&module, one)));
    unsigned count = 0;
    RETURN_IF_ERROR(Check(driver.count(&count, module)));
    std::vector<CUfunction> functions(count);
    RETURN_IF_ERROR(Check(driver.enumerate(functions.data(), count, module)));
    for (CUfunction function : functions) RETURN_IF_ERROR(Check(driver.load(function)));
    loaded += static_cast<int>(count);
  }
  return loaded;
}

}  // namespace sluice::kernels::cuda
