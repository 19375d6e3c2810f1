#include <cstdio>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cli/generate.h"
#include "cli/remote.h"
#include "cli/resuming_stream.h"
#include "grpcpp/grpcpp.h"

#include "engine/base/status.h"
#include "engine/tokenizer/utf8.h"
#include "sluice/v1/inference.grpc.pb.h"

namespace sluice::cli {
namespace {

void FillSampling(const GenerateJob& job, v1::Sampling& out) {
  const engine::SamplingParams& sampling = job.sampling;
  out.set_temperature(sampling.temperature);
  out.set_top_k(sampling.top_k);
  out.set_typical_p(sampling.typical_p);
  out.set_top_p(sampling.top_p);
  out.set_min_p(sampling.min_p);
  out.set_repetition_penalty(sampling.repetition_penalty);
  out.set_presence_penalty(sampling.presence_penalty);
  out.set_frequency_penalty(sampling.frequency_penalty);
  if (job.seed) out.set_seed(*job.seed);
  out.set_n(sampling.n);
}

// Of other bytes protobuf would write a line of its own to stderr, and the server could not say
// which field they stand in.
absl::Status CheckTexts(const GenerateJob& job) {
  RETURN_IF_ERROR(engine::CheckUtf8(job.text.value_or("")));
  for (const std::string& stop : job.stopping.stop) {
    RETURN_IF_ERROR(engine::Prefix("--stop", engine::CheckUtf8(stop)));
  }
  return engine::Prefix("--model-name", engine::CheckUtf8(job.model_name));
}

v1::GenerateRequest MakeRequest(const GenerateJob& job) {
  v1::GenerateRequest request;
  request.set_model(job.model_name);
  if (job.text) {
    request.set_text(*job.text);
    request.set_add_special(job.add_special);
    request.set_parse_special(job.parse_special);
  } else {
    request.mutable_token_ids()->mutable_ids()->Add(job.token_ids->begin(), job.token_ids->end());
  }
  FillSampling(job, *request.mutable_sampling());
  v1::Stopping& stopping = *request.mutable_stopping();
  if (job.stopping.max_tokens > 0) stopping.set_max_tokens(job.stopping.max_tokens);
  stopping.set_min_tokens(job.stopping.min_tokens);
  for (const std::string& stop : job.stopping.stop) stopping.add_stop(stop);
  stopping.set_ignore_eos(job.stopping.ignore_eos);
  v1::Output& output = *request.mutable_output();
  output.set_return_token_ids(true);
  if (job.output.logprobs >= 0) output.set_logprobs(job.output.logprobs);
  // The default is text exactly when the model has a vocabulary.
  if (job.print_token_ids) output.set_return_text(false);
  return request;
}

engine::FinishReason ReasonOf(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_EOS:
      return engine::FinishReason::kEos;
    case v1::FINISH_REASON_STOP:
      return engine::FinishReason::kStop;
    case v1::FINISH_REASON_LENGTH:
      return engine::FinishReason::kLength;
    case v1::FINISH_REASON_CONTEXT:
      return engine::FinishReason::kContext;
    case v1::FINISH_REASON_DEADLINE:
      return engine::FinishReason::kDeadline;
    case v1::FINISH_REASON_CONSTRAINT_COMPLETE:
      return engine::FinishReason::kConstraintComplete;
    case v1::FINISH_REASON_ERROR:
      return engine::FinishReason::kError;
    default:
      return engine::FinishReason::kNone;
  }
}

engine::TokenChunk ChunkOf(const v1::Delta& delta) {
  engine::TokenChunk chunk;
  chunk.index = delta.index();
  chunk.position = delta.position();
  chunk.token_ids.assign(delta.token_ids().begin(), delta.token_ids().end());
  chunk.text = delta.text();
  for (const v1::TokenLogprobs& token : delta.logprobs()) {
    engine::TokenLogprobs& out = chunk.logprobs.emplace_back();
    out.token = token.token_id();
    out.logprob = token.logprob();
    for (const v1::TokenLogprob& top : token.top()) {
      out.top.push_back({top.token_id(), top.logprob()});
    }
  }
  return chunk;
}

engine::TokenChunk ChunkOf(const v1::SequenceFinished& finished) {
  engine::TokenChunk chunk;
  chunk.index = finished.index();
  chunk.sequence_end.emplace();
  chunk.sequence_end->reason = ReasonOf(finished.finish_reason());
  chunk.sequence_end->matched_stop = finished.matched_stop();
  return chunk;
}

// The servers of the list "A:P,B:P".
absl::StatusOr<std::vector<Remote>> OpenAll(const RemoteFlags& flags) {
  std::vector<Remote> servers;
  std::istringstream list(flags.server);
  RemoteFlags one = flags;
  while (std::getline(list, one.server, ',')) {
    ASSIGN_OR_RETURN(Remote remote, Remote::Open(one));
    servers.push_back(std::move(remote));
  }
  return servers;
}

}  // namespace

absl::StatusOr<GenerateOutcome> GenerateRemotely(const GenerateJob& job, SignalWatcher& signals) {
  RETURN_IF_ERROR(CheckTexts(job));
  ASSIGN_OR_RETURN(std::vector<Remote> servers, OpenAll(job.remote));
  const engine::SteadyClock clock;
  const engine::Time start = clock.Now();
  Transcript transcript(stdout,
                        job.print_token_ids ? Transcript::Form::kTokenIds : Transcript::Form::kText,
                        job.sampling.n, start);
  ResumingStream stream(std::move(servers), MakeRequest(job), job.resume);
  signals.Arm([&] { stream.Cancel(); });

  engine::Usage usage;
  v1::GenerateResponse response;
  while (stream.Read(&response)) {
    bool open = true;
    if (response.has_delta()) open = transcript.Add(ChunkOf(response.delta()), clock.Now());
    if (response.has_sequence_finished()) {
      open = transcript.Add(ChunkOf(response.sequence_finished()), clock.Now());
    }
    if (response.has_accepted()) {
      usage.prompt_tokens = response.accepted().prompt_tokens();
      // A model without a vocabulary has no text to show.
      if (!response.accepted().output().return_text()) {
        transcript.set_form(Transcript::Form::kTokenIds);
      }
    }
    if (!open) stream.Cancel();
  }
  const grpc::Status& status = stream.Finish();
  signals.Disarm();
  transcript.Finish();

  GenerateOutcome outcome;
  outcome.status = engine::MakeStatus(static_cast<absl::StatusCode>(status.error_code()),
                                      status.error_message());
  if (transcript.num_tokens() > 0 || status.ok()) outcome.summary = transcript.Summary(usage);
  if (stream.num_resumed() > 0 && !outcome.summary.empty())
    outcome.summary += ", resumed " + std::to_string(stream.num_resumed()) + " times";
  return outcome;
}

}  // namespace sluice::cli
