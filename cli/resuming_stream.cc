#include "cli/resuming_stream.h"

#include <utility>

namespace sluice::cli {
namespace {

// The rest of a stream is what the same call would have given, with everything as it was resolved.
void BeginToResume(const v1::Accepted& accepted, v1::GenerateRequest& request) {
  request.set_model(accepted.model());
  *request.mutable_sampling() = accepted.sampling();
  *request.mutable_stopping() = accepted.stopping();
  *request.mutable_output() = accepted.output();
  request.set_add_special(accepted.add_special());
  request.set_parse_special(accepted.parse_special());
  v1::Resume& resume = *request.mutable_resume();
  *resume.mutable_provenance() = accepted.provenance();
  resume.set_prompt_digest(accepted.prompt_digest());
  if (accepted.has_rendered_at()) resume.set_rendered_at(accepted.rendered_at());
}

}  // namespace

ResumingStream::ResumingStream(std::vector<Remote> servers, v1::GenerateRequest request,
                               bool resumes)
    : servers_(std::move(servers)), resumes_(resumes), request_(std::move(request)) {
  Call();
}

void ResumingStream::Call() {
  // One that resumes goes to the next server at once.
  grpc::ChannelArguments arguments = resumes_ ? grpc::ChannelArguments() : RetryingArguments();
  arguments.SetMaxReceiveMessageSize(64 << 20);
  // What the process knows of a server that was down is out of date by now.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  auto context = std::make_unique<grpc::ClientContext>();
  servers_[server_index_].Sign(*context);
  reader_.reset();
  stub_ = v1::Inference::NewStub(servers_[server_index_].Connect(arguments));
  engine::MutexLock lock(mutex_);
  context_ = std::move(context);
  reader_ = stub_->Generate(context_.get(), request_);
  if (cancelled_) context_->TryCancel();
}

bool ResumingStream::Read(v1::GenerateResponse* event) {
  while (true) {
    while (reader_->Read(event)) {
      if (event->has_accepted() && std::exchange(accepted_, true)) continue;  // it is told once
      num_tries_ = 0;
      if (resumes_ && event->has_accepted()) BeginToResume(event->accepted(), request_);
      if (resumes_ && event->has_delta())
        request_.mutable_resume()->mutable_token_ids()->MergeFrom(event->delta().token_ids());
      return true;
    }
    status_ = reader_->Finish();
    if (!CanGoOn()) return false;
    ++num_tries_;
    if (accepted_) ++num_resumed_;
    server_index_ = (server_index_ + 1) % servers_.size();
    Call();
  }
}

bool ResumingStream::CanGoOn() const {
  if (!resumes_ || num_tries_ >= servers_.size()) return false;
  switch (status_.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::INTERNAL:
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
    case grpc::StatusCode::FAILED_PRECONDITION: {  // another one may be of equal provenance
      engine::MutexLock lock(mutex_);
      return !cancelled_;
    }
    default:
      return false;
  }
}

void ResumingStream::Cancel() {
  engine::MutexLock lock(mutex_);
  cancelled_ = true;
  context_->TryCancel();
}

}  // namespace sluice::cli
