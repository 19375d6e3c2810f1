#include "server/generate_validator.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/chat/chat_encoder.h"
#include "engine/resume.h"
#include "server/field_checker.h"
#include "server/messages.h"

namespace sluice::server {
namespace {

using engine::TokenId;

constexpr float kGreedyBelow = 1e-5f;
constexpr int64_t kMaxScoredPrompt = 16384;           // tokens of a prompt with prompt_logprobs
constexpr int64_t kLastRenderedAt = 253'402'300'799;  // the end of the year 9999

bool IsPrintableAscii(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

void CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids, const char* path,
                   FieldChecker* check) {
  for (int i = 0; i < ids.size() && !check->full(); ++i) {
    check->CheckElement(Field::kTokenId, ids[i], path, i);
  }
}

void ValidateMessages(const v1::Chat& in, FieldChecker* check, engine::Conversation* out) {
  for (int i = 0; i < in.messages_size() && !check->full(); ++i) {
    const v1::ChatMessage& message = in.messages(i);
    const auto path = [i](const char* field) { return Indexed("chat.messages", i) + field; };
    if (!engine::Conversation::IsRole(message.role())) {
      check->Fail(path(".role"), "must be system, developer, user, assistant or tool, is " +
                                     Quote(message.role()));
      continue;
    }
    std::optional<std::string> content;
    if (message.has_content()) content = message.content();
    // The role is known, so that only the calls can be wrong.
    const absl::Status status = out->Add({.role = message.role(),
                                          .content = std::move(content),
                                          .name = message.name(),
                                          .reasoning_content = message.reasoning_content(),
                                          .tool_calls = message.tool_calls_json(),
                                          .tool_call_id = message.tool_call_id()});
    if (!status.ok()) check->Fail(path(".tool_calls_json"), engine::Message(status));
  }
}

void ValidateChat(const v1::Chat& in, const ServedModel& model, FieldChecker* check,
                  GenerateDraft* draft) {
  draft->input = "chat";
  if (!model.has_vocabulary()) {
    check->Fail("chat", "the model has no vocabulary: send token_ids");
    return;
  }
  if (!check->Check(Field::kChatMessages, in.messages_size())) return;
  engine::Conversation& conversation = draft->conversation.emplace();
  ValidateMessages(in, check, &conversation);
  if (!in.tools_json().empty()) {
    const absl::Status status = conversation.SetTools(in.tools_json());
    if (!status.ok()) check->Fail("chat.tools_json", engine::Message(status));
  }
  if (!in.variables_json().empty()) {
    const absl::Status status = conversation.SetVariables(in.variables_json());
    if (!status.ok()) check->Fail("chat.variables_json", engine::Message(status));
  }
  conversation.set_add_generation_prompt(!in.has_add_generation_prompt() ||
                                         in.add_generation_prompt());
}

void ValidateInput(const v1::GenerateRequest& in, const ServedModel& model, FieldChecker* check,
                   GenerateDraft* draft) {
  draft->encode.add_special = !in.has_add_special() || in.add_special();
  // What users of a chat write is text unless the caller says otherwise.
  draft->encode.parse_special = in.has_parse_special() ? in.parse_special() : !in.has_chat();
  draft->accepted.set_add_special(draft->encode.add_special);
  draft->accepted.set_parse_special(draft->encode.parse_special);
  switch (in.input_case()) {
    case v1::GenerateRequest::kText:
      if (!model.has_vocabulary()) {
        check->Fail("text", "the model has no vocabulary: send token_ids");
      } else if (in.text().empty()) {
        check->Fail("text", "must not be empty");
      }
      draft->text = in.text();
      break;
    case v1::GenerateRequest::kTokenIds:
      draft->input = "token_ids.ids";
      if (in.token_ids().ids().empty()) check->Fail("token_ids.ids", "must not be empty");
      if (in.token_ids().ids_size() >= model.limits.bounds().max_context) {
        check->Fail("token_ids.ids", "the prompt of " + std::to_string(in.token_ids().ids_size()) +
                                         " tokens leaves no room in the context of " +
                                         std::to_string(model.limits.bounds().max_context) +
                                         " positions");
        break;
      }
      CheckTokenIds(in.token_ids().ids(), "token_ids.ids", check);
      draft->request.prompt.assign(in.token_ids().ids().begin(), in.token_ids().ids().end());
      break;
    case v1::GenerateRequest::kChat:
      ValidateChat(in.chat(), model, check, draft);
      break;
    case v1::GenerateRequest::INPUT_NOT_SET:
      check->Fail("text", "one of text, token_ids and chat is required");
  }
}

void ValidateLogitBias(const v1::Sampling& in, const ServedModel& model, FieldChecker* check,
                       engine::SamplingParams* out) {
  if (!check->Check(Field::kLogitBiasEntries, static_cast<double>(in.logit_bias().size()))) return;
  size_t num_forbidden = 0;
  for (const auto& [id, bias] : in.logit_bias()) {
    if (check->full()) return;
    if (model.limits.Violation(Field::kTokenId, id)) {
      check->Fail(Indexed("sampling.logit_bias", id),
                  "no such token id: the vocabulary has " +
                      std::to_string(model.limits.bounds().vocab_size));
    }
    if (bias == -std::numeric_limits<float>::infinity()) {
      ++num_forbidden;
    } else {
      check->CheckElement(Field::kLogitBias, bias, "sampling.logit_bias", id);
    }
    out->logit_bias.emplace_back(id, bias);
  }
  if (num_forbidden >= static_cast<size_t>(std::max(1, model.limits.bounds().vocab_size))) {
    check->Fail("sampling.logit_bias", "forbids every token");
  }
  std::sort(out->logit_bias.begin(), out->logit_bias.end());
}

void ValidateSampling(const v1::Sampling& in, const ServedModel& model, uint64_t seed,
                      FieldChecker* check, GenerateDraft* draft) {
  engine::SamplingParams& out = draft->request.sampling;
  const float temperature =
      check->Resolve(Field::kTemperature, in.has_temperature(), in.temperature());
  out.temperature = temperature < kGreedyBelow ? 0.0f : temperature;
  out.top_k = check->Resolve(Field::kTopK, in.has_top_k(), in.top_k());
  out.top_p = check->Resolve(Field::kTopP, in.has_top_p(), in.top_p());
  out.min_p = check->Resolve(Field::kMinP, in.has_min_p(), in.min_p());
  out.typical_p = check->Resolve(Field::kTypicalP, in.has_typical_p(), in.typical_p());
  out.repetition_penalty = check->Resolve(Field::kRepetitionPenalty, in.has_repetition_penalty(),
                                          in.repetition_penalty());
  out.presence_penalty =
      check->Resolve(Field::kPresencePenalty, in.has_presence_penalty(), in.presence_penalty());
  out.frequency_penalty =
      check->Resolve(Field::kFrequencyPenalty, in.has_frequency_penalty(), in.frequency_penalty());
  out.penalty_last_n =
      check->Resolve(Field::kPenaltyLastN, in.has_penalty_last_n(), in.penalty_last_n());
  out.seed = in.has_seed() ? in.seed() : seed;
  out.n = check->Resolve(Field::kN, in.has_n(), in.n());
  ValidateLogitBias(in, model, check, &out);

  v1::Sampling& echo = *draft->accepted.mutable_sampling();
  echo.set_temperature(temperature);
  echo.set_top_k(out.top_k);
  echo.set_top_p(out.top_p);
  echo.set_min_p(out.min_p);
  echo.set_typical_p(out.typical_p);
  echo.set_repetition_penalty(out.repetition_penalty);
  echo.set_presence_penalty(out.presence_penalty);
  echo.set_frequency_penalty(out.frequency_penalty);
  echo.set_penalty_last_n(out.penalty_last_n);
  echo.set_seed(out.seed);
  for (const auto& [id, bias] : out.logit_bias) (*echo.mutable_logit_bias())[id] = bias;
  echo.set_n(out.n);
}

// The time at which `duration` after `from` passes; nothing when the field is absent or bad.
std::optional<engine::Time> TimeAfter(bool given, const google::protobuf::Duration& duration,
                                      Field field, engine::Time from, FieldChecker* check,
                                      const FieldTable& limits) {
  if (!given) return std::nullopt;
  const double seconds =
      static_cast<double>(duration.seconds()) + static_cast<double>(duration.nanos()) * 1e-9;
  if (std::abs(static_cast<int64_t>(duration.nanos())) >= 1'000'000'000) {
    check->Fail(limits[field].field, "nanos must be in [-999999999, 999999999]");
    return std::nullopt;
  }
  check->Check(field, seconds);
  if (limits.Violation(field, seconds)) return std::nullopt;
  return from + std::chrono::seconds(duration.seconds()) +
         std::chrono::nanoseconds(duration.nanos());
}

void ValidateStopping(const v1::Stopping& in, const ServedModel& model, engine::Time arrival,
                      FieldChecker* check, GenerateDraft* draft) {
  engine::StoppingParams& out = draft->request.stopping;
  if (in.has_max_tokens()) {
    check->Check(Field::kMaxTokens, in.max_tokens());
    out.max_tokens = in.max_tokens();
  }
  out.min_tokens = check->Resolve(Field::kMinTokens, in.has_min_tokens(), in.min_tokens());
  if (in.has_max_tokens() && out.min_tokens > out.max_tokens) {
    check->Fail("stopping.min_tokens", "must not be above max_tokens " +
                                           std::to_string(out.max_tokens) + ", is " +
                                           std::to_string(out.min_tokens));
  }
  if (!check->Check(Field::kStopCount, in.stop().size())) return;
  if (!in.stop().empty() && !model.has_vocabulary()) {
    check->Fail("stopping.stop", "the model has no vocabulary: use stop_token_ids");
  }
  for (int i = 0; i < in.stop().size() && !check->full(); ++i) {
    check->CheckElement(Field::kStopBytes, static_cast<double>(in.stop(i).size()), "stopping.stop",
                        i);
  }
  out.stop.assign(in.stop().begin(), in.stop().end());
  if (!check->Check(Field::kStopTokenIdCount, in.stop_token_ids().size())) return;
  CheckTokenIds(in.stop_token_ids(), "stopping.stop_token_ids", check);
  out.stop_token_ids.assign(in.stop_token_ids().begin(), in.stop_token_ids().end());
  out.ignore_eos = in.ignore_eos();
  out.include_stop_str_in_output = in.include_stop_str_in_output();
  draft->request.max_time =
      TimeAfter(in.has_max_time(), in.max_time(), Field::kMaxTime, arrival, check, model.limits);

  v1::Stopping& echo = *draft->accepted.mutable_stopping();
  echo = in;
  echo.set_min_tokens(out.min_tokens);
  echo.set_ignore_eos(out.ignore_eos);
  echo.set_include_stop_str_in_output(out.include_stop_str_in_output);
}

// Before min_tokens a token is needed that ends nothing. All of them forbidden was said before.
void CheckThatSomeTokenIsLeft(const ServedModel& model, const engine::Request& request,
                              FieldChecker* check) {
  if (request.stopping.min_tokens == 0) return;
  std::set<engine::TokenId> barred;
  for (const auto& [id, bias] : request.sampling.logit_bias) {
    if (bias == -std::numeric_limits<float>::infinity()) barred.insert(id);
  }
  const auto num_tokens = static_cast<size_t>(std::max(1, model.limits.bounds().vocab_size));
  if (barred.size() >= num_tokens) return;
  std::span<const engine::TokenId> end_of_generation;
  if (model.has_vocabulary()) end_of_generation = model.loaded.tokenizer->end_of_generation();
  const auto ends = engine::EndTokens(request.stopping, end_of_generation);
  barred.insert(ends.begin(), ends.end());
  if (barred.size() >= num_tokens) {
    check->Fail("sampling.logit_bias",
                "forbids every token but those that end a sequence, which do not come before "
                "stopping.min_tokens");
  }
}

void ValidateOutput(const v1::Output& in, const ServedModel& model, FieldChecker* check,
                    GenerateDraft* draft) {
  engine::OutputParams& out = draft->request.output;
  out.return_text = in.has_return_text() ? in.return_text() : model.has_vocabulary();
  if (out.return_text && !model.has_vocabulary()) {
    check->Fail("output.return_text", "the model has no vocabulary: use return_token_ids");
  }
  out.return_token_ids = in.return_token_ids();
  if (in.has_logprobs()) {
    check->Check(Field::kLogprobs, in.logprobs());
    out.logprobs = in.logprobs();
  }
  if (in.has_prompt_logprobs()) {
    check->Check(Field::kPromptLogprobs, in.prompt_logprobs());
    out.prompt_logprobs = in.prompt_logprobs();
  }
  out.skip_special_tokens = !in.has_skip_special_tokens() || in.skip_special_tokens();
  out.stream_interval =
      check->Resolve(Field::kStreamInterval, in.has_stream_interval(), in.stream_interval());
  out.report_progress = in.report_progress();

  v1::Output& echo = *draft->accepted.mutable_output();
  echo.set_return_text(out.return_text);
  echo.set_return_token_ids(out.return_token_ids);
  if (in.has_logprobs()) echo.set_logprobs(out.logprobs);
  if (in.has_prompt_logprobs()) echo.set_prompt_logprobs(out.prompt_logprobs);
  echo.set_skip_special_tokens(out.skip_special_tokens);
  echo.set_stream_interval(out.stream_interval);
  echo.set_report_progress(out.report_progress);
}

void ValidateResume(const v1::GenerateRequest& in, FieldChecker* check, GenerateDraft* draft) {
  if (!in.has_resume()) return;
  const auto& ids = in.resume().token_ids();
  if (!in.resume().has_provenance()) {
    check->Fail("resume.provenance", "is required: the one that the token_ids came with");
  }
  draft->resumed_digest = in.resume().prompt_digest();
  if (in.has_chat() && draft->resumed_digest.empty()) {
    check->Fail("resume.prompt_digest", "is required to resume a chat: that of its accepted");
  }
  if (in.resume().has_rendered_at()) {
    const int64_t at = in.resume().rendered_at();
    if (at < 0 || at > kLastRenderedAt) {
      check->Fail("resume.rendered_at",
                  "must be 0 to " + std::to_string(kLastRenderedAt) + ", is " + std::to_string(at));
    }
    draft->render_at = at;
  }
  if (draft->request.sampling.temperature > 0 && !in.sampling().has_seed()) {
    check->Fail("sampling.seed", "is required to resume a stream that is not greedy");
  }
  if (draft->request.sampling.n != 1) {
    check->Fail("sampling.n",
                "must be 1 to resume a stream, is " + std::to_string(draft->request.sampling.n));
  }
  if (!check->Check(Field::kResumeTokens, ids.size())) return;
  CheckTokenIds(ids, "resume.token_ids", check);
  draft->request.resume.token_ids.assign(ids.begin(), ids.end());
  // They came before the first token.
  if (!ids.empty()) draft->request.output.prompt_logprobs = -1;
}

// True when the request sets `field`, one of ServedModel::UnimplementedFields(), to something.
bool Asks(const v1::GenerateRequest& in, const std::string& field) {
  return field == "constraint" && in.has_constraint();
}

RpcError NoChatTemplate(std::string message) {
  RpcError error;
  error.code = absl::StatusCode::kFailedPrecondition;
  error.message = std::move(message);
  error.reason = "NO_CHAT_TEMPLATE";
  return error;
}

RpcError NotImplemented(const std::string& field) {
  RpcError error;
  error.code = absl::StatusCode::kUnimplemented;
  error.message = field + " is not implemented in this version";
  error.reason = "FEATURE";
  error.metadata.emplace_back("field", field);
  return error;
}

// The parser keeps the last of several inputs without a word, so the bytes are asked.
bool HasSeveralInputs(const std::string& body) {
  using google::protobuf::internal::WireFormatLite;
  google::protobuf::io::CodedInputStream in(reinterpret_cast<const uint8_t*>(body.data()),
                                            static_cast<int>(body.size()));
  int first_input = 0;
  while (const uint32_t tag = in.ReadTag()) {
    const int number = WireFormatLite::GetTagFieldNumber(tag);
    const bool is_input = number == v1::GenerateRequest::kTextFieldNumber ||
                          number == v1::GenerateRequest::kTokenIdsFieldNumber ||
                          number == v1::GenerateRequest::kChatFieldNumber;
    if (is_input && first_input != 0 && number != first_input) return true;
    if (is_input) first_input = number;
    if (!WireFormatLite::SkipField(&in, tag)) return false;
  }
  return false;
}

}  // namespace

std::optional<RpcError> ParseGenerate(const std::string& body, v1::GenerateRequest* request) {
  if (auto error = ParseBody(body, request)) return error;
  if (HasSeveralInputs(body)) {
    return BadField("text", "only one of text, token_ids and chat may be set");
  }
  return std::nullopt;
}

std::optional<RpcError> ValidateGenerate(const v1::GenerateRequest& in, const ServedModel& model,
                                         uint64_t seed, engine::Time arrival,
                                         GenerateDraft* draft) {
  if (auto error = CheckModelName(in.model(), model.name)) return error;
  // First, because another model may have other bounds.
  if (in.resume().has_provenance()) {
    if (auto error = CheckProvenance(in.resume().provenance(), ProvenanceOf(model))) return error;
  }
  std::vector<FieldViolation> violations;
  FieldChecker check(model.limits, &violations);
  check.Check(Field::kRequestIdBytes, static_cast<double>(in.request_id().size()));
  if (!IsPrintableAscii(in.request_id())) {
    check.Fail("request_id", "must be printable ASCII, is " + Quote(in.request_id()));
  }
  ValidateInput(in, model, &check, draft);
  ValidateSampling(in.sampling(), model, seed, &check, draft);
  ValidateStopping(in.stopping(), model, arrival, &check, draft);
  CheckThatSomeTokenIsLeft(model, draft->request, &check);
  ValidateOutput(in.output(), model, &check, draft);
  ValidateResume(in, &check, draft);
  check.Check(Field::kCacheSaltBytes, static_cast<double>(in.cache().cache_salt().size()));
  draft->request.cache.bypass = in.cache().bypass_prefix_cache();
  draft->request.priority =
      check.Resolve(Field::kPriority, in.scheduling().has_priority(), in.scheduling().priority());
  draft->request.queue_deadline =
      TimeAfter(in.scheduling().has_queue_timeout(), in.scheduling().queue_timeout(),
                Field::kQueueTimeout, arrival, &check, model.limits);
  if (!violations.empty()) return BadFields(std::move(violations));
  for (const std::string& field : model.UnimplementedFields()) {
    if (Asks(in, field)) return NotImplemented(field);
  }
  if (draft->conversation) {
    if (model.loaded.chat == nullptr) return NoChatTemplate(model.loaded.chat_error);
    const absl::Status tool_use = model.loaded.chat->CheckToolUse();
    if (draft->conversation->has_tools() && !tool_use.ok()) {
      return NoChatTemplate(engine::Message(tool_use));
    }
  }
  draft->request.id = in.request_id();
  draft->request.arrival = arrival;
  draft->accepted.set_request_id(in.request_id());
  draft->accepted.set_model(model.name);
  *draft->accepted.mutable_provenance() = ProvenanceOf(model);
  return std::nullopt;
}

std::optional<RpcError> ResolveLengths(const ServedModel& model, std::optional<int64_t> tenant_most,
                                       GenerateDraft* draft) {
  const ModelBounds& bounds = model.limits.bounds();
  const auto num_prompt = static_cast<int64_t>(draft->request.prompt.size());
  const char* input = draft->input;
  const std::string prompt = "the prompt of " + std::to_string(num_prompt) + " tokens";
  if (num_prompt >= bounds.max_context) {
    return BadField(input, prompt + " leaves no room in the context of " +
                               std::to_string(bounds.max_context) + " positions");
  }
  if (num_prompt >= bounds.pool_positions) {
    return BadField(input, prompt + " does not fit the KV pool of " +
                               std::to_string(bounds.pool_positions) + " positions");
  }
  if (draft->request.output.prompt_logprobs >= 0 && num_prompt > kMaxScoredPrompt) {
    return BadField("output.prompt_logprobs",
                    "is for prompts of at most " + std::to_string(kMaxScoredPrompt) +
                        " tokens, this one has " + std::to_string(num_prompt));
  }
  engine::StoppingParams& stopping = draft->request.stopping;
  const int64_t room = bounds.MaxPositions() - num_prompt;
  if (stopping.max_tokens == 0) {
    int64_t cap = bounds.max_tokens_cap > 0 ? bounds.max_tokens_cap : room;
    // A prompt that leaves nothing asks for one token: that the tenant may not is said later.
    if (tenant_most) cap = std::min(cap, std::max<int64_t>(1, *tenant_most));
    stopping.fills_context = room < cap || (bounds.max_tokens_cap == 0 && room == cap);
    stopping.max_tokens = static_cast<int32_t>(std::min(room, cap));
    if (stopping.min_tokens > stopping.max_tokens) {
      return BadField("stopping.min_tokens",
                      "must be at most " + std::to_string(stopping.max_tokens) +
                          " after this prompt, is " + std::to_string(stopping.min_tokens));
    }
  } else if (stopping.max_tokens > room) {
    const bool pool = bounds.pool_positions < bounds.max_context;
    return BadField("stopping.max_tokens",
                    "must be at most " + std::to_string(room) + " after " + prompt + " in " +
                        (pool ? "a KV pool" : "a context") + " of " +
                        std::to_string(bounds.MaxPositions()) + " positions, is " +
                        std::to_string(stopping.max_tokens));
  }
  if (const auto beyond = engine::ReplayOutput(model.loaded.tokenizer, draft->request)) {
    const engine::FinishReason reason = draft->request.resume.end->reason;
    return BadField(Indexed("resume.token_ids", *beyond),
                    "comes after the end of the sequence, which is " +
                        v1::FinishReason_Name(ToProto(reason)) + " at the token before");
  }
  draft->accepted.mutable_stopping()->set_max_tokens(stopping.max_tokens);
  draft->accepted.set_prompt_tokens(static_cast<int32_t>(num_prompt));
  return std::nullopt;
}

}  // namespace sluice::server
