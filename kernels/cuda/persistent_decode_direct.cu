// persistent_decode where making operands of quants is most of the work, and the lists of the
// copies that its rings take.

#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/persistent_decode.cuh"

namespace sluice::kernels::cuda {
namespace {

// One thread for each warp of the persistent kernel, on a grid of the same blocks.
template <int kFormIndex>
__global__ void list_chunks(const __grid_constant__ DecodeArgs args, int32_t* most) {
  constexpr DecodeForm kForm = kForms[kFormIndex];
  const int warp = threadIdx.x;
  const std::byte* tables = args.tables.at;
  const TeamWork<kForm> work = {
      {reinterpret_cast<const DecodeStage*>(tables),
       reinterpret_cast<const DecodeTask*>(tables + args.tables.tasks_at),
       reinterpret_cast<const DecodeShape*>(tables + args.tables.shapes_at),
       args.tables.num_stages}};
  auto* to = const_cast<ChunkCopy*>(args.chunks) +
             static_cast<int64_t>(blockIdx.x * kForm.warps() + warp) * args.chunks_each;
  int count = 2;  // with the end, which is read ahead
  for (ChunkCursor<kForm> cursor(work, warp); !cursor.done(); cursor.advance(), ++count) {
    if (most == nullptr) *to++ = cursor.copy();
  }
  if (most == nullptr) {
    to[0] = to[1] = {};
  } else {
    atomicMax(most, count);
  }
}

const KernelModule kModule(persistent_decode<64, 1>);

}  // namespace

absl::Status ListChunks(const DecodeArgs& args, int blocks, int32_t* most, cudaStream_t stream) {
  list_chunks<1><<<static_cast<unsigned>(blocks), kDirectForm.warps(), 0, stream>>>(args, most);
  return ToStatus(cudaGetLastError(), "listing the copies of weights");
}

DecodeKernel DirectDecodeKernel(int head_size) { return DecodeKernelOf<1>(head_size); }

}  // namespace sluice::kernels::cuda
