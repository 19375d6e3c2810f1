#include "server/unary_methods.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "engine/base/status.h"
#include "engine/tokenizer/detokenizer.h"
#include "server/byte_buffers.h"
#include "server/gate.h"
#include "server/messages.h"

namespace sluice::server {
namespace {

// What a client takes by default; a longer answer would be lost on the way.
constexpr size_t kMaxResponseBytes = 4 * 1024 * 1024;

// A unary call that is being answered. Finished once; a copy is carried to a text thread.
struct Answer {
  Frontend& frontend;
  const char* method;
  grpc::CallbackServerContext* context;
  grpc::ByteBuffer* response;
  grpc::ServerUnaryReactor* reactor;
  engine::Time arrival = std::chrono::steady_clock::now();

  void Send(const google::protobuf::MessageLite& message) const {
    *response = Serialize(message);
    Count(absl::StatusCode::kOk);
    reactor->Finish(grpc::Status::OK);
  }
  void Fail(const RpcError& error) const {
    Count(error.code);
    frontend.counters.CountRejected(error.reason);
    reactor->Finish(ToGrpcStatus(error, *context));
  }
  void Count(absl::StatusCode code) const {
    frontend.counters.CountRequest(method, code, engine::FinishReason::kNone,
                                   engine::Seconds(std::chrono::steady_clock::now() - arrival));
  }
};

Answer Begin(Frontend& frontend, const char* method, grpc::CallbackServerContext* context,
             grpc::ByteBuffer* response) {
  return Answer{frontend, method, context, response, context->DefaultReactor()};
}

// Whether the tenant of the call, which the port has let in, may use the model.
bool MayUse(const Answer& answer, const ServedModel& model) {
  Identity identity;
  answer.frontend.authenticator.Identify(ClaimsOf(*answer.context), &identity);
  return answer.frontend.admission.policy()->Of(identity.tenant).MayUse(model.name);
}

// Parses the body and finds the model that it asks for.
template <typename Request>
std::optional<RpcError> Open(const Answer& answer, const grpc::ByteBuffer& body, Request* request,
                             const ServedModel** model) {
  *model = answer.frontend.model.load();
  if (*model == nullptr) return StillLoading();
  if (auto error = ParseBody(Flatten(body), request)) return error;
  if (auto error = CheckModelName(request->model(), (*model)->name)) return error;
  if (!MayUse(answer, **model)) return ModelNotAllowed((*model)->name);
  return std::nullopt;
}

// Calls that work on text, and need not be answered by a server that goes away.
std::optional<RpcError> RefuseText(const Frontend& frontend) {
  if (frontend.refusing.load()) return Draining();
  return std::nullopt;
}

std::optional<RpcError> TooLong(const char* field, const google::protobuf::MessageLite& message) {
  const size_t bytes = message.ByteSizeLong();
  if (bytes <= kMaxResponseBytes) return std::nullopt;
  return BadField(field, "the answer would be " + std::to_string(bytes) + " bytes, at most " +
                             std::to_string(kMaxResponseBytes) + " are sent: split it");
}

void TokenizeNow(const Answer& answer, const ServedModel& model,
                 const v1::TokenizeRequest& request) {
  const engine::Tokenizer& tokenizer = *model.loaded.tokenizer;
  engine::Tokenizer::EncodeOptions options;
  options.add_special = !request.has_add_special() || request.add_special();
  options.parse_special = !request.has_parse_special() || request.parse_special();
  const auto ids = tokenizer.Encode(request.text(), options);
  if (!ids.ok()) return answer.Fail(BadField("text", engine::Message(ids.status())));
  v1::TokenizeResponse out;
  out.mutable_token_ids()->Add(ids->begin(), ids->end());
  if (request.return_pieces()) {
    for (const engine::TokenId id : *ids) out.add_pieces(std::string(tokenizer.TokenBytes(id)));
  }
  if (const auto error = TooLong("text", out)) return answer.Fail(*error);
  answer.Send(out);
}

void DetokenizeNow(const Answer& answer, const ServedModel& model,
                   const v1::DetokenizeRequest& request) {
  engine::Detokenizer detokenizer(model.loaded.tokenizer, request.skip_special_tokens(),
                                  /*continues_text=*/false);
  v1::DetokenizeResponse out;
  const int32_t num_texts = model.loaded.tokenizer->vocab_size();
  const int32_t vocab_size = std::max(num_texts, model.limits.bounds().vocab_size);
  for (int i = 0; i < request.token_ids_size(); ++i) {
    const int32_t id = request.token_ids(i);
    if (id < 0 || id >= vocab_size) {
      return answer.Fail(BadField(
          "token_ids[" + std::to_string(i) + "]",
          "must be in [0, " + std::to_string(vocab_size - 1) + "], is " + std::to_string(id)));
    }
    // The model may have rows beyond the vocabulary, whose tokens Generate may give: without text.
    if (id >= num_texts) continue;
    detokenizer.Append(id, *out.mutable_text());
    if (out.text().size() > kMaxResponseBytes) break;
  }
  detokenizer.Finish(*out.mutable_text());
  if (const auto error = TooLong("token_ids", out)) return answer.Fail(*error);
  answer.Send(out);
}

RpcError Cancelled() {
  return MakeError(absl::StatusCode::kCancelled, "the client cancelled the call", "");
}

RpcError NoVocabulary(const char* field) {
  return BadField(field, "the model has no vocabulary, so there is no text");
}

// Parses and answers; `text_field` is what needs a vocabulary.
template <typename Request>
void AnswerNow(const Answer& answer, const grpc::ByteBuffer& body, const char* text_field,
               void (*work)(const Answer&, const ServedModel&, const Request&)) {
  Request request;
  const ServedModel* model = nullptr;
  if (const auto error = Open(answer, body, &request, &model)) return answer.Fail(*error);
  if (!model->has_vocabulary()) return answer.Fail(NoVocabulary(text_field));
  work(answer, *model, request);
}

// Answers at once, or on a text thread when the body is long.
template <typename Request>
grpc::ServerUnaryReactor* WorkOnText(const Answer& answer, const grpc::ByteBuffer& body,
                                     const char* text_field,
                                     void (*work)(const Answer&, const ServedModel&,
                                                  const Request&)) {
  Frontend& frontend = answer.frontend;
  if (const auto error = RefuseText(frontend)) {
    answer.Fail(*error);
  } else if (body.Length() <= Frontend::kInlineTextBytes) {
    AnswerNow(answer, body, text_field, work);
  } else {
    TextPool::Job job;
    job.bytes = body.Length();
    job.run = [answer, copy = body, text_field, work] {
      if (answer.context->IsCancelled()) return answer.Fail(Cancelled());
      if (const auto error = RefuseText(answer.frontend)) return answer.Fail(*error);
      AnswerNow(answer, copy, text_field, work);
    };
    job.refuse = [answer](TextPool::Refusal refusal) {
      answer.Fail(answer.frontend.NotTaken(refusal));
    };
    frontend.text_pool.Run(TextPool::Kind::kOther, std::move(job));
  }
  return answer.reactor;
}

}  // namespace

grpc::ServerUnaryReactor* Tokenize(Frontend& frontend, grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* body, grpc::ByteBuffer* response) {
  return WorkOnText<v1::TokenizeRequest>(Begin(frontend, "Tokenize", context, response), *body,
                                         "text", TokenizeNow);
}

grpc::ServerUnaryReactor* Detokenize(Frontend& frontend, grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* body, grpc::ByteBuffer* response) {
  return WorkOnText<v1::DetokenizeRequest>(Begin(frontend, "Detokenize", context, response), *body,
                                           "token_ids", DetokenizeNow);
}

grpc::ServerUnaryReactor* GetModel(Frontend& frontend, grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* body, grpc::ByteBuffer* response) {
  const Answer answer = Begin(frontend, "GetModel", context, response);
  v1::GetModelRequest request;
  const ServedModel* model = nullptr;
  if (const auto error = Open(answer, *body, &request, &model)) {
    answer.Fail(*error);
  } else {
    answer.Send(Describe(*model));
  }
  return answer.reactor;
}

grpc::ServerUnaryReactor* ListModels(Frontend& frontend, grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* body, grpc::ByteBuffer* response) {
  const Answer answer = Begin(frontend, "ListModels", context, response);
  v1::ListModelsRequest request;
  if (const auto error = ParseBody(Flatten(*body), &request)) {
    answer.Fail(*error);
    return answer.reactor;
  }
  v1::ListModelsResponse out;
  const ServedModel* model = frontend.model.load();
  if (model != nullptr && MayUse(answer, *model)) *out.add_models() = Describe(*model);
  answer.Send(out);
  return answer.reactor;
}

grpc::ServerUnaryReactor* GetLoad(Frontend& frontend, grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* body, grpc::ByteBuffer* response) {
  const Answer answer = Begin(frontend, "GetLoad", context, response);
  v1::GetLoadRequest request;
  const ServedModel* model = nullptr;
  if (const auto error = Open(answer, *body, &request, &model)) {
    answer.Fail(*error);
  } else {
    answer.Send(DescribeLoad(*model, frontend.draining.load(), frontend.calls.size()));
  }
  return answer.reactor;
}

}  // namespace sluice::server
