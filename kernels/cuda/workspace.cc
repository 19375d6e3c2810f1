#include "kernels/cuda/workspace.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/status.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/step_buckets.h"

namespace sluice::kernels::cuda {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kMaxPartialBytes = int64_t{512} << 20;

// Lays arrays out one after the other; with a base of null it only counts.
class Layout {
 public:
  explicit Layout(std::byte* base) : base_(base) {}

  template <typename T>
  T* Take(int64_t count) {
    T* array = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return array;
  }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  int64_t bytes_ = 0;
};

BatchArrays TakeBatch(Layout& layout, const WorkspaceShape& shape,
                      const AttentionShape& attention) {
  BatchArrays arrays;
  arrays.tokens = layout.Take<int32_t>(shape.max_tokens);
  arrays.positions = layout.Take<int32_t>(shape.max_tokens);
  arrays.token_rows = layout.Take<int32_t>(shape.max_tokens);
  arrays.row_begins = layout.Take<int32_t>(shape.max_rows + 1);
  arrays.page_begins = layout.Take<int32_t>(shape.max_rows + 1);
  arrays.logit_tokens = layout.Take<int32_t>(std::max(shape.max_logit_rows, shape.max_rows));
  arrays.adapters = layout.Take<int32_t>(shape.max_rows);
  arrays.slots = layout.Take<int32_t>(shape.max_tokens);
  arrays.num_items = layout.Take<int32_t>(1);
  arrays.blocks = layout.Take<AttentionBlock>(MaxBlocks(attention));
  arrays.items = layout.Take<AttentionItem>(MaxItems(attention));
  arrays.pages = layout.Take<int32_t>(shape.max_rows * (shape.max_pages + 1));
  return arrays;
}

// Room for the partial outcomes of all splits of as many tokens as steps of few tokens a row have,
// where that is not too much.
AttentionShape AttentionShapeOf(const WorkspaceShape& shape, int num_multiprocessors) {
  const int64_t splits = (shape.max_pages * kPageTokens + kSplitKeys - 1) / kSplitKeys;
  const int64_t slot_bytes =
      shape.num_heads * (shape.head_size + 2) * static_cast<int64_t>(sizeof(float));
  AttentionShape attention;
  attention.num_heads = shape.num_heads;
  attention.num_kv_heads = shape.num_kv_heads;
  attention.head_size = shape.head_size;
  attention.num_multiprocessors = num_multiprocessors;
  attention.max_tokens = shape.max_tokens;
  attention.max_rows = shape.max_rows;
  attention.max_slots = std::min(std::min(shape.max_tokens, 2 * shape.max_rows) * splits,
                                 kMaxPartialBytes / slot_bytes);
  return attention;
}

void TakeScratch(Layout& layout, const WorkspaceShape& shape, CudaWorkspace& workspace) {
  const int64_t max_rows = std::max(shape.max_tokens, shape.max_logit_rows);
  const int64_t qkv_width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_size;
  workspace.normed.units = static_cast<int32_t>((shape.width + kUnitCols - 1) / kUnitCols);
  workspace.normed.x = layout.Take<uint4>(OperandBytes(max_rows, shape.width) / 16);
  workspace.normed.factors = layout.Take<float>(max_rows);
  workspace.qkv = layout.Take<float>(shape.max_tokens * qkv_width);
  workspace.gate = layout.Take<float>(shape.max_tokens * shape.ffn_width);
  workspace.up = layout.Take<float>(shape.max_tokens * shape.ffn_width);
  workspace.product = layout.Take<float>(shape.max_tokens * shape.width);
  workspace.partials = layout.Take<float>(workspace.attention_shape.max_slots * shape.num_heads *
                                          (shape.head_size + 2));
  workspace.previous_tokens = layout.Take<int32_t>(shape.max_logit_rows);
  for (CudaWorkspace::RopeTable& rope : workspace.ropes) {
    rope.frequencies = layout.Take<float>(shape.head_size / 2 + 1);
    rope.rotations = layout.Take<float2>(shape.max_tokens * (shape.head_size / 2 + 1));
  }
}

int64_t MostGraphRows(const WorkspaceShape& shape) {
  return std::min({shape.max_rows, shape.max_tokens, shape.max_logit_rows});
}

// A step of single tokens that all want logits gets rows of padding up to the next bucket, whose K
// and V go to page 0. Returns the view of the padded step on the host.
BatchView PadToBucket(const WorkspaceShape& shape, const BatchView& host,
                      CudaWorkspace& workspace) {
  BatchArrays& to = workspace.host;
  BatchView view = host;
  workspace.graph_rows = 0;
  if (host.num_tokens == host.num_rows && host.num_tokens == host.num_logit_rows) {
    const int32_t bucket = BucketOf(host.num_rows, MostGraphRows(shape));
    if (bucket > 0) {
      workspace.graph_rows = bucket;
      for (int64_t row = host.num_rows; row < bucket; ++row) {
        to.tokens[row] = 0;
        to.positions[row] = 0;
        to.logit_tokens[row] = static_cast<int32_t>(row);
        to.row_begins[row + 1] = static_cast<int32_t>(row + 1);
        to.pages[to.page_begins[row]] = 0;
        to.page_begins[row + 1] = to.page_begins[row] + 1;
      }
      view.num_tokens = view.num_rows = view.num_logit_rows = bucket;
    }
  }
  view.tokens = to.tokens;
  view.positions = to.positions;
  view.row_begins = to.row_begins;
  view.page_begins = to.page_begins;
  view.pages = to.pages;
  view.logit_tokens = to.logit_tokens;
  return view;
}

// Cuts the step into the work of attention. A step that needs blocks cannot be a graph's: their
// number is not the rows'.
void PlanStep(const BatchView& host, CudaWorkspace& workspace) {
  BatchArrays& to = workspace.host;
  for (int64_t row = 0; row < host.num_rows; ++row) {
    std::fill(to.token_rows + host.row_begins[row], to.token_rows + host.row_begins[row + 1],
              static_cast<int32_t>(row));
  }
  AttentionPlan& plan = workspace.plan;
  plan.items = to.items;
  plan.blocks = to.blocks;
  plan.slots = to.slots;
  const AttentionShape& shape = workspace.attention_shape;
  PlanAttention(shape, {host.row_begins, static_cast<size_t>(host.num_rows) + 1}, host.positions,
                host.page_begins, plan);
  *to.num_items = plan.num_items;
  if (plan.num_blocks > 0) workspace.graph_rows = 0;
  // A graph's launches serve contexts of any length.
  const int64_t items = workspace.graph_rows > 0 ? MaxItems(shape) : plan.num_items;
  workspace.max_parts = static_cast<int32_t>(items * shape.item_parts());
}

// The same step with the device's addresses.
BatchView OnDevice(BatchView view, const CudaWorkspace& workspace) {
  const BatchArrays& from = workspace.device;
  view.tokens = from.tokens;
  view.positions = from.positions;
  view.row_begins = from.row_begins;
  view.page_begins = from.page_begins;
  view.pages = from.pages;
  view.logit_tokens = from.logit_tokens;
  view.adapters = from.adapters;
  view.previous_tokens = workspace.previous_tokens;
  return view;
}

// Copies the step to `lone` when it is one that the persistent kernel takes.
bool TakeLoneStep(const Exec& exec, const BatchView& host, LoneDecode& lone) {
  if (lone.program == nullptr || exec.observer() != nullptr || host.num_tokens != 1 ||
      host.num_logit_rows != 1 || !lone.program->Takes(host.positions[0])) {
    return false;
  }
  lone.step.token = host.tokens[0];
  lone.step.position = host.positions[0];
  const int32_t* pages = host.pages + host.page_begins[0];
  std::copy(pages, pages + host.positions[0] / kPageTokens + 1, lone.step.pages);
  return true;
}

}  // namespace

