// Copying pages of the KV cache, and the fault that tests plant.

#include <algorithm>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/workspace.h"

namespace sluice::kernels::cuda {
namespace {

constexpr int kCopyThreads = 128;
constexpr int kPairsALaunch = 256;

// By value: a launch needs no upload.
struct PagePairs {
  int32_t from[kPairsALaunch];
  int32_t to[kPairsALaunch];
};

// Block (i, 0) copies K of pair i, block (i, 1) V: 16 bytes a thread and turn, read and written
// once.
__global__ void copy_pages(PagePairs pairs, uint4* k, uint4* v, int64_t page_words) {
  let_next_start();
  wait_for_previous();
  uint4* const array = blockIdx.y == 0 ? k : v;
  const uint4* const from = array + pairs.from[blockIdx.x] * page_words;
  uint4* const to = array + pairs.to[blockIdx.x] * page_words;
  for (int64_t i = threadIdx.x; i < page_words; i += blockDim.x) to[i] = from[i];
}

__global__ void fault() { __trap(); }

const KernelModule kModule(copy_pages);

}  // namespace

absl::Status CopyPages(Exec& exec, std::span<const KvLayer> layers, std::span<const int32_t> from,
                       std::span<const int32_t> to) {
  const cudaStream_t stream = WorkspaceOf(exec).stream;
  for (const KvLayer& layer : layers) {
    // A page has 16 positions of at least two bytes: a multiple of 32 bytes in each array.
    const int64_t words = KvPageBytes(layer.type, layer.num_kv_heads, layer.head_size) / 2 / 16;
    for (size_t begin = 0; begin < from.size(); begin += kPairsALaunch) {
      const size_t count = std::min<size_t>(kPairsALaunch, from.size() - begin);
      PagePairs pairs;
      std::copy_n(from.begin() + begin, count, pairs.from);
      std::copy_n(to.begin() + begin, count, pairs.to);
      const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(count), 2),
                                 .block = dim3(kCopyThreads)};
      const absl::Status status =
          ToStatus(Launch(stream, shape, copy_pages, pairs, reinterpret_cast<uint4*>(layer.k),
                          reinterpret_cast<uint4*>(layer.v), words),
                   "copying pages");
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

absl::Status PlantFault(Exec& exec) {
  fault<<<1, 1, 0, WorkspaceOf(exec).stream>>>();
  return ToStatus(cudaGetLastError(), "planting a fault");
}

}  // namespace sluice::kernels::cuda
