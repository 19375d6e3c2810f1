#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "server/field_limits.h"
#include "tests/server/test_server.h"

namespace sluice::server {
namespace {

using testing::ElementsAre;

TEST(UnaryTest, DescribesTheModelFromTheValidatorsTable) {
  TestServer server;
  grpc::ClientContext context;
  v1::Model model;
  ASSERT_TRUE(server.stub().GetModel(&context, v1::GetModelRequest(), &model).ok());
  EXPECT_EQ(model.name(), "fake");
  EXPECT_EQ(model.vocab_size(), 256);
  EXPECT_EQ(model.tokenizer().model(), "bytes");
  EXPECT_TRUE(model.self_check().passed());
  EXPECT_EQ(model.kv_pool().max_context(), 512);
  EXPECT_EQ(model.limits_size(), static_cast<int>(Field::kNumFields));
  EXPECT_THAT(model.unimplemented(), ElementsAre("constraint"));
  // Every limit of a number in `sampling` is where the server really refuses.
  const auto* fields = v1::Sampling::descriptor();
  int checked = 0;
  for (const auto& limit : model.limits()) {
    if (limit.field().rfind("sampling.", 0) != 0) continue;
    const auto* field = fields->FindFieldByName(limit.field().substr(9));
    if (field == nullptr || field->type() != google::protobuf::FieldDescriptor::TYPE_FLOAT)
      continue;
    v1::GenerateRequest request = GreedyRequest(3, 1);
    v1::Sampling* sampling = request.mutable_sampling();
    sampling->GetReflection()->SetFloat(sampling, field, static_cast<float>(limit.maximum()));
    EXPECT_NE(server.Generate(request).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    sampling->GetReflection()->SetFloat(sampling, field,
                                        static_cast<float>(limit.maximum()) + 0.5f);
    EXPECT_THAT(FieldsOf(server.Generate(request).status), ElementsAre(limit.field()));
    ++checked;
  }
  EXPECT_EQ(checked, 7);
}

TEST(UnaryTest, ListsTheModelAndItsLoad) {
  TestServer::Options options;
  options.num_engines = 2;
  TestServer server(options);
  grpc::ClientContext list_context;
  v1::ListModelsResponse models;
  ASSERT_TRUE(server.stub().ListModels(&list_context, v1::ListModelsRequest(), &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).name(), "fake");
  grpc::ClientContext context;
  v1::Load load;
  ASSERT_TRUE(server.stub().GetLoad(&context, v1::GetLoadRequest(), &load).ok());
  ASSERT_EQ(load.engines_size(), 2);
  EXPECT_EQ(load.engines(1).engine(), 1);
  EXPECT_TRUE(load.engines(0).up());
  EXPECT_EQ(load.engines(0).kv_pages_total(), 256);
  EXPECT_FALSE(load.draining());
}

TEST(UnaryTest, TokenisesAndDetokenises) {
  TestServer server;
  for (const size_t length : {size_t{3}, size_t{100'000}}) {  // inline, and on the text threads
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text(std::string(length, 'x'));
    request.set_return_pieces(true);
    v1::TokenizeResponse response;
    ASSERT_TRUE(server.stub().Tokenize(&context, request, &response).ok());
    ASSERT_EQ(response.token_ids_size(), static_cast<int>(length));
    EXPECT_EQ(response.token_ids(0), 'x');
    EXPECT_EQ(response.pieces_size(), static_cast<int>(length));
    grpc::ClientContext back_context;
    v1::DetokenizeRequest back;
    *back.mutable_token_ids() = response.token_ids();
    v1::DetokenizeResponse text;
    ASSERT_TRUE(server.stub().Detokenize(&back_context, back, &text).ok());
    EXPECT_EQ(text.text(), std::string(length, static_cast<char>('a' + 'x' % 26)));
  }
}

TEST(UnaryTest, TokensBeyondTheVocabularyHaveNoText) {
  TestServer::Options options;
  options.padding = 8;
  TestServer server(options);
  v1::DetokenizeRequest request;
  v1::DetokenizeResponse response;
  for (const int id : {0, 256, 1, 263, 2}) request.add_token_ids(id);
  grpc::ClientContext context;
  ASSERT_TRUE(server.stub().Detokenize(&context, request, &response).ok());
  EXPECT_EQ(response.text(), "abc");
  request.add_token_ids(264);
  grpc::ClientContext again;
  EXPECT_THAT(FieldsOf(server.stub().Detokenize(&again, request, &response)),
              ElementsAre("token_ids[5]"));
}

TEST(UnaryTest, RefusesWhatItCannotAnswer) {
  TestServer::Options options;
  options.piece_bytes = 1024;
  TestServer server(options);
  v1::DetokenizeRequest request;
  v1::DetokenizeResponse response;
  const auto detokenize = [&] {
    grpc::ClientContext context;
    return server.stub().Detokenize(&context, request, &response);
  };
  request.add_token_ids(0);
  request.add_token_ids(256);
  EXPECT_THAT(FieldsOf(detokenize()), ElementsAre("token_ids[1]"));
  request.clear_token_ids();
  for (int i = 0; i < 4097; ++i) request.add_token_ids(1);  // 4 MiB and a kilobyte of text
  EXPECT_THAT(FieldsOf(detokenize()), ElementsAre("token_ids"));
  request.clear_token_ids();
  request.set_model("other");
  EXPECT_EQ(detokenize().error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST(UnaryTest, HasNoTextWithoutAVocabulary) {
  TestServer::Options options;
  options.piece_bytes = 0;
  TestServer server(options);
  grpc::ClientContext context;
  v1::TokenizeRequest request;
  request.set_text("x");
  v1::TokenizeResponse response;
  EXPECT_THAT(FieldsOf(server.stub().Tokenize(&context, request, &response)), ElementsAre("text"));
  grpc::ClientContext model_context;
  v1::Model model;
  ASSERT_TRUE(server.stub().GetModel(&model_context, v1::GetModelRequest(), &model).ok());
  EXPECT_FALSE(model.has_tokenizer());
}

}  // namespace
}  // namespace sluice::server
