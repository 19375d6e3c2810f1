#include <algorithm>
#include <cstdio>
#include <ctime>
#include <random>
#include <utility>

#include "cli/chat.h"
#include "cli/progress_bar.h"

#include "engine/base/mutex.h"
#include "engine/base/status.h"
#include "engine/chat/chat_encoder.h"

namespace sluice::cli {
namespace {

// The engine in this process: the path of the server without gRPC.
class LocalChat final : public ChatBackend {
 public:
  LocalChat(const ChatJob& job, engine::LoadedModel model) : job_(job), model_(std::move(model)) {}
  ~LocalChat() override { model_.dispatcher->Shutdown(); }

  absl::Status Reply(const std::vector<ChatTurn>& turns,
                     const std::function<bool(const engine::TokenChunk&)>& take) override {
    ASSIGN_OR_RETURN(engine::Request request, MakeRequest(turns));
    const engine::RequestHandle handle = request.handle;
    {
      // Held over the dispatch, so that a Cancel finds the request or comes before there is one.
      engine::MutexLock lock(mutex_);
      RETURN_IF_ERROR(model_.dispatcher->Dispatch(std::move(request)));
      running_ = handle;
    }
    const absl::Status status = Stream(take);
    {
      engine::MutexLock lock(mutex_);
      running_.reset();
    }
    model_.dispatcher->Forget(handle);
    return status;
  }

  void Cancel() override {
    engine::MutexLock lock(mutex_);
    if (running_) model_.dispatcher->Cancel(*running_, engine::Cancelled("interrupted"));
  }

 private:
  absl::StatusOr<engine::Request> MakeRequest(const std::vector<ChatTurn>& turns) {
    engine::Conversation conversation;
    for (const ChatTurn& turn : turns) {
      RETURN_IF_ERROR(conversation.Add({.role = turn.role, .content = turn.content}));
    }
    engine::Request request;
    request.handle = engine::RequestHandle{next_handle_++};
    request.id = "cli";
    ASSIGN_OR_RETURN(
        request.prompt,
        model_.chat->Encode(conversation, {.add_special = true, .parse_special = false},
                            std::time(nullptr)));
    request.sampling = job_.sampling;
    std::random_device random;
    request.sampling.seed = job_.seed.value_or(uint64_t{random()} << 32 | random());
    const int64_t positions =
        std::min<int64_t>(model_.facts.max_context, model_.facts.kv_pages * 16);
    const int64_t room = positions - static_cast<int64_t>(request.prompt.size());
    if (room < 1) {
      return engine::InvalidArgument(
          "the conversation of " + std::to_string(request.prompt.size()) +
          " tokens leaves no room in the context of " + std::to_string(positions));
    }
    request.stopping.fills_context = job_.max_tokens <= 0 || room < job_.max_tokens;
    request.stopping.max_tokens =
        static_cast<int32_t>(request.stopping.fills_context ? room : job_.max_tokens);
    request.arrival = engine::SteadyClock().Now();
    return request;
  }

  absl::Status Stream(const std::function<bool(const engine::TokenChunk&)>& take) {
    while (true) {
      for (const engine::TokenChunk& chunk : model_.dispatcher->chunks().Take(0)) {
        if (!take(chunk)) Cancel();
        if (chunk.request_end) return chunk.request_end->status;
      }
      if (model_.dispatcher->chunks().closed()) return engine::Unavailable("the engine is gone");
    }
  }

  const ChatJob job_;
  engine::LoadedModel model_;
  uint64_t next_handle_ = 1;
  engine::Mutex mutex_;
  std::optional<engine::RequestHandle> running_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<ChatBackend>> OpenLocalChat(const ChatJob& job) {
  engine::EngineOptions options = job.engine;
  options.max_batch = 1;  // one answer at a time: the KV pool, and what a GPU prepares, is for it
  absl::StatusOr<engine::LoadedModel> model;
  {
    ProgressBar bar;
    model = engine::LoadModel(job.model, options, /*num_lanes=*/1,
                              [&](const engine::LoadProgress& progress) { bar.Update(progress); });
  }
  RETURN_IF_ERROR(model.status());
  for (const std::string& warning : model->warnings) {
    std::fprintf(stderr, "warning: %s\n", warning.c_str());
  }
  if (model->chat == nullptr) {
    return engine::FailedPrecondition(model->chat_error + "; give one with --chat-template FILE");
  }
  return std::make_unique<LocalChat>(job, *std::move(model));
}

}  // namespace sluice::cli
