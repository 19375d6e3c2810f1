// What kernels/ops.cc does for every backend: checks, the observer, the planted bugs.

#include "kernels/ops.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "tests/kernels/linear_fixture.h"

namespace sluice::kernels {
namespace {

Exec::Options BestCpu(PlantedBug bug = PlantedBug::kNone) {
  Exec::Options options;
  const auto isa = DetectCpuIsa();
  EXPECT_TRUE(isa.ok()) << isa.status();
  options.backend = Backend::kCpu;
  options.isa = *isa;
  options.num_threads = 2;
  options.planted_bug = bug;
  return options;
}

class OpsTest : public ::testing::Test {
 protected:
  OpsTest() : exec_(BestCpu()), inputs_(Spec()), table_(inputs_.table.Pack(Backend::kCpu)) {
    shape_.max_tokens = 2;
    shape_.max_logit_rows = 2;
    shape_.max_rows = 2;
    shape_.max_pages = 4;
    shape_.width = 32;
    shape_.num_heads = 2;
    shape_.num_kv_heads = 1;
    shape_.head_size = 32;
    shape_.ffn_width = 64;
    shape_.vocab_size = 40;
    rope_.rotary_size = 32;
    rope_.inverse_frequencies = inputs_.inverse_frequencies.data();
    batch_.num_tokens = 2;
    batch_.num_rows = 1;
    batch_.num_logit_rows = 2;
    batch_.tokens = inputs_.tokens.data();
    batch_.positions = inputs_.positions.data();
    batch_.row_begins = inputs_.row_begins.data();
    batch_.page_begins = inputs_.page_begins.data();
    batch_.pages = inputs_.pages.data();
    batch_.logit_tokens = inputs_.logit_tokens.data();
    residual_.resize(64);
  }

  static LinearSpec Spec() {
    LinearSpec spec;
    spec.rows = {2};
    return spec;
  }
  MatrixF32 Residual() { return {residual_.data(), 2, 32}; }
  void Reserve() {
    const absl::Status status = ReserveWorkspace(exec_, shape_);
    ASSERT_TRUE(status.ok()) << status;
  }
  absl::Status Embed() { return EmbedTokens(exec_, table_, 1.0f, {&rope_, 1}, batch_, Residual()); }
  static void ExpectError(const absl::Status& status, absl::StatusCode code,
                          const std::string& part) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos) << status;
  }

  Exec exec_;
  LinearInputs inputs_;
  PackedWeight table_;
  WorkspaceShape shape_;
  Rope rope_;
  BatchView batch_;
  std::vector<float> residual_;
};

TEST_F(OpsTest, NeedsAWorkspace) {
  ExpectError(Embed(), absl::StatusCode::kFailedPrecondition, "ReserveWorkspace");
  Reserve();
  EXPECT_TRUE(Embed().ok()) << Embed();
}

TEST_F(OpsTest, RefusesTokensOutsideTheVocabulary) {
  Reserve();
  inputs_.tokens[1] = 40;
  ExpectError(Embed(), absl::StatusCode::kInvalidArgument,
              "token 1: expected an id below 40, got 40");
  inputs_.tokens[1] = ~0;
  ExpectError(Embed(), absl::StatusCode::kInvalidArgument, "previous step");
  const std::vector<int32_t> previous = {77};
  batch_.previous_tokens = previous.data();
  batch_.num_previous = 1;
  ExpectError(Embed(), absl::StatusCode::kInvalidArgument, "got 77");
}

TEST_F(OpsTest, TakesTokensOfThePreviousStep) {
  Reserve();
  inputs_.tokens = {7, 9};
  batch_.tokens = inputs_.tokens.data();
  ASSERT_TRUE(Embed().ok());
  const std::vector<float> want = residual_;
  const std::vector<int32_t> previous = {1, 9, 7};
  inputs_.tokens = {~2, ~1};
  batch_.tokens = inputs_.tokens.data();
  batch_.previous_tokens = previous.data();
  batch_.num_previous = 3;
  ASSERT_TRUE(Embed().ok());
  EXPECT_EQ(residual_, want);
}

