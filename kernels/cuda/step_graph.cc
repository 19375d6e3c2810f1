// Replaying the forward pass of a step of single tokens as a CUDA graph.

#include <vector>

#include "kernels/core/status.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/workspace.h"

namespace sluice::kernels::cuda {
namespace {

// Turns every edge along which a kernel may begin early into one that waits for the end.
absl::Status WaitForEnds(cudaGraph_t graph) {
  size_t count = 0;
  RETURN_IF_ERROR(ToStatus(cudaGraphGetEdges(graph, nullptr, nullptr, nullptr, &count),
                           "the edges of a graph"));
  std::vector<cudaGraphNode_t> from(count), to(count);
  std::vector<cudaGraphEdgeData> edges(count);
  RETURN_IF_ERROR(ToStatus(cudaGraphGetEdges(graph, from.data(), to.data(), edges.data(), &count),
                           "the edges of a graph"));
  const cudaGraphEdgeData full = {};
  for (size_t i = 0; i < count; ++i) {
    if (edges[i].type != cudaGraphDependencyTypeProgrammatic) continue;
    RETURN_IF_ERROR(
        ToStatus(cudaGraphRemoveDependencies(graph, &from[i], &to[i], &edges[i], 1), "an edge"));
    RETURN_IF_ERROR(
        ToStatus(cudaGraphAddDependencies(graph, &from[i], &to[i], &full, 1), "an edge"));
  }
  return absl::OkStatus();
}

absl::StatusOr<cudaGraphExec_t> Record(cudaStream_t stream, bool dependent_launches,
                                       const std::function<absl::Status()>& ops) {
  RETURN_IF_ERROR(ToStatus(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                           "recording a step"));
  const absl::Status recorded = ops();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  if (!recorded.ok() && graph != nullptr) cudaGraphDestroy(graph);
  RETURN_IF_ERROR(recorded);
  RETURN_IF_ERROR(ToStatus(ended, "recording a step"));
  absl::Status status = dependent_launches ? absl::OkStatus() : WaitForEnds(graph);
  cudaGraphExec_t exec = nullptr;
  if (status.ok()) {
    status = ToStatus(cudaGraphInstantiate(&exec, graph, 0), "making a graph of a step");
  }
  cudaGraphDestroy(graph);
  if (!status.ok()) return status;
  return exec;
}

// Makes the persistent kernel's program of `ops`, once, for steps uploaded from now on; models that
// it cannot do, or that leave no memory for it, go on with graphs.
absl::Status TryRecordLone(const Exec& exec, CudaWorkspace& workspace,
                           const std::function<absl::Status()>& ops) {
  if (!workspace.lone.possible || workspace.lone.tried) return absl::OkStatus();
  workspace.lone.tried = true;
  DecodeRecorder recorder(exec.workspace_shape());
  workspace.recorder = &recorder;
  const absl::Status recorded = ops();
  workspace.recorder = nullptr;
  RETURN_IF_ERROR(recorded);
  auto program = recorder.Finish(exec.options().persistent_decode);
  if (program.ok()) {
    workspace.lone.program = *std::move(program);
  } else if (!absl::IsUnimplemented(program.status()) &&
             !absl::IsResourceExhausted(program.status())) {
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
  if (graph.exec != nullptr) {
    return ToStatus(cudaGraphLaunch(graph.exec, workspace.stream), "replaying a step");
  }
  // The first time sets what launches need once: attributes of kernels, tables of frequencies.
  static_assert(kStepsToGraph == 2);
  if (graph.runs++ == 0) return ops();
  if (workspace.graph_rows == 1) RETURN_IF_ERROR(TryRecordLone(exec, workspace, ops));
  workspace.tuner.BeginTrial();
  const absl::Status ran = ops();
  workspace.tuner.EndTrial();
  RETURN_IF_ERROR(ran);
  RETURN_IF_ERROR(workspace.tuner.Learn());
  auto recorded = Record(workspace.stream, exec.dependent_launches(), ops);
  if (!recorded.ok()) return recorded.status();
  graph.exec = *recorded;
  return ToStatus(cudaGraphUpload(graph.exec, workspace.stream), "a graph's way to the device");
}

}  // namespace sluice::kernels::cuda
