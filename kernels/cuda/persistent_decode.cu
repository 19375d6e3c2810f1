// persistent_decode where stages wait for each other, and what launches any form of it.

#include <string>

#include "kernels/core/status.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/persistent_decode.cuh"

namespace sluice::kernels::cuda {
namespace {

DecodeKernel KernelFor(const DecodeArgs& args) {
  return args.form.prepares ? PreparedDecodeKernel(args.head_size)
                            : DirectDecodeKernel(args.head_size);
}

const KernelModule kModule(persistent_decode<64, 0>);

}  // namespace

DecodeKernel PreparedDecodeKernel(int head_size) { return DecodeKernelOf<0>(head_size); }

absl::Status LaunchPersistentDecode(const DecodeArgs& args, const DecodeStep& step, int blocks,
                                    size_t shared_bytes, cudaStream_t stream) {
  // All blocks wait for each other: every one has a multiprocessor of its own, and no other kernel
  // of this kind shares the device (engine/load_model.cc).
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(blocks)),
                             .block = dim3(static_cast<unsigned>(block_threads(args.form))),
                             .shared_bytes = shared_bytes};
  return ToStatus(Launch(stream, shape, KernelFor(args), args, step), "persistent_decode");
}

absl::Status PreparePersistentDecode(const DecodeArgs& args, size_t shared_bytes) {
  const auto* kernel = reinterpret_cast<const void*>(KernelFor(args));
  cudaFuncAttributes attributes = {};
  RETURN_IF_ERROR(ToStatus(cudaFuncGetAttributes(&attributes, kernel), "persistent_decode"));
  // With fewer its warps would wait for registers that nobody gives back.
  if (attributes.numRegs < launch_registers(args.form)) {
    return absl::UnimplementedError("persistent_decode was compiled to " +
                                    std::to_string(attributes.numRegs) + " registers a thread");
  }
  return ToStatus(AllowShared(kernel, shared_bytes), "persistent_decode");
}

}  // namespace sluice::kernels::cuda
