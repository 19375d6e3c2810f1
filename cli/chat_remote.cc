#include <utility>

#include "cli/chat.h"
#include "cli/remote.h"
#include "grpcpp/grpcpp.h"

#include "engine/base/mutex.h"
#include "engine/base/status.h"
#include "engine/tokenizer/utf8.h"
#include "sluice/v1/inference.grpc.pb.h"

namespace sluice::cli {
namespace {

absl::Status ToStatus(const grpc::Status& status) {
  return engine::MakeStatus(static_cast<absl::StatusCode>(status.error_code()),
                            status.error_message());
}

// A server's replies.
class RemoteChat final : public ChatBackend {
 public:
  RemoteChat(const ChatJob& job, Remote remote)
      : job_(job),
        remote_(std::move(remote)),
        stub_(v1::Inference::NewStub(remote_.Connect(RetryingArguments()))) {}

  absl::Status CheckModel() {
    RETURN_IF_ERROR(engine::Prefix("--model-name", engine::CheckUtf8(job_.model_name)));
    grpc::ClientContext context;
    remote_.Sign(context);
    v1::GetModelRequest request;
    request.set_model(job_.model_name);
    v1::Model model;
    const grpc::Status status = stub_->GetModel(&context, request, &model);
    if (!status.ok()) return ToStatus(status);
    if (model.tokenizer().has_chat_template()) return absl::OkStatus();
    return engine::FailedPrecondition("the server's model " + model.name() +
                                      " has no usable chat template");
  }

  absl::Status Reply(const std::vector<ChatTurn>& turns,
                     const std::function<bool(const engine::TokenChunk&)>& take) override {
    // Of other bytes protobuf would write a line of its own to stderr.
    for (const ChatTurn& turn : turns) RETURN_IF_ERROR(engine::CheckUtf8(turn.content));
    grpc::ClientContext context;
    remote_.Sign(context);
    {
      engine::MutexLock lock(mutex_);
      running_ = &context;
    }
    const auto stream = stub_->Generate(&context, MakeRequest(turns));
    v1::GenerateResponse response;
    while (stream->Read(&response)) {
      engine::TokenChunk chunk;
      if (response.has_delta()) {
        chunk.text = response.delta().text();
      } else if (response.has_sequence_finished()) {
        chunk.sequence_end.emplace();
        const v1::FinishReason reason = response.sequence_finished().finish_reason();
        if (reason == v1::FINISH_REASON_LENGTH) {
          chunk.sequence_end->reason = engine::FinishReason::kLength;
        } else if (reason == v1::FINISH_REASON_CONTEXT) {
          chunk.sequence_end->reason = engine::FinishReason::kContext;
        }
      }
      if (!take(chunk)) context.TryCancel();
    }
    const grpc::Status status = stream->Finish();
    engine::MutexLock lock(mutex_);
    running_ = nullptr;
    return ToStatus(status);
  }

  void Cancel() override {
    engine::MutexLock lock(mutex_);
    if (running_ != nullptr) running_->TryCancel();
  }

 private:
  v1::GenerateRequest MakeRequest(const std::vector<ChatTurn>& turns) const {
    v1::GenerateRequest request;
    request.set_model(job_.model_name);
    for (const ChatTurn& turn : turns) {
      v1::ChatMessage* message = request.mutable_chat()->add_messages();
      message->set_role(turn.role);
      message->set_content(turn.content);
    }
    v1::Sampling& sampling = *request.mutable_sampling();
    sampling.set_temperature(job_.sampling.temperature);
    sampling.set_top_k(job_.sampling.top_k);
    sampling.set_typical_p(job_.sampling.typical_p);
    sampling.set_top_p(job_.sampling.top_p);
    sampling.set_min_p(job_.sampling.min_p);
    sampling.set_repetition_penalty(job_.sampling.repetition_penalty);
    sampling.set_presence_penalty(job_.sampling.presence_penalty);
    sampling.set_frequency_penalty(job_.sampling.frequency_penalty);
    if (job_.seed) sampling.set_seed(*job_.seed);
    if (job_.max_tokens > 0) request.mutable_stopping()->set_max_tokens(job_.max_tokens);
    return request;
  }

  const ChatJob job_;
  const Remote remote_;
  const std::unique_ptr<v1::Inference::Stub> stub_;
  engine::Mutex mutex_;
  grpc::ClientContext* running_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ChatBackend>> OpenRemoteChat(const ChatJob& job) {
  ASSIGN_OR_RETURN(Remote remote, Remote::Open(job.remote));
  auto chat = std::make_unique<RemoteChat>(job, std::move(remote));
  RETURN_IF_ERROR(chat->CheckModel());
  return chat;
}

}  // namespace sluice::cli
