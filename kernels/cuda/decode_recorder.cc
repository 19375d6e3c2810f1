#include "kernels/cuda/decode_recorder.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/core/status.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/linear_stage.h"

namespace sluice::kernels::cuda {
namespace {

DecodeShape ShapeOf(const PackedWeight& weight) {
  const PackedLayout layout = PackedLayout::Of(weight.type, weight.rows, weight.cols);
  const auto at = [](int64_t begin, int64_t end) {
    return begin == end ? 0 : static_cast<uint32_t>(begin);
  };
  DecodeShape shape;
  shape.super_bytes = static_cast<uint8_t>(layout.super_bytes);
  shape.row_factors_at = at(layout.rows_at, layout.bytes);
  shape.rows = layout.rows;
  shape.tiles = layout.tiles;
  shape.units = layout.units;
  shape.slice_units = SliceUnits(layout.tiles, layout.units);
  shape.slices_log2 = static_cast<uint8_t>(NumSlicesLog2(layout.tiles));
  shape.num_slices =
      static_cast<uint8_t>((layout.units + shape.slice_units - 1) / shape.slice_units);
  shape.type = layout.type;
  shape.unit_bytes = static_cast<uint16_t>(layout.unit_bytes);
  return shape;
}

bool IsPlainRms(const Norm& norm) {
  return norm.weight != nullptr && norm.bias == nullptr && norm.kind == NormKind::kRms;
}

}  // namespace

int32_t DecodeRecorder::TakeHandoff(int64_t floats) {
  const int64_t at = args_.handoff_floats;
  const int64_t end = at + (floats + 31) / 32 * 32;
  Require(end < int64_t{1} << 28, "the vectors that blocks hand over take more than 1 GB");
  if (end < int64_t{1} << 28) args_.handoff_floats = static_cast<int32_t>(end);
  return static_cast<int32_t>(at);
}

DecodeStage& DecodeRecorder::AddProducts(DecodeStageKind kind, const Norm* norm,
                                         std::initializer_list<const Linear*> linears) {
  DecodeStage stage;
  stage.kind = kind;
  stage.num_tasks = static_cast<uint8_t>(linears.size());
  stage.first_task = static_cast<int32_t>(tasks_.size());
  stage.cols = static_cast<int32_t>((*linears.begin())->inputs());
  stage.residual = residual_;
  Require(stage.cols % 4 == 0, "rows are no multiple of four values");
  args_.max_cols = std::max(args_.max_cols, stage.cols);
  args_.kept_cols = stage.cols <= kMaxKeptCols || norm != nullptr
                        ? std::clamp(stage.cols, args_.kept_cols, kMaxKeptCols)
                        : args_.kept_cols;
  if (norm != nullptr) {
    Require(IsPlainRms(*norm), "a norm other than RMS without bias");
    stage.in = residual_;
    stage.norm_weight = norm->weight;
    stage.epsilon = norm->epsilon;
  }
  for (const Linear* linear : linears) {
    DecodeTask task;
    const PackedWeight& weight = *linear->weight;
    task.units = weight.storage.bytes();
    task.bias = linear->bias;
    task.shape = static_cast<int32_t>(tasks_.size());  // until Finish
    shapes_.push_back(ShapeOf(weight));
    Require(weight.storage.size() < uint64_t{1} << 32, "a matrix of more than 4 GB");
    if (!IsHalf(linear->weight->type)) quantized_ += linear->inputs() * linear->outputs();
    tasks_.push_back(task);
  }
  stages_.push_back(stage);
  return stages_.back();
}

absl::Status DecodeRecorder::Embed(const EmbedArgs& args) {
  int device = 0;
  RETURN_IF_ERROR(ToStatus(cudaGetDevice(&device), "the current device"));
  RETURN_IF_ERROR(ToStatus(cudaDeviceGetAttribute(&blocks_, cudaDevAttrMultiProcessorCount, device),
                           "its size"));
  Require(args.num_ropes <= 1, "several tables of rotations");
  args_.embed = args;
  args_.width = args.table.cols;
  args_.embedding = residual_ = TakeHandoff(args_.width);
  args_.num_heads = static_cast<int32_t>(shape_.num_heads);
  args_.num_kv_heads = static_cast<int32_t>(shape_.num_kv_heads);
  args_.heads_each = args_.num_heads / args_.num_kv_heads;
  args_.head_size = static_cast<int32_t>(shape_.head_size);
  return absl::OkStatus();
}

absl::Status DecodeRecorder::Qkv(const NormQkvRopeStoreArgs& args, const KvLayer& kv) {
  AddProducts(DecodeStageKind::kQkv, &args.norm, {args.q, args.k, args.v});
  const int64_t widths[] = {args.q->outputs(), args.k->outputs(), args.v->outputs()};
  qkv_ = TakeHandoff(widths[0] + widths[1] + widths[2]);
  DecodeTask* task = &tasks_[tasks_.size() - 3];
  task[0].out = qkv_;
  task[1].out = qkv_ + static_cast<int32_t>(widths[0]);
  task[2].out = task[1].out + static_cast<int32_t>(widths[1]);
  for (const Norm* norm : {&args.q_head_norm, &args.k_head_norm}) {
    Require(norm->weight == nullptr || IsPlainRms(*norm), "a head norm other than RMS");
  }
  Require(kv.type == DType::kF16, "a KV cache other than f16");
  Require(args.head_size % 16 == 0 && args.head_size <= kMaxDecodeHeadSize,
          "a head size other than a multiple of 16 up to 256");
  Require(shape_.num_heads / shape_.num_kv_heads <= 16, "more than 16 heads a KV head");
  args_.style = args.rope.style;
  DecodeStage attention;
  attention.kind = DecodeStageKind::kAttention;
  attention.in = qkv_;
  attention.cols = static_cast<int32_t>(args.rope.rotary_size / 2);
  attention.first_task = static_cast<int32_t>(caches_.size());
  caches_.push_back({kv.k, kv.v, args.q_head_norm.weight, args.k_head_norm.weight,
                     args.q_head_norm.epsilon, args.k_head_norm.epsilon});
  stages_.push_back(attention);
  return absl::OkStatus();
}

absl::Status DecodeRecorder::Attention(const PagedAttentionArgs& args) {
  DecodeStage& stage = stages_.back();
  stage.window = args.window;
  args_.attention_scale = args.scale;
  args_.softcap = args.softcap;
  stage.out =
      TakeHandoff(int64_t{args_.num_heads} * kMaxDecodeParts * (args_.head_size + kPartHeader));
  DecodeStage merge;
  merge.kind = DecodeStageKind::kMerge;
  merge.in = stage.out;
  merge.window = stage.window;
  merge.out = TakeHandoff(int64_t{args_.num_heads} * args_.head_size);
  stages_.push_back(merge);
  return absl::OkStatus();
}

absl::Status DecodeRecorder::AddResidual(const MatMulAddResidualArgs& args) {
  Require(args.post_norm.weight == nullptr, "a norm behind a product");
  const bool attention = stages_.back().kind == DecodeStageKind::kMerge;
  const int32_t in = attention ? stages_.back().out : tasks_.back().out;
  DecodeStage& stage = AddProducts(attention ? DecodeStageKind::kOutput : DecodeStageKind::kDown,
                                   nullptr, {args.linear});
  stage.in = in;
  stage.scale = args.scale;
  residual_ = TakeHandoff(args.linear->outputs());
  tasks_.back().out = residual_;
  return absl::OkStatus();
}

absl::Status DecodeRecorder::GateUp(const NormGateUpArgs& args) {
  if (args.gate == nullptr) {
    Require(false, "a feed-forward layer without a gate");
    return absl::OkStatus();
  }
  Require(args.up->outputs() == args.gate->outputs(), "up and gate of different sizes");
  DecodeStage& stage = AddProducts(DecodeStageKind::kGateUp, &args.norm, {args.up, args.gate});
  stage.activation = args.activation;
  const int32_t out = TakeHandoff(args.up->outputs());
  tasks_[tasks_.size() - 2].out = out;
  tasks_.back().out = out;
  return absl::OkStatus();
}

absl::Status DecodeRecorder::Head(const NormLmHeadArgs& args, MatrixF32 logits) {
  Require(args.scale == 1.0f && args.softcap == 0.0f, "scaled or capped logits");
  AddProducts(DecodeStageKind::kHead, &args.norm, {args.head});
  args_.logits = logits.values;
  return absl::OkStatus();
}

DecodeForm DecodeRecorder::ChooseForm(PersistentDecode wanted) const {
  if (wanted == PersistentDecode::kPrepared) return kPreparedForm;
  if (wanted == PersistentDecode::kDirect) return kDirectForm;
  return quantized_ <= kMostPrepared ? kPreparedForm : kDirectForm;
}

void DecodeRecorder::ShareOut() {
  const DecodeForm& form = args_.form;
  int32_t next = 0;
  for (DecodeStage& stage : stages_) {
    if (stage.kind == DecodeStageKind::kAttention || stage.kind == DecodeStageKind::kMerge) {
      // Of attention as many items as short contexts have; more go to the blocks behind.
      const bool merges = stage.kind == DecodeStageKind::kMerge;
      stage.first_team = next % blocks_;
      next += merges ? args_.num_heads : args_.num_kv_heads * 4;
    } else {
      const bool pair = stage.kind == DecodeStageKind::kGateUp;
      stage.num_groups = 0;
      for (int i = 0; i < (pair ? 1 : stage.num_tasks); ++i) {
        DecodeShape& shape = shapes_[static_cast<size_t>(stage.first_task + i)];
        const int32_t log2 = std::max<int32_t>(form.team_log2 - (pair ? 1 : 0), shape.slices_log2);
        const int32_t tiles = 1 << (log2 - shape.slices_log2);
        shape.first_group = stage.num_groups;
        stage.num_groups += (shape.tiles + tiles - 1) / tiles;
      }
      stage.first_team = next;
      next += stage.num_groups;
    }
    next %= blocks_ * form.teams;
  }
}

void DecodeRecorder::LayOutTables() {
  std::vector<DecodeShape> shapes;  // equal ones once
  for (DecodeTask& task : tasks_) {
    const DecodeShape& shape = shapes_[static_cast<size_t>(task.shape)];
    const auto found = std::find(shapes.begin(), shapes.end(), shape);
    task.shape = static_cast<int32_t>(found - shapes.begin());
    if (found == shapes.end()) shapes.push_back(shape);
  }
  shapes_ = std::move(shapes);
  DecodeTables& tables = args_.tables;
  const auto take = [&](const auto& table) {
    const int32_t at = tables.bytes;
    tables.bytes += static_cast<int32_t>(table.size() * sizeof(table[0]));
    return at;
  };
  tables.num_stages = static_cast<int32_t>(stages_.size());
  take(stages_);
  tables.tasks_at = take(tasks_);
  tables.shapes_at = take(shapes_);
  tables.caches_at = take(caches_);
  tables.bytes = (tables.bytes + 15) / 16 * 16;  // as bulk copies have it
}

std::vector<std::byte> DecodeRecorder::TableBytes() const {
  const DecodeTables& tables = args_.tables;
  std::vector<std::byte> bytes(static_cast<size_t>(tables.bytes));
  const auto put = [&](int32_t at, const auto& table) {
    std::memcpy(bytes.data() + at, table.data(), table.size() * sizeof(table[0]));
  };
  put(0, stages_);
  put(tables.tasks_at, tasks_);
  put(tables.shapes_at, shapes_);
  put(tables.caches_at, caches_);
  return bytes;
}

void DecodeRecorder::SizeRings(int32_t most_shared) {
  const auto fit = [&] {
    args_.ring_slots = kMaxRingSlots;
    while (args_.ring_slots > 0 && DecodeLayout::Of(args_).bytes > most_shared) --args_.ring_slots;
    return args_.ring_slots >= 2;
  };
  if (args_.form.prepares) {
    for (DecodeShape& shape : shapes_) shape.chunk_units = kPreparedUnits;
    args_.slot_bytes = kPreparedSlotBytes;
    args_.has_quants = quantized_ > 0;
    fit();
    return;
  }
  // Long rows are kept in registers.
  args_.kept_cols = std::min(args_.kept_cols, args_.width);
  // Few large copies are faster than many small ones (docs/performance.md).
  for (const int32_t most : {5376, 4800, 3456, 2432}) {
    args_.slot_bytes = 0;
    for (DecodeShape& shape : shapes_) {
      const auto bytes = [&](int32_t units) {
        return ChunkBytes(units, shape.unit_bytes, shape.super_bytes);
      };
      const int32_t step = shape.super_bytes != 0 ? 2 : 1;
      int32_t units = step;
      while (units + step <= 32 && bytes(units + step) <= most) units += step;
      shape.chunk_units = static_cast<uint8_t>(units);
      args_.slot_bytes = std::max(args_.slot_bytes, (bytes(units) + 63) / 64 * 64);
    }
    if (fit()) return;
  }
}

absl::StatusOr<Buffer> DecodeRecorder::ListAllChunks() {
  auto counter = AllocateMemory(sizeof(int32_t));
  if (!counter.ok()) return counter.status();
  auto* most = reinterpret_cast<int32_t*>(counter->bytes());
  RETURN_IF_ERROR(ToStatus(cudaMemset(most, 0, sizeof(*most)), "counting the copies of weights"));
  RETURN_IF_ERROR(ListChunks(args_, blocks_, most, nullptr));
  RETURN_IF_ERROR(
      ToStatus(cudaMemcpy(&args_.chunks_each, most, sizeof(*most), cudaMemcpyDeviceToHost),
               "counting the copies of weights"));
  auto chunks = AllocateMemory(static_cast<size_t>(blocks_ * args_.form.warps()) *
                               static_cast<size_t>(args_.chunks_each) * sizeof(ChunkCopy));
  if (!chunks.ok()) return chunks.status();
  args_.chunks = reinterpret_cast<const ChunkCopy*>(chunks->bytes());
  RETURN_IF_ERROR(ListChunks(args_, blocks_, nullptr, nullptr));
  RETURN_IF_ERROR(ToStatus(cudaDeviceSynchronize(), "listing the copies of weights"));
  return chunks;
}

absl::StatusOr<std::unique_ptr<DecodeProgram>> DecodeRecorder::Finish(PersistentDecode wanted) {
  Require(!stages_.empty() && stages_.back().kind == DecodeStageKind::kHead, "no logits");
  args_.form = ChooseForm(wanted);
  ShareOut();
  if (!obstacle_.empty()) {
    return absl::UnimplementedError("no persistent decode kernel for this model: " + obstacle_);
  }
  std::unique_ptr<DecodeProgram> program(new DecodeProgram());
  LayOutTables();
  int device = 0, most_shared = 0;
  RETURN_IF_ERROR(ToStatus(cudaGetDevice(&device), "the current device"));
  RETURN_IF_ERROR(ToStatus(
      cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
      "its shared memory"));
  SizeRings(most_shared);
  if (args_.ring_slots < 2) {
    return absl::UnimplementedError(
        "no persistent decode kernel for this model: its rows leave too little shared memory");
  }
  const std::vector<std::byte> tables = TableBytes();
  const size_t table_bytes = (tables.size() + 255) / 256 * 256;
  const size_t set_bytes = static_cast<size_t>(args_.handoff_floats) * sizeof(float);
  auto memory = AllocateMemory(table_bytes + 2 * set_bytes);
  if (!memory.ok()) return memory.status();
  std::byte* bytes = memory->bytes();
  RETURN_IF_ERROR(CopyToDevice(bytes, tables.data(), tables.size()));
  std::byte* sets = bytes + table_bytes;
  RETURN_IF_ERROR(ToStatus(cudaMemset(sets, 0xff, 2 * set_bytes), "clearing handoff sets"));
  RETURN_IF_ERROR(ToStatus(cudaDeviceSynchronize(), "clearing handoff sets"));
  args_.tables.at = bytes;
  args_.layout = DecodeLayout::Of(args_);
  if (!args_.form.prepares) {
    auto chunks = ListAllChunks();
    if (!chunks.ok()) return chunks.status();
    program->chunks_ = *std::move(chunks);
  }
  program->handoffs_[0] = reinterpret_cast<float*>(sets);
  program->handoffs_[1] = reinterpret_cast<float*>(sets + set_bytes);
  program->args_ = args_;
  program->memory_ = *std::move(memory);
  program->blocks_ = blocks_;
  program->shared_bytes_ = static_cast<size_t>(args_.layout.bytes);
  RETURN_IF_ERROR(PreparePersistentDecode(args_, program->shared_bytes_));
  return program;
}

namespace {

int NumParts(int32_t position, int part_log2) { return (position / kTileKeys >> part_log2) + 1; }

}  // namespace

bool DecodeProgram::Takes(int32_t position) const {
  return NumParts(position, kSplitTilesLog2) <= kMaxDecodeParts;
}

absl::Status DecodeProgram::Launch(const DecodeStep& step, cudaStream_t stream) {
  DecodeArgs args = args_;
  args.part_log2 = NumParts(step.position, 0) <= kMaxDecodeParts ? 0 : kSplitTilesLog2;
  args.num_parts = NumParts(step.position, args.part_log2);
  args.handoff = handoffs_[steps_ % 2];
  args.next_handoff = handoffs_[(steps_ + 1) % 2];
  ++steps_;
  return LaunchPersistentDecode(args, step, blocks_, shared_bytes_, stream);
}

}  // namespace sluice::kernels::cuda
