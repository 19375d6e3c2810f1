#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "cli/remote.h"
#include "grpcpp/grpcpp.h"

#include "engine/base/mutex.h"
#include "sluice/v1/inference.grpc.pb.h"

namespace sluice::cli {

// A Generate stream of one sequence that outlives its server: when it breaks it goes on at the next
// one, and who reads it sees the events of one stream. Each server is tried once after the last
// event. With one server and no resuming it is that server's stream. Read and Finish from one
// thread, Cancel from any.
//
//   ResumingStream stream(std::move(servers), request, /*resumes=*/true);
//   while (stream.Read(&event)) Use(event);
//   const grpc::Status status = stream.Finish();
class ResumingStream {
 public:
  // The first of `servers` is called at once. To be resumed, `request` asks for token ids.
  ResumingStream(std::vector<Remote> servers, v1::GenerateRequest request, bool resumes);

  // The next event; false at the end.
  bool Read(v1::GenerateResponse* event);
  // How the stream ended, once Read has said so.
  const grpc::Status& Finish() const { return status_; }
  void Cancel();

  int num_resumed() const { return num_resumed_; }

 private:
  void Call();
  bool CanGoOn() const;

  const std::vector<Remote> servers_;
  const bool resumes_;
  v1::GenerateRequest request_;  // of the next call
  bool accepted_ = false;
  size_t server_index_ = 0;
  size_t num_tries_ = 1;  // since the last event
  int num_resumed_ = 0;
  grpc::Status status_;

  std::unique_ptr<v1::Inference::Stub> stub_;
  mutable engine::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<grpc::ClientContext> context_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;  // uses context_
};

}  // namespace sluice::cli