TEST_F(OpsTest, RefusesWrongShapes) {
  Reserve();
  ExpectError(EmbedTokens(exec_, table_, 1.0f, {&rope_, 1}, batch_, {residual_.data(), 2, 31}),
              absl::StatusCode::kInvalidArgument, "expected [2, 32], got [2, 31]");
  batch_.num_tokens = 3;
  ExpectError(Embed(), absl::StatusCode::kInvalidArgument, "at most 2 tokens");
  batch_.num_tokens = 2;
  rope_.rotary_size = 34;
  ExpectError(Embed(), absl::StatusCode::kInvalidArgument, "rotary size");
  auto activation = Activation::Allocate(Backend::kCpu, 2, 48);
  ASSERT_TRUE(activation.ok());
  Linear linear;
  linear.name = "ffn_down";
  linear.weight = &table_;
  ExpectError(MatMulAddResidual(exec_, {.linear = &linear}, *activation, batch_, Residual()),
              absl::StatusCode::kInvalidArgument,
              "ffn_down: weight: expected [32, 48], got [40, 32]");
  linear.weight = nullptr;
  ExpectError(MatMulAddResidual(exec_, {.linear = &linear}, *activation, batch_, Residual()),
              absl::StatusCode::kInvalidArgument, "expected a weight, got none");
  const PackedWeight other = inputs_.output.Pack(Backend::kRef);
  linear.weight = &other;
  ExpectError(MatMulAddResidual(exec_, {.linear = &linear}, *activation, batch_, Residual()),
              absl::StatusCode::kInvalidArgument, "packed for backend cpu, got one for ref");
}

TEST_F(OpsTest, RefusesRopesItCannotKeep) {
  Reserve();
  const Rope three[] = {rope_, rope_, rope_};
  ExpectError(EmbedTokens(exec_, table_, 1.0f, three, batch_, Residual()),
              absl::StatusCode::kInvalidArgument, "at most 2 tables of rotations, got 3");
  const Rope two[] = {rope_, {.rotary_size = 8}};
  ExpectError(EmbedTokens(exec_, table_, 1.0f, two, batch_, Residual()),
              absl::StatusCode::kInvalidArgument, "expected 4 inverse frequencies, got none");
  ExpectError(EmbedTokens(exec_, table_, INFINITY, {&rope_, 1}, batch_, Residual()),
              absl::StatusCode::kInvalidArgument, "scale: expected a finite number, got inf");
  EXPECT_TRUE(EmbedTokens(exec_, table_, 1.0f, {}, batch_, Residual()).ok()) << "no rope at all";
}

TEST_F(OpsTest, RefusesNormsScalesCapsAndWindowsThatMeanNothing) {
  Reserve();
  ASSERT_TRUE(Embed().ok());
  const PackedWeight q = inputs_.q.Pack(Backend::kCpu);
  const PackedWeight k = inputs_.k.Pack(Backend::kCpu);
  const PackedWeight up = inputs_.up.Pack(Backend::kCpu);
  const PackedWeight output = inputs_.output.Pack(Backend::kCpu);
  const Linear q_view{.weight = &q}, k_view{.weight = &k}, up_view{.weight = &up},
      output_view{.weight = &output}, head_view{.weight = &table_};
  std::vector<std::byte> pages(static_cast<size_t>(inputs_.num_pages * 32 * 16 * 4));
  const KvLayer kv{DType::kF32, inputs_.num_pages, 1, 32, pages.data(), pages.data()};
  std::vector<float> values(128);
  const ConstMatrixF32 residual = {residual_.data(), 2, 32};
  auto heads = Activation::Allocate(Backend::kCpu, 2, 64);
  ASSERT_TRUE(heads.ok());
  NormQkvRopeStoreArgs qkv = {.q = &q_view, .k = &k_view, .v = &k_view, .head_size = 32};
  PagedAttentionArgs attention;
  MatMulAddResidualArgs add = {.linear = &output_view};
  NormGateUpArgs ffn = {.up = &up_view};
  NormLmHeadArgs lm_head = {.head = &head_view};
  const auto run_qkv = [&] {
    return NormQkvRopeStore(exec_, qkv, residual, batch_, kv, {values.data(), 2, 64});
  };
  const auto attend = [&] {
    return PagedAttention(exec_, attention, {values.data(), 2, 64}, batch_, kv, *heads);
  };
  const auto run_add = [&] { return MatMulAddResidual(exec_, add, *heads, batch_, Residual()); };
  const auto run_ffn = [&] { return NormGateUpSwiglu(exec_, ffn, residual, batch_, *heads); };
  const auto run_head = [&] {
    return NormLmHead(exec_, lm_head, residual, batch_, 0, {values.data(), 2, 40});
  };
  // All of them are well as they are, without norms, gate and rope.
  for (const absl::Status& status : {run_qkv(), attend(), run_add(), run_ffn(), run_head()}) {
    EXPECT_TRUE(status.ok()) << status;
  }
  const float* weight = inputs_.norm_weight.data();
  const auto refuses = [&](auto& field, auto bad, const auto& run, const std::string& part) {
    const auto good = field;
    field = bad;
    ExpectError(run(), absl::StatusCode::kInvalidArgument, part);
    field = good;
    EXPECT_TRUE(run().ok()) << run();
  };
  const Norm rms_with_bias = {.weight = weight, .bias = weight};
  const Norm bias_alone = {.bias = weight, .kind = NormKind::kLayer};
  const Norm negative = {.weight = weight, .epsilon = -1.0f};
  refuses(qkv.norm, rms_with_bias, run_qkv, "NormQkvRopeStore: norm: expected no bias");
  refuses(qkv.q_head_norm, bias_alone, run_qkv, "q head norm: expected a weight beside the bias");
  refuses(qkv.k_head_norm, negative, run_qkv, "k head norm: expected an epsilon of at least 0");
  refuses(qkv.rope_index, 2, run_qkv, "rope index: expected one below 2, got 2");
  refuses(qkv.rope_index, -1, run_qkv, "rope index: expected one below 2, got -1");
  refuses(attention.scale, NAN, attend, "PagedAttention: scale: expected a finite number, got nan");
  refuses(attention.softcap, -1.0f, attend, "PagedAttention: softcap: expected a finite number");
  refuses(attention.window, -5, attend, "window: expected at least 0 positions, got -5");
  refuses(add.post_norm, rms_with_bias, run_add, "matmul_add_residual: post norm: expected no");
  refuses(add.scale, INFINITY, run_add, "scale: expected a finite number, got inf");
  refuses(add.linear, nullptr, run_add, "weight: expected a weight, got none");
  refuses(ffn.norm, bias_alone, run_ffn, "NormGateUpSwiglu: norm: expected a weight");
  refuses(ffn.gate, &output_view, run_ffn, "gate: expected [64, 32], got [32, 64]");
  refuses(lm_head.norm, negative, run_head, "NormLmHead: norm: expected an epsilon");
  refuses(lm_head.scale, NAN, run_head, "scale: expected a finite number, got nan");
  refuses(lm_head.softcap, INFINITY, run_head, "softcap: expected a finite number of at least 0");
}

