#include "tests/server/test_server.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <openssl/sha.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <cstdio>
#include <thread>
#include <utility>

#include "google/rpc/status.pb.h"

#include "engine/chat/chat_encoder.h"

namespace sluice::server {
namespace {

constexpr int kVocabSize = 256;

class ByteTokenizer final : public engine::Tokenizer {
 public:
  ByteTokenizer(int piece_bytes, std::function<void()> on_encode)
      : on_encode_(std::move(on_encode)) {
    vocab_size_ = kVocabSize;
    model_ = "bytes";
    for (int id = 0; id < kVocabSize; ++id) {
      pieces_.emplace_back(static_cast<size_t>(piece_bytes), static_cast<char>('a' + id % 26));
    }
  }
  absl::StatusOr<std::vector<engine::TokenId>> Encode(std::string_view text,
                                                      const EncodeOptions&) const override {
    if (on_encode_) on_encode_();
    std::vector<engine::TokenId> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  absl::StatusOr<std::vector<engine::TokenId>> EncodeChat(
      const engine::MarkedText& text, const EncodeOptions& options) const override {
    return Encode(text.bytes(), options);
  }
  std::string_view TokenBytes(engine::TokenId id) const override {
    return pieces_[static_cast<size_t>(id)];
  }
  engine::TokenType Type(engine::TokenId) const override { return engine::TokenType::kNormal; }

 private:
  const std::function<void()> on_encode_;
  std::vector<std::string> pieces_;
};

template <typename Detail>
std::optional<Detail> DetailOf(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return std::nullopt;
  for (const auto& any : details.details()) {
    Detail detail;
    if (any.Is<Detail>() && any.UnpackTo(&detail)) return detail;
  }
  return std::nullopt;
}

}  // namespace

std::shared_ptr<const engine::Tokenizer> MakeByteTokenizer(int piece_bytes,
                                                           std::function<void()> on_encode) {
  return std::make_shared<ByteTokenizer>(piece_bytes, std::move(on_encode));
}

std::string Reply::Text(int index) const {
  std::string text;
  for (const auto& event : events) {
    if (event.has_delta() && event.delta().index() == index) text += event.delta().text();
  }
  return text;
}

std::vector<int32_t> Reply::Tokens(int index) const {
  std::vector<int32_t> ids;
  for (const auto& event : events) {
    if (!event.has_delta() || event.delta().index() != index) continue;
    EXPECT_EQ(event.delta().position(), static_cast<int32_t>(ids.size()));
    ids.insert(ids.end(), event.delta().token_ids().begin(), event.delta().token_ids().end());
  }
  return ids;
}

const v1::Accepted* Reply::accepted() const {
  return !events.empty() && events.front().has_accepted() ? &events.front().accepted() : nullptr;
}

const v1::RequestFinished* Reply::finished() const {
  if (events.empty() || !events.back().has_request_finished()) return nullptr;
  return &events.back().request_finished();
}

std::string ReasonOf(const grpc::Status& status) {
  const auto detail = DetailOf<google::rpc::ErrorInfo>(status);
  if (!detail) return "";
  EXPECT_EQ(detail->domain(), "sluice");
  return detail->reason();
}

std::string MetadataOf(const grpc::Status& status, const std::string& key) {
  const auto detail = DetailOf<google::rpc::ErrorInfo>(status);
  if (!detail || detail->metadata().count(key) == 0) return "";
  return detail->metadata().at(key);
}

std::vector<std::string> FieldsOf(const grpc::Status& status) {
  std::vector<std::string> fields;
  if (const auto detail = DetailOf<google::rpc::BadRequest>(status)) {
    for (const auto& violation : detail->field_violations()) fields.push_back(violation.field());
  }
  return fields;
}

std::optional<double> RetrySecondsOf(const grpc::Status& status) {
  const auto detail = DetailOf<google::rpc::RetryInfo>(status);
  if (!detail) return std::nullopt;
  return static_cast<double>(detail->retry_delay().seconds()) +
         detail->retry_delay().nanos() * 1e-9;
}

TestServer::Options::Options() {
  server.listen = "127.0.0.1:0";
  server.build = "test build";
  limits.max_batch = 8;
  limits.max_step_tokens = 64;
  limits.max_queue = 256;
  limits.num_pages = 257;
  runner.vocab_size = kVocabSize;
}

TestServer::TestServer(Options options) : options_(std::move(options)) {
  spdlog::set_level(options_.access_log ? spdlog::level::info : spdlog::level::warn);
  auto server = Server::Start(options_.server);
  if (!server.ok()) {
    ADD_FAILURE() << server.status();
    std::abort();
  }
  server_ = std::move(*server);
  channel_ = NewChannel();
  stub_ = v1::Inference::NewStub(channel_);
  health_ = grpc::health::v1::Health::NewStub(channel_);
  if (options_.serve) Serve();
}

TestServer::~TestServer() { server_->Shutdown(); }

void TestServer::Serve() {
  engine::LoadedModel model;
  model.facts.name = "fake";
  model.facts.architecture = "fake";
  model.facts.weights_digest = "0123";
  model.facts.vocab_size = kVocabSize + options_.padding;
  model.facts.context_length = options_.max_context;
  model.facts.max_context = options_.max_context;
  model.facts.kv_pages = options_.limits.num_pages - 1;
  model.facts.backend = "fake";
  model.facts.kv_dtype = "f16";
  model.self_check = {.passed = true,
                      .max_relative_error = 1e-6,
                      .tolerance = 0.002,
                      .top1_equal = true,
                      .seconds = 0.01,
                      .seconds_per_token = 1e-6,
                      .message = "fine"};
  if (options_.piece_bytes > 0) {
    model.tokenizer = MakeByteTokenizer(options_.piece_bytes, options_.on_encode);
    model.chat_error = options_.chat_error;
    if (!options_.chat_template.empty()) {
      model.chat = *engine::ChatEncoder::Create(options_.chat_template, model.tokenizer,
                                                options_.tool_use_template);
    }
  }
  engine::SchedulerLimits limits = options_.limits;
  limits.max_context = options_.max_context;
  engine::FakeRunner::Options runner = options_.runner;
  runner.num_pages = limits.num_pages;
  runner.max_batch = limits.max_batch;
  runner.max_step_tokens = limits.max_step_tokens;
  auto chunks = std::make_unique<engine::ChunkMailbox>(server_->num_lanes());
  std::vector<std::unique_ptr<engine::Engine>> engines;
  for (int i = 0; i < options_.num_engines; ++i) {
    engines.push_back(std::make_unique<engine::Engine>(
        i, limits, std::make_unique<engine::FakeRunner>(runner), model.tokenizer, chunks.get()));
    engines_.push_back(engines.back().get());
  }
  model.dispatcher = std::make_unique<engine::Dispatcher>(std::move(engines), std::move(chunks));
  server_->Serve(std::move(model));
}

std::shared_ptr<grpc::Channel> TestServer::NewChannel() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // or it takes megabytes before anybody reads
  return grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->port()),
                                   grpc::InsecureChannelCredentials(), arguments);
}