CudaWorkspace::~CudaWorkspace() {
  for (const auto& [shape, graph] : graphs) {
    if (graph.exec != nullptr) cudaGraphExecDestroy(graph.exec);
  }
  for (cudaEvent_t event : uploaded) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  if (stream != nullptr) cudaStreamDestroy(stream);
}

absl::StatusOr<std::unique_ptr<Exec::Workspace>> MakeWorkspace(const WorkspaceShape& shape,
                                                               const Exec& exec) {
  auto workspace = std::make_unique<CudaWorkspace>();
  RETURN_IF_ERROR(ToStatus(cudaGetDevice(&workspace->device_index), "the current device"));
  RETURN_IF_ERROR(
      ToStatus(cudaStreamCreateWithFlags(&workspace->stream, cudaStreamNonBlocking), "stream"));
  int num_multiprocessors = 0;
  RETURN_IF_ERROR(
      ToStatus(cudaDeviceGetAttribute(&num_multiprocessors, cudaDevAttrMultiProcessorCount,
                                      workspace->device_index),
               "multiprocessors"));
  workspace->attention_shape = AttentionShapeOf(shape, num_multiprocessors);
  auto linear_device = FindLinearDevice();
  if (!linear_device.ok()) return linear_device.status();
  workspace->linear_device = *linear_device;
  workspace->linear_device.whole_k = exec.options().fast_numerics;
  workspace->lone.possible =
      linear_device->has_wgmma && exec.options().persistent_decode != PersistentDecode::kOff;
  Layout count(nullptr);
  TakeBatch(count, shape, workspace->attention_shape);
  workspace->batch_bytes = count.bytes();
  TakeScratch(count, shape, *workspace);
  auto memory = AllocateMemory(static_cast<size_t>(count.bytes()));
  if (!memory.ok()) return memory.status();
  workspace->memory = std::move(*memory);
  for (size_t i = 0; i < workspace->pinned.size(); ++i) {
    auto pinned = AllocatePinned(static_cast<size_t>(workspace->batch_bytes));
    if (!pinned.ok()) return pinned.status();
    workspace->pinned[i] = std::move(*pinned);
    Layout host(workspace->pinned[i].bytes());
    workspace->hosts[i] = TakeBatch(host, shape, workspace->attention_shape);
    RETURN_IF_ERROR(ToStatus(
        cudaEventCreateWithFlags(&workspace->uploaded[i], cudaEventDisableTiming), "event"));
  }
  Layout device(workspace->memory.bytes());
  workspace->device = TakeBatch(device, shape, workspace->attention_shape);
  TakeScratch(device, shape, *workspace);
  return std::unique_ptr<Exec::Workspace>(std::move(workspace));
}

