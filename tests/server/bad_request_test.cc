#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/server/test_server.h"

namespace sluice::server {
namespace {

using testing::Contains;
using testing::HasSubstr;

using Change = std::function<void(v1::GenerateRequest&)>;

struct BadCase {
  std::string field;
  Change change;
};

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Setters by name, so that a case is one line.
#define SET(part, name, value) \
  [](v1::GenerateRequest& in) { in.mutable_##part()->set_##name(value); }
#define ADD(part, name, value) \
  [](v1::GenerateRequest& in) { in.mutable_##part()->add_##name(value); }

std::vector<BadCase> SamplingCases() {
  std::vector<BadCase> cases;
  for (const float bad : {kNan, kInf, -kInf, -0.1f, 1e38f}) {
    cases.push_back({"sampling.temperature", [bad](v1::GenerateRequest& in) {
                       in.mutable_sampling()->set_temperature(bad);
                     }});
  }
  for (const float bad : {kNan, 0.0f, -1.0f, 1.0001f}) {
    cases.push_back({"sampling.top_p",
                     [bad](v1::GenerateRequest& in) { in.mutable_sampling()->set_top_p(bad); }});
    cases.push_back({"sampling.typical_p", [bad](v1::GenerateRequest& in) {
                       in.mutable_sampling()->set_typical_p(bad);
                     }});
  }
  for (const float bad : {kNan, 0.0f, -1.0f, 1e30f}) {
    cases.push_back({"sampling.repetition_penalty", [bad](v1::GenerateRequest& in) {
                       in.mutable_sampling()->set_repetition_penalty(bad);
                     }});
  }
  for (const float bad : {kNan, -2.1f, 2.1f}) {
    cases.push_back({"sampling.presence_penalty", [bad](v1::GenerateRequest& in) {
                       in.mutable_sampling()->set_presence_penalty(bad);
                     }});
    cases.push_back({"sampling.frequency_penalty", [bad](v1::GenerateRequest& in) {
                       in.mutable_sampling()->set_frequency_penalty(bad);
                     }});
    cases.push_back({"sampling.min_p",
                     [bad](v1::GenerateRequest& in) { in.mutable_sampling()->set_min_p(bad); }});
  }
  for (const int bad : {-1, std::numeric_limits<int>::min()}) {
    cases.push_back({"sampling.top_k",
                     [bad](v1::GenerateRequest& in) { in.mutable_sampling()->set_top_k(bad); }});
    cases.push_back({"sampling.penalty_last_n", [bad](v1::GenerateRequest& in) {
                       in.mutable_sampling()->set_penalty_last_n(bad);
                     }});
  }
  for (const int bad : {0, -1, 17, std::numeric_limits<int>::max()}) {
    cases.push_back(
        {"sampling.n", [bad](v1::GenerateRequest& in) { in.mutable_sampling()->set_n(bad); }});
  }
  cases.push_back({"sampling.logit_bias[256]", [](v1::GenerateRequest& in) {
                     (*in.mutable_sampling()->mutable_logit_bias())[256] = 1;
                   }});
  cases.push_back({"sampling.logit_bias[3]", [](v1::GenerateRequest& in) {
                     (*in.mutable_sampling()->mutable_logit_bias())[3] = kNan;
                   }});
  cases.push_back({"sampling.logit_bias[4]", [](v1::GenerateRequest& in) {
                     (*in.mutable_sampling()->mutable_logit_bias())[4] = 100.5f;
                   }});
  cases.push_back({"sampling.logit_bias", [](v1::GenerateRequest& in) {
                     for (int id = 0; id < 256; ++id) {
                       (*in.mutable_sampling()->mutable_logit_bias())[id] = -kInf;
                     }
                   }});
  cases.push_back({"sampling.logit_bias", [](v1::GenerateRequest& in) {
                     for (int id = 0; id < 256; ++id) {
                       if (id == 7 || id == 9) continue;
                       (*in.mutable_sampling()->mutable_logit_bias())[id] = -kInf;
                     }
                     in.mutable_stopping()->add_stop_token_ids(9);
                     in.mutable_stopping()->add_stop_token_ids(7);
                     in.mutable_stopping()->set_min_tokens(1);
                   }});
  cases.push_back({"sampling.logit_bias", [](v1::GenerateRequest& in) {
                     for (int id = 0; id < 100'000; ++id) {
                       (*in.mutable_sampling()->mutable_logit_bias())[id] = 0;
                     }
                   }});
  return cases;
}

std::vector<BadCase> StoppingCases() {
  std::vector<BadCase> cases = {
      {"stopping.max_tokens", SET(stopping, max_tokens, 0)},
      {"stopping.max_tokens", SET(stopping, max_tokens, -1)},
      {"stopping.max_tokens", SET(stopping, max_tokens, std::numeric_limits<int>::max())},
      {"stopping.max_tokens", SET(stopping, max_tokens, 509)},  // prompt 4, context 512
      {"stopping.min_tokens", SET(stopping, min_tokens, -1)},
      {"stopping.min_tokens", SET(stopping, min_tokens, 9)},  // above max_tokens
  };
  cases.push_back({"stopping.stop[0]", ADD(stopping, stop, "")});
  cases.push_back({"stopping.stop[0]", ADD(stopping, stop, std::string(1 << 20, 'x'))});
  cases.push_back({"stopping.stop", [](v1::GenerateRequest& in) {
                     for (int i = 0; i < 17; ++i) in.mutable_stopping()->add_stop("x");
                   }});
  cases.push_back({"body", ADD(stopping, stop, "\xff\xfe")});
  cases.push_back({"stopping.stop_token_ids[0]", ADD(stopping, stop_token_ids, 256)});
  cases.push_back({"stopping.stop_token_ids[0]", ADD(stopping, stop_token_ids, -1)});
  cases.push_back({"stopping.stop_token_ids", [](v1::GenerateRequest& in) {
                     for (int i = 0; i < 65; ++i) in.mutable_stopping()->add_stop_token_ids(i);
                   }});
  for (const int64_t seconds : {int64_t{0}, int64_t{-5}, int64_t{1} << 60}) {
    cases.push_back({"stopping.max_time", [seconds](v1::GenerateRequest& in) {
                       in.mutable_stopping()->mutable_max_time()->set_seconds(seconds);
                     }});
    cases.push_back({"scheduling.queue_timeout", [seconds](v1::GenerateRequest& in) {
                       in.mutable_scheduling()->mutable_queue_timeout()->set_seconds(seconds);
                     }});
  }
  cases.push_back({"stopping.max_time", [](v1::GenerateRequest& in) {
                     in.mutable_stopping()->mutable_max_time()->set_seconds(1);
                     in.mutable_stopping()->mutable_max_time()->set_nanos(2'000'000'000);
                   }});
  return cases;
}

std::vector<BadCase> OtherCases() {
  std::vector<BadCase> cases = {
      {"output.logprobs", SET(output, logprobs, -1)},
      {"output.logprobs", SET(output, logprobs, 21)},
      {"output.logprobs", SET(output, logprobs, std::numeric_limits<int>::max())},
      {"output.stream_interval", SET(output, stream_interval, 0)},
      {"output.stream_interval", SET(output, stream_interval, 1025)},
      {"cache.cache_salt", SET(cache, cache_salt, std::string(257, 's'))},
      {"scheduling.priority", SET(scheduling, priority, 101)},
      {"request_id", [](v1::GenerateRequest& in) { in.set_request_id(std::string(10'000, 'r')); }},
      {"request_id", [](v1::GenerateRequest& in) { in.set_request_id("a\nb"); }},
      {"text", [](v1::GenerateRequest& in) { in.clear_input(); }},
      {"text", [](v1::GenerateRequest& in) { in.set_text(""); }},
      {"token_ids.ids", [](v1::GenerateRequest& in) { in.mutable_token_ids()->clear_ids(); }},
      {"token_ids.ids[4]", ADD(token_ids, ids, -1)},
      {"token_ids.ids[4]", ADD(token_ids, ids, 256)},
      {"token_ids.ids[4]", ADD(token_ids, ids, std::numeric_limits<int>::min())},
  };
  const auto prompt_of = [](int num_tokens) {
    return [num_tokens](v1::GenerateRequest& in) {
      in.mutable_stopping()->clear_max_tokens();
      for (int i = 4; i < num_tokens; ++i) in.mutable_token_ids()->add_ids(1);
    };
  };
  cases.push_back({"token_ids.ids", prompt_of(512)});
  cases.push_back({"token_ids.ids", prompt_of(5000)});
  return cases;
}

class BadRequestTest : public testing::Test {
 protected:
  void ExpectRefused(const std::vector<BadCase>& cases) {
    TestServer server;
    server.ExpectCanary();
    for (const BadCase& bad : cases) {
      v1::GenerateRequest request = GreedyRequest(4, 8);
      bad.change(request);
      const Reply reply = server.Generate(request);
      SCOPED_TRACE(bad.field + ": " + reply.status.error_message());
      EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
      EXPECT_TRUE(reply.events.empty());
      EXPECT_THAT(FieldsOf(reply.status), Contains(bad.field));
      EXPECT_EQ(ReasonOf(reply.status), "BAD_FIELD");
      EXPECT_FALSE(RetrySecondsOf(reply.status).has_value());
      EXPECT_LT(reply.status.error_message().size(), 400u);
      server.ExpectCanary();
    }
  }
};

TEST_F(BadRequestTest, RefusesEveryBadSamplingField) { ExpectRefused(SamplingCases()); }
TEST_F(BadRequestTest, RefusesEveryBadStoppingField) { ExpectRefused(StoppingCases()); }
TEST_F(BadRequestTest, RefusesEveryOtherBadField) { ExpectRefused(OtherCases()); }

TEST_F(BadRequestTest, NamesAllBadFieldsAtOnce) {
  TestServer server;
  v1::GenerateRequest request = GreedyRequest(4, 8);
  request.mutable_sampling()->set_top_p(2);
  request.mutable_output()->set_logprobs(99);
  const auto fields = FieldsOf(server.Generate(request).status);
  EXPECT_THAT(fields, Contains("sampling.top_p"));
  EXPECT_THAT(fields, Contains("output.logprobs"));
}

// Of what there is too much, the elements are not looked at: one violation, however many are bad.
TEST_F(BadRequestTest, SaysOfTooManyElementsOnlyThatTheyAreTooMany) {
  TestServer server;
  const std::pair<const char*, Change> cases[] = {
      {"sampling.logit_bias",
       [](v1::GenerateRequest& in) {
         for (int i = 0; i < 1025; ++i) {
           (*in.mutable_sampling()->mutable_logit_bias())[1'000'000 + i] = kNan;
         }
       }},
      {"stopping.stop",
       [](v1::GenerateRequest& in) {
         for (int i = 0; i < 1000; ++i) in.mutable_stopping()->add_stop("");
       }},
      {"stopping.stop_token_ids",
       [](v1::GenerateRequest& in) {
         for (int i = 0; i < 1000; ++i) in.mutable_stopping()->add_stop_token_ids(-1);
       }},
      {"token_ids.ids",
       [](v1::GenerateRequest& in) {
         for (int i = 0; i < 300'000; ++i) in.mutable_token_ids()->add_ids(-1);
       }},
  };
  for (const auto& [field, change] : cases) {
    v1::GenerateRequest request = GreedyRequest(4, 8);
    change(request);
    const Reply reply = server.Generate(request);
    EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << field;
    EXPECT_THAT(FieldsOf(reply.status), testing::ElementsAre(field));
  }
}

TEST_F(BadRequestTest, AcceptsTheEdges) {
  TestServer server;
  const std::vector<Change> edges = {
      SET(sampling, temperature, 1e-40f),
      SET(sampling, temperature, 100),
      SET(sampling, top_k, std::numeric_limits<int>::max()),
      SET(sampling, seed, std::numeric_limits<uint64_t>::max()),
      SET(sampling, seed, 0),
      SET(sampling, typical_p, 1),
      SET(sampling, n, 16),
      SET(stopping, max_tokens, 508),  // prompt 4, context 512
      SET(output, logprobs, 20),
      SET(scheduling, priority, 0),
      [](v1::GenerateRequest& in) {
        in.mutable_stopping()->set_max_tokens(1);
        for (int i = 4; i < 511; ++i) in.mutable_token_ids()->add_ids(1);
      },
      [](v1::GenerateRequest& in) { (*in.mutable_sampling()->mutable_logit_bias())[3] = -kInf; }};
  for (size_t i = 0; i < edges.size(); ++i) {
    v1::GenerateRequest request = GreedyRequest(4, 8);
    edges[i](request);
    const Reply reply = server.Generate(request);
    EXPECT_TRUE(reply.status.ok()) << "edge " << i << ": " << reply.status.error_message();
  }
}

TEST_F(BadRequestTest, SaysBothNumbersWhenThePromptIsTooLong) {
  TestServer server;
  v1::GenerateRequest request = GreedyRequest(700, 1);
  const Reply reply = server.Generate(request);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("700"));
  EXPECT_THAT(reply.status.error_message(), HasSubstr("512"));
}

TEST_F(BadRequestTest, RefusesWhatTheWholePoolCannotHold) {
  TestServer::Options options;
  options.limits.num_pages = 5;  // 64 positions
  TestServer server(options);
  const Reply prompt = server.Generate(GreedyRequest(64, 1));
  EXPECT_EQ(prompt.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(prompt.status.error_message(), HasSubstr("KV pool of 64"));
  const Reply output = server.Generate(GreedyRequest(32, 33));
  EXPECT_THAT(FieldsOf(output.status), Contains("stopping.max_tokens"));
  EXPECT_TRUE(server.Generate(GreedyRequest(32, 32)).status.ok());
}

TEST_F(BadRequestTest, AnswersUnimplementedFieldsByName) {
  TestServer server;
  server.ExpectCanary();
  v1::GenerateRequest request = GreedyRequest(4, 8);
  request.mutable_constraint()->set_regex("a+");
  const Reply reply = server.Generate(request);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(ReasonOf(reply.status), "FEATURE");
  EXPECT_EQ(MetadataOf(reply.status, "field"), "constraint");
  server.ExpectCanary();
}

TEST_F(BadRequestTest, AnswersMalformedBytes) {
  TestServer server;
  server.ExpectCanary();
  std::string noise;
  for (int i = 0; i < 1024; ++i) noise.push_back(static_cast<char>((i * 197 + 55) % 256));
  std::string nested;
  for (int i = 0; i < 101; ++i) nested.push_back('\xfb');  // group 31 begins, 101 deep
  for (const char* method : {"Generate", "Tokenize", "Detokenize", "GetModel", "GetLoad"}) {
    for (const std::string& body : {noise, nested}) {
      const grpc::Status status = server.RawCall(method, body);
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << method;
      EXPECT_THAT(FieldsOf(status), Contains("body")) << method;
    }
  }
  EXPECT_EQ(server.RawCall("Generate", "").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(server.RawCall("NoSuchMethod", "").error_code(), grpc::StatusCode::UNIMPLEMENTED);
  server.ExpectCanary();
}

TEST_F(BadRequestTest, AnswersEveryPrefixOfAMessage) {
  TestServer server;
  v1::GenerateRequest request = GreedyRequest(4, 2);
  request.set_request_id("prefix");
  request.mutable_stopping()->add_stop("end");
  request.mutable_sampling()->set_top_p(0.5f);
  const std::string body = request.SerializeAsString();
  server.ExpectCanary();
  int num_ok = 0;
  for (size_t length = 0; length <= body.size(); ++length) {
    const grpc::Status status = server.RawCall("Generate", body.substr(0, length));
    if (status.ok()) {
      ++num_ok;
    } else {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
          << length << ": " << status.error_message();
    }
  }
  EXPECT_GE(num_ok, 1);
  server.ExpectCanary();
}

TEST_F(BadRequestTest, RefusesTwoInputsAndDropsUnknownFields) {
  TestServer server;
  v1::GenerateRequest text;
  text.set_text("hello");
  const std::string body = GreedyRequest(4, 2).SerializeAsString();
  const grpc::Status both = server.RawCall("Generate", body + text.SerializeAsString());
  EXPECT_EQ(both.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(both.error_message(), HasSubstr("only one of"));
  // Field 2000 of a megabyte, as a length-delimited value.
  const std::string unknown = std::string("\x82\x7d\x80\x80\x40", 5) + std::string(1 << 20, 'u');
  EXPECT_TRUE(server.RawCall("Generate", body + unknown).ok());
  server.ExpectCanary();
}

TEST_F(BadRequestTest, RefusesMessagesAboveTheBound) {
  TestServer server;
  v1::GenerateRequest request;
  request.set_text(std::string(4 << 20, 'a'));
  const Reply reply = server.Generate(request);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  server.ExpectCanary();
}

TEST_F(BadRequestTest, RefusesCompressedMessages) {
  TestServer server;
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  v1::TokenizeRequest request;
  request.set_text(std::string(1 << 20, 'a'));
  v1::TokenizeResponse response;
  const grpc::Status status = server.stub().Tokenize(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED) << status.error_message();
  server.ExpectCanary();
}

TEST_F(BadRequestTest, RefusesTextWithoutAVocabulary) {
  TestServer::Options options;
  options.piece_bytes = 0;
  TestServer server(options);
  v1::GenerateRequest request;
  request.set_text("hello");
  EXPECT_THAT(FieldsOf(server.Generate(request).status), Contains("text"));
  request = GreedyRequest(4, 8);
  request.mutable_output()->set_return_text(true);
  EXPECT_THAT(FieldsOf(server.Generate(request).status), Contains("output.return_text"));
  request = GreedyRequest(4, 8);
  request.mutable_stopping()->add_stop("x");
  EXPECT_THAT(FieldsOf(server.Generate(request).status), Contains("stopping.stop"));
  const Reply reply = server.Generate(GreedyRequest(4, 8));
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_FALSE(reply.accepted()->output().return_text());
  EXPECT_EQ(reply.Tokens().size(), 8u);
}

TEST_F(BadRequestTest, NeverEchoesMoreThanSixtyFourBytes) {
  TestServer server;
  v1::GenerateRequest request = GreedyRequest(4, 8);
  request.set_model(std::string(1 << 20, 'm'));
  const Reply reply = server.Generate(request);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(ReasonOf(reply.status), "MODEL_NOT_FOUND");
  EXPECT_EQ(reply.status.error_message().find(std::string(65, 'm')), std::string::npos);
  server.ExpectCanary();
}

}  // namespace
}  // namespace sluice::server