const engine::EngineStats& TestServer::stats(int engine) const {
  return engines_[static_cast<size_t>(engine)]->stats();
}

Reply TestServer::Generate(const v1::GenerateRequest& request,
                           std::optional<std::chrono::milliseconds> deadline) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       deadline.value_or(std::chrono::seconds(60)));
  Reply reply;
  auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse event;
  while (reader->Read(&event)) reply.events.push_back(event);
  reply.status = reader->Finish();
  for (const auto& [key, value] : context.GetServerTrailingMetadata()) {
    reply.trailers.emplace(std::string(key.data(), key.size()),
                           std::string(value.data(), value.size()));
  }
  return reply;
}

grpc::Status TestServer::RawCall(const std::string& method, const std::string& body) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  grpc::CompletionQueue queue;
  grpc::GenericStub generic(channel_);
  auto call = generic.PrepareCall(
      &context, method[0] == '/' ? method : "/sluice.v1.Inference/" + method, &queue);
  void* tag = nullptr;
  bool ok = false;
  call->StartCall(nullptr);
  queue.Next(&tag, &ok);
  grpc::Slice slice(body);
  call->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
  queue.Next(&tag, &ok);
  for (ok = true; ok;) {
    grpc::ByteBuffer answer;
    call->Read(&answer, nullptr);
    queue.Next(&tag, &ok);
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
  return status;
}

void TestServer::ExpectCanary() {
  const Reply reply = Generate(GreedyRequest(5, 8));
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  if (canary_tokens_.empty()) canary_tokens_ = reply.Tokens();
  EXPECT_EQ(canary_tokens_.size(), 8u);
  EXPECT_EQ(reply.Tokens(), canary_tokens_);
  EXPECT_TRUE(WaitUntilQuiet());
}

bool TestServer::WaitUntilQuiet() {
  return Eventually([this] {
    grpc::ClientContext context;
    v1::Load load;
    if (!stub_->GetLoad(&context, v1::GetLoadRequest(), &load).ok()) return false;
    if (load.open_streams() != 0) return false;
    for (const auto& engine : load.engines()) {
      if (engine.kv_pages_free() != engine.kv_pages_total() || engine.waiting() != 0 ||
          engine.running() != 0) {
        return false;
      }
    }
    return true;
  });
}

std::string Sha256(const std::string& text) {
  uint8_t hash[32];
  SHA256(reinterpret_cast<const uint8_t*>(text.data()), text.size(), hash);
  std::string hex;
  for (const uint8_t byte : hash) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", byte);
    hex += digits;
  }
  return hex;
}

v1::GenerateRequest GreedyRequest(int num_prompt, int max_tokens) {
  v1::GenerateRequest request;
  for (int i = 0; i < num_prompt; ++i) request.mutable_token_ids()->add_ids(i % kVocabSize);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_seed(1);  // FakeRunner draws by it at any temperature
  request.mutable_stopping()->set_max_tokens(max_tokens);
  request.mutable_output()->set_return_token_ids(true);
  return request;
}

bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return condition();
}

}  // namespace sluice::server
