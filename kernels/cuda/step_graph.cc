// Replaying the forward pass of a step of single tokens as a CUDA graph.

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/workspace.h"

namespace sluice::kernels::cuda {
namespace {

#define RETURN_IF_ERROR(expr)                                         \
  do {                                                                \
    if (absl::Status status_ = (expr); !status_.ok()) return status_; \
  } while (false)

absl::StatusOr<cudaGraphExec_t> Record(cudaStream_t stream,
                                       const std::function<absl::Status()>& ops) {
  RETURN_IF_ERROR(ToStatus(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                           "recording a step"));
  const absl::Status recorded = ops();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  RETURN_IF_ERROR(recorded);
  RETURN_IF_ERROR(ToStatus(ended, "recording a step"));
  cudaGraphExec_t exec = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  RETURN_IF_ERROR(ToStatus(error, "making a graph of a step"));
  return exec;
}

// Makes the persistent kernel's program of `ops`, once, for steps uploaded from now on; models that
// it cannot do go on with graphs.
absl::Status TryRecordLone(const Exec& exec, CudaWorkspace& workspace,
                           const std::function<absl::Status()>& ops) {
  if (!workspace.lone.possible || workspace.lone.tried) return absl::OkStatus();
  workspace.lone.tried = true;
  DecodeRecorder recorder(exec.workspace_shape());
  workspace.recorder = &recorder;
  const absl::Status recorded = ops();
  workspace.recorder = nullptr;
  RETURN_IF_ERROR(recorded);
  auto program = recorder.Finish();
  if (program.ok()) {
    workspace.lone.program = *std::move(program);
  } else if (!absl::IsUnimplemented(program.status())) {
    return program.status();
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunStep(Exec& exec, const BatchView& batch, const std::function<absl::Status()>& ops) {
  CudaWorkspace& workspace = WorkspaceOf(exec);
  if (workspace.lone.takes_step) {
    return workspace.lone.program->Launch(workspace.lone.step, workspace.stream);
  }
  if (workspace.graph_rows == 0) return ops();
  StepGraph& graph = workspace.graphs[workspace.graph_rows];
  // The first time sets what launches need once: attributes of kernels, tables of frequencies.
  if (!graph.ran) {
    graph.ran = true;
    return ops();
  }
  if (workspace.graph_rows == 1) RETURN_IF_ERROR(TryRecordLone(exec, workspace, ops));
  if (graph.exec == nullptr) {
    auto recorded = Record(workspace.stream, ops);
    if (!recorded.ok()) return recorded.status();
    graph.exec = *recorded;
  }
  return ToStatus(cudaGraphLaunch(graph.exec, workspace.stream), "replaying a step");
}

}  // namespace sluice::kernels::cuda
