#include "server/counters.h"

#include <algorithm>
#include <cmath>

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
        "LOADING", "MODEL_NOT_FOUND", "QUEUE_FULL"}) {
    rejected_[reason] = 0;
  }
  for (const char* reason : {"eos", "stop", "length", "context"}) {
    requests_[{"Generate", "OK", reason}] = 0;
  }
  requests_[{"Generate", "CANCELLED", "cancelled"}] = 0;
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
  if (!generate) return;
  generate_duration_.Observe(seconds);
  if (reason == engine::FinishReason::kNone) return;  // never held a queue place
  const engine::Time now = std::chrono::steady_clock::now();
  if (last_end_ != engine::Time{}) {
    const double interval = engine::Seconds(now - last_end_);
    end_interval_ = end_interval_ == 0 ? interval : 0.9 * end_interval_ + 0.1 * interval;
  }
  last_end_ = now;
}

void Counters::CountRejected(std::string_view reason) {
  engine::MutexLock lock(mutex_);
  ++rejected_[std::string(reason)];
}

std::chrono::milliseconds Counters::RetryDelay() const {
  engine::MutexLock lock(mutex_);
  if (end_interval_ == 0) return std::chrono::milliseconds(1000);  // nothing measured yet
  const double milliseconds = std::ceil(std::clamp(end_interval_ * 1000, 20.0, 30'000.0));
  return std::chrono::milliseconds(static_cast<int64_t>(milliseconds));
}

Counters::Snapshot Counters::Read() const {
  engine::MutexLock lock(mutex_);
  return {requests_, rejected_, generate_duration_.Read()};
}

}  // namespace sluice::server
