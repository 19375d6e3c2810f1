// Which kernels attend to a step, and the outcome's operand rows.

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/row_sources.cuh"

namespace sluice::kernels::cuda {
namespace {

// Merges the splits of one token's heads when there are several, and makes its operand row.
__global__ void __launch_bounds__(kRowThreads)
    attention_rows(const __grid_constant__ AttentionArgs args) {
  extern __shared__ float values[];
  __shared__ float shared[16];
  let_next_start();
  wait_for_previous();
  const int t = blockIdx.x;
  load_attention_row(args, t, values, args.values);
  write_operand_row(values, operand_shift(values, args.out.units, shared), t, args.out);
}

const KernelModule kModule(attention_rows);

}  // namespace

absl::Status LaunchAttention(const AttentionArgs& args, cudaStream_t stream) {
  const bool tensor_cores = args.kv.type == DType::kF16 && args.kv.head_size % 8 == 0;
  if (args.max_parts > 0) {
    const absl::Status status =
        tensor_cores ? LaunchSplitKv(args, stream) : LaunchChainItems(args, stream);
    if (!status.ok()) return status;
  }
  if (args.num_blocks == 0) return absl::OkStatus();
  if (!tensor_cores) return LaunchChainBlocks(args, stream);
  return HasPromptKernel(args) ? LaunchPrompt(args, stream) : LaunchRagged(args, stream);
}

absl::Status LaunchAttentionRows(const AttentionArgs& args, cudaStream_t stream) {
  if (args.max_parts == 0) {  // all of them lie there as they are
    return LaunchNormRows({.source = args.values,
                           .num_rows = args.num_tokens,
                           .cols = args.num_heads * static_cast<int32_t>(args.kv.head_size),
                           .out = args.out},
                          stream);
  }
  const size_t bytes = static_cast<size_t>(args.out.units) * kUnitCols * sizeof(float);
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(args.num_tokens)),
                             .block = dim3(kRowThreads),
                             .shared_bytes = bytes};
  return ToStatus(Launch(stream, shape, attention_rows, args), "attention_rows");
}

}  // namespace sluice::kernels::cuda
