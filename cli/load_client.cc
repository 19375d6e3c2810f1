#include "cli/load_client.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <thread>
#include <unordered_set>
#include <utility>

#include "grpcpp/grpcpp.h"

#include "engine/base/mutex.h"
#include "engine/base/status.h"
#include "sluice/v1/inference.grpc.pb.h"

namespace sluice::cli {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

int NumConnections(const LoadJob& job) {
  if (job.connections > 0) return job.connections;
  return job.rate > 0 ? 4 : std::clamp(job.streams / 32, 1, 8);
}

}  // namespace

class LoadClient::Impl : public std::enable_shared_from_this<LoadClient::Impl> {
 public:
  explicit Impl(const LoadJob& job) : job_(job), remote_(Remote::Open(job.remote)) {
    for (int i = 0; i < NumConnections(job) && remote_.ok(); ++i) {
      grpc::ChannelArguments arguments;
      arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
      arguments.SetMaxReceiveMessageSize(64 << 20);
      stubs_.push_back(v1::Inference::NewStub(remote_->Connect(arguments)));
    }
  }

  absl::StatusOr<ServerFacts> Connect();
  Outcome Run(int requests);
  void Cancel();

 private:
  class Call;

  v1::GenerateRequest MakeRequest(uint64_t number) const;
  void Start(size_t place);
  void Ended(Call* call, CallRecord record, size_t place);
  void Arrive(int requests);

  const LoadJob job_;
  const absl::StatusOr<Remote> remote_;
  std::vector<std::unique_ptr<v1::Inference::Stub>> stubs_;
  ServerFacts facts_;
  uint64_t first_number_ = 0;  // of this run's calls; one thread runs

  engine::Mutex mutex_;
  engine::CondVar ended_;
  std::vector<CallRecord> records_ ABSL_GUARDED_BY(mutex_);
  std::unordered_set<Call*> live_ ABSL_GUARDED_BY(mutex_);
  size_t num_started_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t num_ended_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t num_wanted_ ABSL_GUARDED_BY(mutex_) = 0;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

// One stream. Deletes itself in OnDone.
class LoadClient::Impl::Call final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Call(std::shared_ptr<Impl> owner, size_t place, v1::GenerateRequest request)
      : owner_(std::move(owner)), place_(place), request_(std::move(request)) {}

  void Begin(v1::Inference::Stub& stub, std::chrono::milliseconds timeout) {
    context_.set_deadline(std::chrono::system_clock::now() + timeout);
    owner_->remote_->Sign(context_);
    sent_ = Clock::now();
    stub.async()->Generate(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }
  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (response_.has_delta()) {
      TakeTokens(response_.delta().token_ids_size());
    } else if (response_.has_request_finished()) {
      record_.server_first_seconds = response_.request_finished().timing().time_to_first_token();
      record_.prompt_tokens = response_.request_finished().usage().prompt_tokens();
    }
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    record_.total_seconds = Seconds(Clock::now() - sent_);
    record_.status_code = status.error_code();
    record_.message = status.error_message();
    const std::shared_ptr<Impl> owner = std::move(owner_);
    owner->Ended(this, std::move(record_), place_);
    delete this;
  }

 private:
  void TakeTokens(int count) {
    if (count == 0) return;
    const Clock::time_point now = Clock::now();
    if (record_.output_tokens == 0) {
      record_.first_seconds = Seconds(now - sent_);
    } else {
      record_.gaps.push_back({static_cast<float>(Seconds(now - last_)), count});
    }
    record_.output_tokens += count;
    last_ = now;
  }

  std::shared_ptr<Impl> owner_;
  const size_t place_;
  const v1::GenerateRequest request_;
  grpc::ClientContext context_;
  v1::GenerateResponse response_;
  CallRecord record_;
  Clock::time_point sent_, last_;
};

absl::StatusOr<ServerFacts> LoadClient::Impl::Connect() {
  RETURN_IF_ERROR(remote_.status());
  grpc::ClientContext context;
  remote_->Sign(context);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  v1::GetModelRequest request;
  request.set_model(job_.model_name);
  v1::Model model;
  const grpc::Status status = stubs_[0]->GetModel(&context, request, &model);
  if (!status.ok()) {
    return engine::MakeStatus(static_cast<absl::StatusCode>(status.error_code()),
                              job_.remote.server + ": " + status.error_message());
  }
  if (model.vocab_size() < 1)
    return engine::Internal(job_.remote.server + ": a model without tokens");
  facts_ = {.model = model.name(),
            .build = model.provenance().build(),
            .backend = model.provenance().backend(),
            .numerics = model.provenance().numerics(),
            .vocab_size = model.vocab_size()};
  return facts_;
}

