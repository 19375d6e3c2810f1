#pragma once

// The kernels behind LaunchLinear, spread over files for the compiler's sake. Each takes the
// configuration that ConfigureLinear made for its path.

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/linear.h"

namespace sluice::kernels::cuda {

cudaError_t LaunchSlices(const LinearArgs& args, const LinearConfig& config, cudaStream_t stream);

cudaError_t LaunchStreamFew(const LinearArgs& args, const LinearConfig& config,
                            cudaStream_t stream);  // config.tokens 8, 16, 32
cudaError_t LaunchStreamMany(const LinearArgs& args, const LinearConfig& config,
                             cudaStream_t stream);  // 64, 128

// All tasks' weights of one type. By the form of its units.
cudaError_t LaunchTilesHalf(const LinearArgs& args, const LinearConfig& config,
                            cudaStream_t stream);
cudaError_t LaunchTilesLegacy(const LinearArgs& args, const LinearConfig& config,
                              cudaStream_t stream);
cudaError_t LaunchTilesSuper(const LinearArgs& args, const LinearConfig& config,
                             cudaStream_t stream);

// The launches of a product on kTiles128 or kTiles256, tasks of one type: `config`, or what it has
// of whole rounds of the card, and a cluster's way for the items that are left, which would keep
// few multiprocessors as long.
std::vector<LinearConfig> TilesLaunches(const LinearArgs& args, const LinearConfig& config,
                                        const LinearDevice& device);

// A configuration, and how long its launch is thought to take.
struct LinearChoice {
  LinearConfig config;
  double nanos = 0.0;
  double item_nanos = 0.0;  // the longest item of the last type (kTiles)
};
// The ways to run a product on kStream, of which ConfigureLinear takes the quickest.
std::vector<LinearChoice> LinearChoices(const LinearArgs& args, int32_t multiprocessors);

// LaunchLinear with that configuration.
absl::Status LaunchLinearAs(const LinearArgs& args, const LinearConfig& config,
                            const LinearDevice& device, cudaStream_t stream);

// True when this build has code for the calling thread's device that uses wgmma.
bool HasWgmmaCode();

}  // namespace sluice::kernels::cuda