TEST_F(OpsTest, RefusesPositionsAndPagesOutsideTheCache) {
  Reserve();
  const PackedWeight q = inputs_.q.Pack(Backend::kCpu);
  const PackedWeight k = inputs_.k.Pack(Backend::kCpu);
  Linear q_view, k_view;
  q_view.weight = &q;
  k_view.weight = &k;
  NormQkvRopeStoreArgs args;
  args.norm.weight = inputs_.norm_weight.data();
  args.q = &q_view;
  args.k = &k_view;
  args.v = &k_view;
  args.rope = rope_;
  args.head_size = 32;
  std::vector<std::byte> pages(static_cast<size_t>(inputs_.num_pages * 32 * 16 * 4));
  KvLayer kv{DType::kF32, inputs_.num_pages, 1, 32, pages.data(), pages.data()};
  std::vector<float> out(128);
  const auto run = [&] {
    return NormQkvRopeStore(exec_, args, {residual_.data(), 2, 32}, batch_, kv,
                            {out.data(), 2, 64});
  };
  ASSERT_TRUE(Embed().ok());
  ASSERT_TRUE(run().ok()) << run();
  kv.num_pages = 1;
  ExpectError(run(), absl::StatusCode::kInvalidArgument, "expected a page below 1");
  kv.num_pages = inputs_.num_pages;
  inputs_.positions[1] = 16 * static_cast<int32_t>(inputs_.pages.size());
  ExpectError(run(), absl::StatusCode::kInvalidArgument, "token 1: position");
  inputs_.positions[1] = -1;
  ExpectError(run(), absl::StatusCode::kInvalidArgument, "token 1: position -1");
  kv.type = DType::kBF16;
  ExpectError(run(), absl::StatusCode::kUnimplemented, "BF16");
}

