#include "server/counters.h"

#include <algorithm>

#include "server/rpc_error.h"

namespace sluice::server {

namespace {

// The engine ends a request whose client left like a failed one; here they are told apart.
std::string FinishLabel(absl::StatusCode code, engine::FinishReason reason) {
  if (reason == engine::FinishReason::kNone) return "";
  if (code == absl::StatusCode::kCancelled) return "cancelled";
  return std::string(Name(reason));
}

}  // namespace

// Series begin at zero, so that the first event already shows as a rate.
Counters::Counters() : generate_duration_(engine::LatencyBounds()) {
  for (const char* reason :
       {"BAD_FIELD", "FEATURE", "DEADLINE_EXCEEDED", "DRAINING", "DUPLICATE_REQUEST", "ENGINE_DOWN",
        "LOADING", "MODEL_NOT_FOUND", "QUEUE_FULL", "QUOTA_EXCEEDED", "DEADLINE_UNMEETABLE",
        "MODEL_NOT_ALLOWED", "PRIORITY_NOT_ALLOWED"}) {
    rejected_[reason] = 0;
  }
  for (const char* reason : {"eos", "stop", "length", "context"}) {
    requests_[{"Generate", "OK", reason}] = 0;
  }
  requests_[{"Generate", "CANCELLED", "cancelled"}] = 0;
  // As they end that were refused, and those that an engine had begun.
  for (const char* code : {"DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}) {
    requests_[{"Generate", code, ""}] = 0;
    requests_[{"Generate", code, "error"}] = 0;
  }
  requests_[{"Generate", "ABORTED", "error"}] = 0;
  requests_[{"Generate", "INVALID_ARGUMENT", ""}] = 0;
  for (const char* method : {"Tokenize", "Detokenize", "GetModel", "ListModels", "GetLoad"}) {
    requests_[{method, "OK", ""}] = 0;
  }
}

void Counters::CountRequest(std::string_view method, absl::StatusCode code,
                            engine::FinishReason reason, double seconds) {
  const bool generate = method == "Generate";
  RequestKey key{std::string(method), std::string(CodeName(code)), FinishLabel(code, reason)};
  engine::MutexLock lock(mutex_);
  ++requests_[std::move(key)];
  if (generate) generate_duration_.Observe(seconds);
}

void Counters::CountRejected(std::string_view reason) {
  engine::MutexLock lock(mutex_);
  ++rejected_[std::string(reason)];
}

Counters::Snapshot Counters::Read() const {
  engine::MutexLock lock(mutex_);
  return {requests_, rejected_, generate_duration_.Read()};
}

}  // namespace sluice::server