v1::GenerateRequest LoadClient::Impl::MakeRequest(uint64_t number) const {
  v1::GenerateRequest request;
  request.set_model(job_.model_name);
  std::mt19937_64 random(job_.seed * 0x9E3779B97F4A7C15u + number);
  auto& ids = *request.mutable_token_ids()->mutable_ids();
  ids.Reserve(job_.prompt_tokens);
  for (int i = 0; i < job_.prompt_tokens; ++i) {
    ids.Add(static_cast<int32_t>(random() % static_cast<uint64_t>(facts_.vocab_size)));
  }
  request.mutable_cache()->set_bypass_prefix_cache(true);  // what is measured is computed
  request.mutable_sampling()->set_temperature(job_.temperature);
  request.mutable_sampling()->set_seed(number);
  request.mutable_stopping()->set_max_tokens(job_.output_tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_output()->set_return_token_ids(true);
  request.mutable_output()->set_return_text(false);
  return request;
}

void LoadClient::Impl::Start(size_t place) {
  auto* const call = new Call(shared_from_this(), place, MakeRequest(first_number_ + place));
  {
    engine::MutexLock lock(mutex_);
    live_.insert(call);
  }
  call->Begin(*stubs_[place % stubs_.size()], job_.timeout);
  engine::MutexLock lock(mutex_);
  // A cancel that came between the two found a call that had no server yet.
  if (cancelled_ && live_.contains(call)) call->Cancel();
}

void LoadClient::Impl::Ended(Call* call, CallRecord record, size_t place) {
  size_t next = 0;
  {
    engine::MutexLock lock(mutex_);
    live_.erase(call);
    records_[place] = std::move(record);
    ++num_ended_;
    if (job_.rate > 0 || cancelled_ || num_started_ >= num_wanted_) {
      ended_.NotifyAll();
      return;
    }
    next = num_started_++;
  }
  Start(next);
}

// Starts calls at the times of a Poisson process.
void LoadClient::Impl::Arrive(int requests) {
  std::mt19937_64 random(job_.seed);
  Clock::time_point when = Clock::now();
  for (int i = 0; i < requests; ++i) {
    std::this_thread::sleep_until(when);
    {
      engine::MutexLock lock(mutex_);
      if (cancelled_) return;
      ++num_started_;
    }
    Start(static_cast<size_t>(i));
    const double uniform = (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53;
    when += std::chrono::nanoseconds(std::llround(-1e9 * std::log(uniform) / job_.rate));
  }
}

LoadClient::Outcome LoadClient::Impl::Run(int requests) {
  const auto wanted = static_cast<size_t>(requests);
  const size_t at_first =
      job_.rate > 0 ? 0 : std::min(wanted, static_cast<size_t>(std::max(1, job_.streams)));
  {
    engine::MutexLock lock(mutex_);
    records_.assign(wanted, {});
    num_wanted_ = wanted;
    num_started_ = at_first;
    num_ended_ = 0;
  }
  const Clock::time_point begin = Clock::now();
  for (size_t i = 0; i < at_first; ++i) Start(i);
  if (job_.rate > 0) Arrive(requests);
  Outcome outcome;
  engine::MutexLock lock(mutex_);
  while (num_ended_ < num_started_) ended_.Wait(mutex_);
  outcome.seconds = Seconds(Clock::now() - begin);
  records_.resize(num_started_);  // fewer than wanted when cancelled
  outcome.calls = std::move(records_);
  first_number_ += wanted;
  return outcome;
}

void LoadClient::Impl::Cancel() {
  engine::MutexLock lock(mutex_);
  cancelled_ = true;
  for (Call* call : live_) call->Cancel();
}

LoadClient::LoadClient(const LoadJob& job) : impl_(std::make_shared<Impl>(job)) {}
LoadClient::~LoadClient() = default;
absl::StatusOr<ServerFacts> LoadClient::Connect() { return impl_->Connect(); }
LoadClient::Outcome LoadClient::Run(int requests) { return impl_->Run(requests); }
void LoadClient::Cancel() { impl_->Cancel(); }

}  // namespace sluice::cli
