#include <algorithm>
#include <cstdio>
#include <random>
#include <utility>

#include "cli/generate.h"
#include "cli/progress_bar.h"

#include "engine/base/status.h"

namespace sluice::cli {
namespace {

using engine::InvalidArgument;

// One request is all this process ever has.
constexpr engine::RequestHandle kRequest{1};

absl::StatusOr<std::vector<engine::TokenId>> EncodePrompt(const GenerateJob& job,
                                                          const engine::LoadedModel& model) {
  std::vector<engine::TokenId> prompt;
  if (job.token_ids) {
    prompt = *job.token_ids;
    for (const engine::TokenId id : prompt) {
      if (id >= model.facts.vocab_size) {
        return InvalidArgument("--token-ids: " + std::to_string(id) +
                               " is not below the vocabulary's size, " +
                               std::to_string(model.facts.vocab_size));
      }
    }
  } else {
    if (model.tokenizer == nullptr) {
      return InvalidArgument(model.facts.file +
                             " has no vocabulary: give --token-ids instead of a text");
    }
    ASSIGN_OR_RETURN(prompt,
                     model.tokenizer->Encode(*job.text, {job.add_special, job.parse_special}));
  }
  if (prompt.empty())
    return InvalidArgument("the prompt is empty and this model adds no BOS token");
  return prompt;
}

absl::StatusOr<engine::Request> MakeRequest(const GenerateJob& job,
                                            const engine::LoadedModel& model) {
  engine::Request request;
  request.handle = kRequest;
  request.id = "cli";
  ASSIGN_OR_RETURN(request.prompt, EncodePrompt(job, model));
  request.sampling = job.sampling;
  std::random_device random;
  request.sampling.seed = job.seed.value_or(uint64_t{random()} << 32 | random());
  request.stopping = job.stopping;
  request.output = job.output;
  if (model.tokenizer == nullptr) {
    request.output.return_text = false;
    if (!job.stopping.stop.empty()) {
      return InvalidArgument("--stop: " + model.facts.file + " has no vocabulary");
    }
  }
  const int64_t positions = std::min<int64_t>(model.facts.max_context, model.facts.kv_pages * 16);
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  const int64_t needed = prompt_tokens + std::max(job.stopping.max_tokens, 1);
  if (needed > positions) {
    return InvalidArgument("prompt of " + std::to_string(prompt_tokens) +
                           " tokens and --max-tokens " + std::to_string(needed - prompt_tokens) +
                           " are more than the " + std::to_string(positions) +
                           " positions of context and KV pool");
  }
  if (request.stopping.max_tokens == 0) {
    request.stopping.max_tokens = static_cast<int32_t>(positions - prompt_tokens);
    request.stopping.fills_context = true;
  }
  return request;
}

}  // namespace

absl::StatusOr<GenerateOutcome> GenerateLocally(const GenerateJob& job, SignalWatcher& signals) {
  // No more sequences than these run: the KV pool, and what a GPU prepares, is for as many.
  engine::EngineOptions options = job.engine;
  options.max_batch = std::min(options.max_batch, job.sampling.n);
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
  ASSIGN_OR_RETURN(engine::Request request, MakeRequest(job, *model));

  engine::Dispatcher& dispatcher = *model->dispatcher;
  const engine::SteadyClock clock;
  request.arrival = clock.Now();
  const bool ids = job.print_token_ids || model->tokenizer == nullptr;
  Transcript transcript(stdout, ids ? Transcript::Form::kTokenIds : Transcript::Form::kText,
                        job.sampling.n, request.arrival);
  RETURN_IF_ERROR(dispatcher.Dispatch(std::move(request)));
  const auto cancel = [&] { dispatcher.Cancel(kRequest, engine::Cancelled("interrupted")); };
  signals.Arm(cancel);

  GenerateOutcome outcome;
  for (bool ended = false; !ended;) {
    for (const engine::TokenChunk& chunk : dispatcher.chunks().Take(0)) {
      if (!transcript.Add(chunk, clock.Now())) cancel();
      if (!chunk.request_end) continue;
      ended = true;
      outcome.status = chunk.request_end->status;
      transcript.Finish();
      outcome.summary = transcript.Summary(chunk.request_end->usage);
    }
    if (dispatcher.chunks().closed() && !ended) {
      ended = true;
      outcome.status = engine::Unavailable("the engine is gone");
    }
  }
  signals.Disarm();
  dispatcher.Forget(kRequest);
  dispatcher.Shutdown();
  return outcome;
}

}  // namespace sluice::cli
