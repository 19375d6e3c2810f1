#include "server/messages.h"

#include <utility>

namespace sluice::server {

std::optional<RpcError> ParseBody(const std::string& body, google::protobuf::MessageLite* message) {
  if (message->ParseFromString(body)) return std::nullopt;
  return BadField("body", "the " + std::to_string(body.size()) + " bytes are not a valid " +
                              message->GetTypeName());
}

std::optional<RpcError> CheckModelName(const std::string& asked, const std::string& served) {
  if (asked.empty() || asked == served) return std::nullopt;
  return ModelNotFound(asked, served);
}

v1::Provenance ProvenanceOf(const ServedModel& model) {
  v1::Provenance out;
  out.set_model(model.name);
  out.set_weights_digest(model.loaded.facts.weights_digest);
  out.set_build(model.build);
  out.set_backend(model.loaded.facts.backend);
  out.set_numerics(model.loaded.facts.numerics);
  return out;
}

std::optional<RpcError> CheckProvenance(const v1::Provenance& asked, const v1::Provenance& served) {
  RpcError error = MakeError(absl::StatusCode::kFailedPrecondition, "", "PROVENANCE_MISMATCH");
  const auto compare = [&](const char* name, const std::string& was, const std::string& is) {
    if (was == is) return;
    const std::string quoted = Quote(was);
    error.message += (error.message.empty() ? "resume.provenance: " : "; ") + std::string(name) +
                     " was " + quoted + ", is " + Quote(is) + " here";
    error.metadata.emplace_back(std::string("resumed_") + name, quoted);
    error.metadata.emplace_back(std::string("served_") + name, Quote(is));
  };
  compare("model", asked.model(), served.model());
  compare("weights_digest", asked.weights_digest(), served.weights_digest());
  compare("build", asked.build(), served.build());
  compare("backend", asked.backend(), served.backend());
  compare("numerics", asked.numerics(), served.numerics());
  if (error.metadata.empty()) return std::nullopt;
  return error;
}

namespace {

void DescribeTokenizer(const engine::LoadedModel& model, v1::Model::Tokenizer* out) {
  const engine::Tokenizer& tokenizer = *model.tokenizer;
  out->set_model(std::string(tokenizer.model()));
  out->set_pre(std::string(tokenizer.pre()));
  if (tokenizer.bos()) out->set_bos_token_id(*tokenizer.bos());
  if (tokenizer.eos()) out->set_eos_token_id(*tokenizer.eos());
  out->set_adds_bos(tokenizer.adds_bos());
  for (const engine::TokenId id : tokenizer.end_of_generation()) {
    out->add_end_of_generation_ids(id);
  }
  out->set_has_chat_template(model.chat != nullptr);
}

void DescribeLimits(const ServedModel& model, v1::Model* out) {
  for (const FieldLimit& limit : model.limits.all()) {
    v1::Model::FieldLimit* entry = out->add_limits();
    entry->set_field(limit.field);
    if (limit.minimum) entry->set_minimum(*limit.minimum);
    if (limit.maximum) entry->set_maximum(*limit.maximum);
    entry->set_minimum_excluded(limit.minimum_excluded);
    if (limit.default_value) entry->set_default_value(*limit.default_value);
  }
  for (std::string& field : model.UnimplementedFields()) out->add_unimplemented(std::move(field));
}

}  // namespace

v1::Model Describe(const ServedModel& model) {
  const engine::ModelFacts& facts = model.loaded.facts;
  v1::Model out;
  out.set_name(model.name);
  out.set_architecture(facts.architecture);
  out.set_file(facts.file);
  out.set_weights_digest(facts.weights_digest);
  out.set_quantization(facts.quantization);
  out.set_num_parameters(facts.num_parameters);
  out.set_weight_bytes(facts.weight_bytes);
  out.set_vocab_size(facts.vocab_size);
  out.set_context_length(facts.context_length);
  out.set_num_layers(facts.num_layers);
  out.set_width(facts.width);
  out.set_num_heads(facts.num_heads);
  out.set_num_kv_heads(facts.num_kv_heads);
  out.set_head_size(facts.head_size);
  out.set_ffn_width(facts.ffn_width);
  *out.mutable_provenance() = ProvenanceOf(model);
  if (model.has_vocabulary()) DescribeTokenizer(model.loaded, out.mutable_tokenizer());
  DescribeLimits(model, &out);
  const engine::SelfCheck& check = model.loaded.self_check;
  out.mutable_self_check()->set_passed(check.passed);
  out.mutable_self_check()->set_max_relative_error(check.max_relative_error);
  out.mutable_self_check()->set_top1_equal(check.top1_equal);
  out.mutable_self_check()->set_seconds(check.seconds);
  v1::Model::KvPool* pool = out.mutable_kv_pool();
  pool->set_dtype(facts.kv_dtype);
  pool->set_page_tokens(engine::KvAccounting{}.page_tokens);
  pool->set_pages_per_engine(facts.kv_pages);
  pool->set_bytes_per_engine(facts.kv_bytes);
  pool->set_max_context(model.limits.bounds().MaxPositions());
  for (const std::string& warning : model.loaded.warnings) out.add_warnings(warning);
  return out;
}

v1::Load DescribeLoad(const ServedModel& model, bool draining, int64_t open_streams) {
  v1::Load out;
  for (const auto& engine : model.dispatcher().engines()) {
    const engine::EngineStats& stats = engine->stats();
    v1::EngineLoad* load = out.add_engines();
    load->set_engine(engine->index());
    load->set_up(stats.up.load());
    load->set_running(stats.requests_running.load());
    load->set_waiting(stats.requests_waiting.load());
    load->set_kv_pages_total(stats.kv_pages_total.load());
    load->set_kv_pages_free(stats.kv_pages_free.load());
    load->set_tokens_per_second(stats.tokens_per_second.load());
  }
  out.set_draining(draining);
  out.set_open_streams(open_streams);
  return out;
}

v1::FinishReason ToProto(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kNone:
      return v1::FINISH_REASON_UNSPECIFIED;
    case engine::FinishReason::kEos:
      return v1::FINISH_REASON_EOS;
    case engine::FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case engine::FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case engine::FinishReason::kContext:
      return v1::FINISH_REASON_CONTEXT;
    case engine::FinishReason::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
    case engine::FinishReason::kConstraintComplete:
      return v1::FINISH_REASON_CONSTRAINT_COMPLETE;
    case engine::FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

v1::SequenceFinished ToProto(int32_t index, const engine::SequenceEnd& end) {
  v1::SequenceFinished out;
  out.set_index(index);
  out.set_finish_reason(ToProto(end.reason));
  if (end.matched_token_id) {
    out.set_matched_token_id(*end.matched_token_id);
  } else if (!end.matched_stop.empty()) {
    out.set_matched_stop(end.matched_stop);
  }
  return out;
}

v1::RequestFinished ToProto(const engine::RequestEnd& end) {
  v1::RequestFinished out;
  out.mutable_usage()->set_prompt_tokens(end.usage.prompt_tokens);
  out.mutable_usage()->set_cached_prompt_tokens(end.usage.cached_prompt_tokens);
  out.mutable_usage()->set_completion_tokens(end.usage.completion_tokens);
  out.mutable_usage()->set_resumed_tokens(end.usage.resumed_tokens);
  v1::Timing* timing = out.mutable_timing();
  timing->set_queue(end.timing.queue_seconds);
  timing->set_prefill(end.timing.prefill_seconds);
  timing->set_time_to_first_token(end.timing.time_to_first_token_seconds);
  timing->set_decode(end.timing.decode_seconds);
  timing->set_total(end.timing.total_seconds);
  timing->set_max_inter_token(end.timing.max_inter_token_seconds);
  v1::KvUsage* kv = out.mutable_kv();
  kv->set_page_tokens(end.kv.page_tokens);
  kv->set_peak_pages(end.kv.peak_pages);
  kv->set_pages_reused(end.kv.pages_reused);
  kv->set_page_seconds(end.kv.page_seconds);
  kv->set_preemptions(end.kv.preemptions);
  kv->set_recomputed_tokens(end.kv.recomputed_tokens);
  return out;
}

namespace {

void Fill(const engine::TokenLogprobs& token, v1::TokenLogprobs* out) {
  out->set_token_id(token.token);
  out->set_logprob(token.logprob);
  for (const engine::TopLogprob& top : token.top) {
    v1::TokenLogprob* candidate = out->add_top();
    candidate->set_token_id(top.token);
    candidate->set_logprob(top.logprob);
  }
}

}  // namespace

v1::PromptLogprobs ToPromptLogprobs(int32_t position,
                                    const std::vector<engine::TokenLogprobs>& tokens) {
  v1::PromptLogprobs out;
  out.set_position(position);
  for (const engine::TokenLogprobs& token : tokens) Fill(token, out.add_logprobs());
  return out;
}

v1::Delta ToDelta(engine::TokenChunk& chunk, const engine::OutputParams& output) {
  v1::Delta out;
  out.set_index(chunk.index);
  out.set_position(chunk.position);
  if (output.return_token_ids) {
    out.mutable_token_ids()->Add(chunk.token_ids.begin(), chunk.token_ids.end());
  }
  if (output.return_text) out.set_text(std::move(chunk.text));
  for (const engine::TokenLogprobs& token : chunk.logprobs) Fill(token, out.add_logprobs());
  return out;
}

}  // namespace sluice::server
