#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/model/model_config.h"
#include "engine/model_file/model_file.h"
#include "tests/testing/gguf_writer.h"

namespace sluice::engine {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using testing::GgufDraft;
using ::testing::IsEmpty;
using testing::TempFile;

absl::StatusOr<TensorRoles> RolesOf(const GgufDraft& draft) {
  const TempFile stored(draft.Bytes());
  ASSIGN_OR_RETURN(const std::shared_ptr<const ModelFile> file, ModelFile::Open(stored.path()));
  return DescribeTensors(*file);
}

std::string RoleOf(const TensorRoles& roles, const std::string& name) {
  for (const TensorRole& role : roles.present) {
    if (role.name == name) return role.role;
  }
  return "absent";
}

TEST(TensorRolesTest, EveryTensorOfAWholeModelHasARole) {
  testing::TinyModelSpec spec;
  spec.architecture = "qwen2";
  spec.tied_head = true;
  const GgufDraft draft = testing::MakeTinyModelDraft(spec);
  const auto roles = RolesOf(draft);
  ASSERT_TRUE(roles.ok()) << Message(roles.status());
  ASSERT_EQ(roles->present.size(), draft.tensors.size());
  for (size_t i = 0; i < draft.tensors.size(); ++i) {
    EXPECT_EQ(roles->present[i].name, draft.tensors[i].name);
  }
  EXPECT_THAT(roles->missing, IsEmpty());
  EXPECT_THAT(roles->unused, IsEmpty());
  EXPECT_EQ(RoleOf(*roles, "blk.1.attn_q.weight"), "attention query, layer 1");
  EXPECT_EQ(RoleOf(*roles, "blk.0.attn_k.bias"), "attention key bias, layer 0");
  EXPECT_EQ(RoleOf(*roles, "token_embd.weight"), "token embedding and output head");
}

TEST(TensorRolesTest, EveryArchitecturesTensorsHaveRoles) {
  for (const char* architecture : {"llama", "qwen3", "gemma", "gemma2", "gemma3", "phi3",
                                   "starcoder2", "granite", "stablelm"}) {
    testing::TinyModelSpec spec;
    spec.architecture = architecture;
    const auto roles = RolesOf(testing::MakeTinyModelDraft(spec));
    ASSERT_TRUE(roles.ok()) << Message(roles.status());
    EXPECT_THAT(roles->missing, IsEmpty()) << architecture;
    EXPECT_THAT(roles->unused, IsEmpty()) << architecture;
  }
}

TEST(TensorRolesTest, FusedTensorsHaveTheRolesOfTheirParts) {
  testing::TinyModelSpec spec;
  spec.architecture = "phi3";
  GgufDraft draft = testing::MakeTinyModelDraft(spec);
  draft.RemoveTensor("blk.1.attn_qkv.weight");
  const auto roles = RolesOf(draft);
  ASSERT_TRUE(roles.ok()) << Message(roles.status());
  EXPECT_EQ(RoleOf(*roles, "blk.0.attn_qkv.weight"), "attention query, key and value, layer 0");
  EXPECT_EQ(RoleOf(*roles, "blk.1.ffn_up.weight"), "FFN gate and up, layer 1");
  EXPECT_THAT(roles->missing, ElementsAre("blk.1.attn_qkv.weight"));
}

TEST(TensorRolesTest, MissingAndUnusedAreNamed) {
  GgufDraft draft = testing::MakeTinyModelDraft({});
  draft.RemoveTensor("blk.1.ffn_up.weight");
  draft.RemoveTensor("output_norm.weight");
  draft.AddTensor("extra", {8}, kernels::DType::kF32, std::string(32, '\0'));
  const auto roles = RolesOf(draft);
  ASSERT_TRUE(roles.ok()) << Message(roles.status());
  EXPECT_THAT(roles->missing, ElementsAre("blk.1.ffn_up.weight", "output_norm.weight"));
  EXPECT_THAT(roles->unused, ElementsAre("extra"));
  EXPECT_EQ(RoleOf(*roles, "extra"), "unused");
}

TEST(TensorRolesTest, WithoutALayerCountTheTensorsShowIt) {
  GgufDraft draft = testing::MakeTinyModelDraft({});
  draft.Remove("llama.block_count");
  draft.RemoveTensor("blk.0.attn_v.weight");
  const auto roles = RolesOf(draft);
  ASSERT_TRUE(roles.ok()) << Message(roles.status());
  EXPECT_THAT(roles->missing, ElementsAre("blk.0.attn_v.weight"));
  EXPECT_EQ(RoleOf(*roles, "blk.1.attn_v.weight"), "attention value, layer 1");
}

TEST(TensorRolesTest, AVocabularyAloneLacksEverything) {
  GgufDraft draft = testing::MakeTinyModelDraft({});
  draft.tensors.clear();
  const auto roles = RolesOf(draft);
  ASSERT_TRUE(roles.ok()) << Message(roles.status());
  EXPECT_THAT(roles->missing, Contains("token_embd.weight"));
  EXPECT_THAT(roles->missing, Contains("blk.1.attn_q.weight"));
}

TEST(TensorRolesTest, UnknownArchitectureIsAnError) {
  GgufDraft draft = testing::MakeTinyModelDraft({});
  draft.SetString("general.architecture", "rwkv");
  EXPECT_EQ(RolesOf(draft).status().code(), absl::StatusCode::kUnimplemented);
  draft.Remove("general.architecture");
  EXPECT_EQ(RolesOf(draft).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace sluice::engine
