#include "server/other_calls.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/channel_arguments.h>

#include <atomic>
#include <chrono>
#include <string>

#include "server/gate.h"

namespace sluice::server {

class OtherCalls::Refused final : public grpc::ServerGenericBidiReactor {
 public:
  explicit Refused(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

// Passes a call on, a message at a time: one is read, passed on, its answer read and passed back.
// So one operation at most is under way, on either side. That suits calls with one message and
// reflection, which answers each of its messages once. Deletes itself when both sides are done.
class OtherCalls::Relay final : public grpc::ServerGenericBidiReactor {
 public:
  Relay(grpc::GenericStub& stub, const std::string& method) : inner_(this) {
    stub.PrepareBidiStreamingCall(&inner_context_, method, grpc::StubOptions(), &inner_);
    inner_.AddHold();
    inner_.StartCall();
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    if (ok) return inner_.StartWrite(&request_);
    inner_.StartWritesDone();
    inner_.RemoveHold();
  }
  void OnWriteDone(bool ok) override {
    if (ok) return StartRead(&request_);
    inner_context_.TryCancel();
    inner_.RemoveHold();
  }
  void OnCancel() override { inner_context_.TryCancel(); }
  void OnDone() override { SideDone(); }

 private:
  class Inner final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
   public:
    explicit Inner(Relay* relay) : relay_(*relay) {}
    void OnWriteDone(bool ok) override {
      if (ok) return StartRead(&relay_.response_);
      RemoveHold();
    }
    void OnReadDone(bool ok) override {
      if (ok) return relay_.StartWrite(&relay_.response_);
      RemoveHold();
    }
    void OnDone(const grpc::Status& status) override {
      relay_.Finish(status);
      relay_.SideDone();
    }

   private:
    Relay& relay_;
  };

  void SideDone() {
    if (sides_.fetch_sub(1) == 1) delete this;
  }

  grpc::ClientContext inner_context_;
  grpc::ByteBuffer request_, response_;
  Inner inner_;
  std::atomic<int> sides_{2};
};

OtherCalls::OtherCalls(Authenticator* authenticator, std::unique_ptr<grpc::Server> inner)
    : authenticator_(*authenticator), inner_(std::move(inner)) {
  if (inner_) stub_.emplace(inner_->InProcessChannel(grpc::ChannelArguments()));
}

OtherCalls::~OtherCalls() {
  if (inner_) inner_->Shutdown(std::chrono::system_clock::now());
}

grpc::ServerGenericBidiReactor* OtherCalls::CreateReactor(
    grpc::GenericCallbackServerContext* context) {
  const std::string& method = context->method();
  if (const auto refusal = Refuse(authenticator_, Authenticator::PurposeOf(method), *context)) {
    return new Refused(*refusal);
  }
  const bool is_of_library = method.starts_with("/grpc.reflection.v1alpha.ServerReflection/") ||
                             method.starts_with("/grpc.channelz.v1.Channelz/");
  if (stub_ && is_of_library) return new Relay(*stub_, method);
  return new Refused(grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "no such method"));
}

}  // namespace sluice::server
