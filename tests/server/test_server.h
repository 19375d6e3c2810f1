#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"

#include "engine/engine.h"
#include "server/server.h"
#include "sluice/v1/inference.grpc.pb.h"
#include "tests/testing/fake_runner.h"

namespace sluice::server {

// A vocabulary of 256 tokens: token b is the byte b in text that comes in, and `piece_bytes` times
// a lower-case letter in text that goes out.
std::shared_ptr<const engine::Tokenizer> MakeByteTokenizer(int piece_bytes,
                                                           std::function<void()> on_encode = {});

// What a Generate call gave.
struct Reply {
  grpc::Status status;
  std::vector<v1::GenerateResponse> events;
  std::multimap<std::string, std::string> trailers;

  std::string Text(int index = 0) const;
  std::vector<int32_t> Tokens(int index = 0) const;
  const v1::Accepted* accepted() const;
  const v1::RequestFinished* finished() const;
};

// The parts of google.rpc.Status details.
std::string ReasonOf(const grpc::Status& status);
std::vector<std::string> FieldsOf(const grpc::Status& status);
std::optional<double> RetrySecondsOf(const grpc::Status& status);
std::string MetadataOf(const grpc::Status& status, const std::string& key);

// A server on a free port of the loopback with a model that is a FakeRunner behind real engines,
// and a client connected to it.
class TestServer {
 public:
  struct Options {
    ServerOptions server;
    engine::SchedulerLimits limits;
    engine::FakeRunner::Options runner;
    int num_engines = 1;
    int piece_bytes = 1;  // 0: no vocabulary
    int padding = 0;      // rows of the model beyond the vocabulary
    int max_context = 512;
    bool serve = true;
    std::string chat_template;  // none when empty
    std::string tool_use_template;
    std::string chat_error = "no template";
    std::function<void()> on_encode{};  // called when the tokenizer is
    bool access_log = false;            // write it to the default logger

    Options();
  };
  explicit TestServer(Options options = {});
  ~TestServer();

  void Serve();  // when Options::serve was false
  Server& server() { return *server_; }
  v1::Inference::Stub& stub() { return *stub_; }
  grpc::health::v1::Health::Stub& health() { return *health_; }
  std::shared_ptr<grpc::Channel> NewChannel() const;
  const engine::EngineStats& stats(int engine = 0) const;

  Reply Generate(const v1::GenerateRequest& request,
                 std::optional<std::chrono::milliseconds> deadline = std::nullopt);
  // Sends bytes as they are, to a method of Inference or a full path; nothing of the answer but the
  // status is kept.
  grpc::Status RawCall(const std::string& method, const std::string& body);
  // A fixed greedy call must give what it gave before, and nothing may be left of calls before it.
  void ExpectCanary();
  // Waits until no call is open and every page is free again.
  bool WaitUntilQuiet();

 private:
  const Options options_;
  std::vector<const engine::Engine*> engines_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
  std::vector<int32_t> canary_tokens_;
};

// In hex, as a file of credentials has it.
std::string Sha256(const std::string& text);

// A request for `max_tokens` greedy tokens with their ids, from a prompt of token ids.
v1::GenerateRequest GreedyRequest(int num_prompt, int max_tokens);

// True as soon as `condition` is, false after ten seconds.
bool Eventually(const std::function<bool()>& condition);

}  // namespace sluice::server