// Slabs and chosen tokens give the rows that the whole gives.
TEST_F(OpsTest, LmHeadTakesTheRowsItIsAskedFor) {
  Reserve();
  ASSERT_TRUE(Embed().ok());
  const PackedWeight head = inputs_.head.Pack(Backend::kCpu);
  Linear linear;
  linear.weight = &head;
  const NormLmHeadArgs args = {
      .norm = {.weight = inputs_.norm_weight.data(), .epsilon = kTestEpsilon}, .head = &linear};
  const auto logits_of = [&](int64_t first, int64_t rows) {
    std::vector<float> logits(static_cast<size_t>(rows * 40));
    const absl::Status status = NormLmHead(exec_, args, {residual_.data(), 2, 32}, batch_, first,
                                           {logits.data(), rows, 40});
    EXPECT_TRUE(status.ok()) << status;
    return logits;
  };
  const std::vector<float> both = logits_of(0, 2);
  const std::vector<float> second(both.begin() + 40, both.end());
  EXPECT_NE(std::vector<float>(both.begin(), both.begin() + 40), second);
  EXPECT_EQ(logits_of(1, 1), second);
  inputs_.logit_tokens = {1};
  batch_.logit_tokens = inputs_.logit_tokens.data();
  batch_.num_logit_rows = 1;
  EXPECT_EQ(logits_of(0, 1), second);
  std::vector<float> logits(80);
  ExpectError(NormLmHead(exec_, args, {residual_.data(), 2, 32}, batch_, 0, {logits.data(), 2, 40}),
              absl::StatusCode::kInvalidArgument, "of 1 logit rows, got [0, 2)");
}

TEST_F(OpsTest, TellsTheObserver) {
  struct Recorder : OpObserver {
    void OnOp(std::string_view op, int layer, std::span<const float> values, int64_t rows,
              int64_t cols) override {
      seen.push_back(std::string(op) + " " + std::to_string(layer) + " " + std::to_string(rows) +
                     "x" + std::to_string(cols));
      first = values[0];
    }
    std::vector<std::string> seen;
    float first = 0.0f;
  } recorder;
  Reserve();
  exec_.set_observer(&recorder);
  ASSERT_TRUE(Embed().ok());
  EXPECT_EQ(recorder.first, residual_[0]);
  const PackedWeight output = inputs_.output.Pack(Backend::kCpu);
  auto activation = Activation::Allocate(Backend::kCpu, 2, 64);
  ASSERT_TRUE(activation.ok());
  Linear linear;
  linear.weight = &output;
  linear.name = "attention_output";
  exec_.set_layer(3);
  ASSERT_TRUE(MatMulAddResidual(exec_, {.linear = &linear}, *activation, batch_, Residual()).ok());
  EXPECT_EQ(recorder.seen,
            (std::vector<std::string>{"embedding -1 2x32", "attention_output 3 2x32"}));
}

TEST(PlantedBugTest, KvHeadZeroOnlyLeavesTheOtherHeadsUnwritten) {
  LinearSpec spec;
  spec.num_kv_heads = 2;
  const LinearInputs inputs(spec);
  const LinearOutcome right = RunLinearOps(inputs, BestCpu());
  const LinearOutcome wrong = RunLinearOps(inputs, BestCpu(PlantedBug::kKvHeadZeroOnly));
  const std::vector<float> zeros(32);
  for (auto member : {&LinearOutcome::k, &LinearOutcome::v}) {
    const std::vector<float>& values = wrong.*member;
    const std::vector<float> head0(values.begin(), values.begin() + 32);
    const std::vector<float> head1(values.begin() + 32, values.end());
    EXPECT_EQ(head0, std::vector<float>((right.*member).begin(), (right.*member).begin() + 32));
    EXPECT_EQ(head1, zeros);
    EXPECT_NE(right.*member, values);
  }
}

TEST(PlantedBugTest, PrefillStrideHarmsRowsOfSeveralTokensOnly) {
  for (DType type : {DType::kF32, DType::kQ4_1}) {
    LinearSpec spec;
    spec.type = type;
    spec.rows = {1, 1, 1};
    const LinearInputs decode(spec);
    EXPECT_EQ(RunLinearOps(decode, BestCpu()).q,
              RunLinearOps(decode, BestCpu(PlantedBug::kPrefillStride)).q);
    spec.rows = {3};
    const LinearInputs prefill(spec);
    const LinearOutcome right = RunLinearOps(prefill, BestCpu());
    const LinearOutcome wrong = RunLinearOps(prefill, BestCpu(PlantedBug::kPrefillStride));
    EXPECT_NE(right.q, wrong.q);
    EXPECT_NE(right.ffn, wrong.ffn);
    // The first token of a row is where it should be.
    EXPECT_EQ(std::vector<float>(right.q.begin(), right.q.begin() + 64),
              std::vector<float>(wrong.q.begin(), wrong.q.begin() + 64));
  }
}

}  // namespace
}  // namespace sluice::kernels