std::vector<int64_t> RowsOfGraphs(const Exec& exec) {
  return BucketsUpTo(MostGraphRows(exec.workspace_shape()));
}

absl::StatusOr<BatchView> UploadBatch(Exec& exec, const BatchView& host) {
  CudaWorkspace& workspace = WorkspaceOf(exec);
  const WorkspaceShape& shape = exec.workspace_shape();
  RETURN_IF_ERROR(ToStatus(cudaSetDevice(workspace.device_index), "choosing the device"));
  workspace.lone.takes_step = TakeLoneStep(exec, host, workspace.lone);
  if (workspace.lone.takes_step) return OnDevice(host, workspace);
  const size_t turn = workspace.num_uploads++ % workspace.pinned.size();
  RETURN_IF_ERROR(ToStatus(cudaEventSynchronize(workspace.uploaded[turn]), "an earlier upload"));
  workspace.host = workspace.hosts[turn];
  BatchArrays& to = workspace.host;
  const auto copy = [](int32_t* target, const int32_t* source, int64_t count) {
    std::memcpy(target, source, static_cast<size_t>(count) * sizeof(int32_t));
  };
  copy(to.tokens, host.tokens, host.num_tokens);
  copy(to.positions, host.positions, host.num_tokens);
  copy(to.row_begins, host.row_begins, host.num_rows + 1);
  copy(to.page_begins, host.page_begins, host.num_rows + 1);
  copy(to.logit_tokens, host.logit_tokens, host.num_logit_rows);
  copy(to.pages, host.pages, host.page_begins[host.num_rows]);
  BatchView view = PadToBucket(shape, host, workspace);
  const int64_t num_pages = to.page_begins[view.num_rows];
  PlanStep(view, workspace);
  const std::byte* begin = workspace.pinned[turn].bytes();
  const auto bytes =
      static_cast<size_t>(reinterpret_cast<std::byte*>(to.pages + num_pages) - begin);
  RETURN_IF_ERROR(ToStatus(cudaMemcpyAsync(workspace.memory.bytes(), begin, bytes,
                                           cudaMemcpyHostToDevice, workspace.stream),
                           "uploading a step"));
  RETURN_IF_ERROR(
      ToStatus(cudaEventRecord(workspace.uploaded[turn], workspace.stream), "uploading a step"));
  return OnDevice(view, workspace);
}

absl::Status ReadStepKv(Exec& exec, const BatchView& batch, const KvLayer& kv, bool value,
                        float* out) {
  RETURN_IF_ERROR(Synchronize(exec));
  const BatchArrays& step = WorkspaceOf(exec).host;
  const auto bytes =
      static_cast<size_t>(kv.num_pages * KvPageBytes(kv.type, kv.num_kv_heads, kv.head_size) / 2);
  std::vector<std::byte> pages(bytes);
  RETURN_IF_ERROR(CopyFromDevice(pages.data(), value ? kv.v : kv.k, bytes));
  KvLayer on_host = kv;
  on_host.k = on_host.v = pages.data();
  for (int64_t row = 0; row < batch.num_rows; ++row) {
    const int32_t first_page = step.page_begins[row];
    const int32_t begin = step.row_begins[row];
    ReadKv(on_host,
           {step.pages + first_page, static_cast<size_t>(step.page_begins[row + 1] - first_page)},
           {step.positions + begin, static_cast<size_t>(step.row_begins[row + 1] - begin)}, value,
           out + begin * kv.num_kv_heads * kv.head_size);
  }
  return absl::OkStatus();
}

absl::Status Synchronize(Exec& exec) {
  return ToStatus(cudaStreamSynchronize(WorkspaceOf(exec).stream), "waiting for the device");
}

}  // namespace sluice::kernels::cuda
