// The bytes of a Generate call, on their way to an engine: parsed, validated, tokenised, resolved.

#include <google/protobuf/util/message_differencer.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/chat/chat_encoder.h"
#include "server/generate_validator.h"
#include "server/prompt_encoder.h"
#include "tests/fuzz/fixed_vocabularies.h"

namespace sluice::fuzz {
namespace {

constexpr char kTemplate[] =
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{{ flavour }}";

// Of an engine that is never given anything.
class IdleRunner final : public engine::StepRunner {
 public:
  int depth() const override { return 0; }
  void Launch(const engine::StepPlan&) override {}
  engine::StepResult Wait(const engine::StepPlan&) override { return {}; }
};

std::unique_ptr<const server::ServedModel> MakeModel() {
  engine::LoadedModel model;
  model.tokenizer = MakeBpe("smollm");
  auto chat = engine::ChatEncoder::Create(kTemplate, model.tokenizer);
  SLUICE_CHECK(chat.ok(), "the template is good");
  model.chat = *std::move(chat);
  model.facts.name = "m";
  model.facts.vocab_size = model.tokenizer->vocab_size();
  model.facts.context_length = model.facts.max_context = 256;
  model.facts.kv_pages = 12;  // less than the context
  engine::SchedulerLimits limits;
  limits.max_queue = 8;  // less than the largest n
  limits.num_pages = 13;
  limits.max_context = 256;
  auto chunks = std::make_unique<engine::ChunkMailbox>(1);
  std::vector<std::unique_ptr<engine::Engine>> engines;
  engines.push_back(std::make_unique<engine::Engine>(0, limits, std::make_unique<IdleRunner>(),
                                                     model.tokenizer, chunks.get()));
  model.dispatcher = std::make_unique<engine::Dispatcher>(std::move(engines), std::move(chunks));
  return std::make_unique<const server::ServedModel>(std::move(model), "m", "build", 0);
}

std::optional<server::RpcError> Draft(const v1::GenerateRequest& request,
                                      const server::ServedModel& model,
                                      server::GenerateDraft* draft) {
  const engine::Time arrival{std::chrono::hours(1)};
  if (auto error = ValidateGenerate(request, model, /*seed=*/7, arrival, draft)) return error;
  if (auto error = EncodePrompt(model, draft)) return error;
  return ResolveLengths(model, std::nullopt, draft);
}

void CheckError(const server::RpcError& error) {
  const bool is_field = error.code == absl::StatusCode::kInvalidArgument;
  SLUICE_CHECK(is_field || error.code == absl::StatusCode::kNotFound ||
                   error.code == absl::StatusCode::kUnimplemented ||
                   error.code == absl::StatusCode::kFailedPrecondition,
               "a code of the API's table");
  SLUICE_CHECK(is_field != error.violations.empty(), "a bad field is named");
  SLUICE_CHECK(!error.reason.empty() && !error.message.empty(), "an error says why");
  SLUICE_CHECK(error.message.size() < 1000, "no message echoes much of its input");
  for (const char c : error.message) SLUICE_CHECK(c >= 0x20 && c < 0x7f, "printable ASCII");
}

void CheckDraft(const server::GenerateDraft& draft, const server::ServedModel& model) {
  const engine::Request& request = draft.request;
  const int32_t vocabulary = model.loaded.facts.vocab_size;
  SLUICE_CHECK(!request.prompt.empty(), "a prompt has tokens");
  for (const engine::TokenId id : request.prompt) {
    SLUICE_CHECK(id >= 0 && id < vocabulary, "tokens of the vocabulary");
  }
  const auto positions = static_cast<int64_t>(request.prompt.size()) + request.stopping.max_tokens;
  SLUICE_CHECK(request.stopping.max_tokens >= 1, "a call asks for something");
  SLUICE_CHECK(positions <= model.limits.bounds().MaxPositions(), "a call fits");
  SLUICE_CHECK(request.sampling.n >= 1 && request.sampling.n <= 16, "so many sequences");
}

// What `accepted` says can be asked for, and is then what is accepted.
void CheckEcho(const v1::GenerateRequest& request, const v1::Accepted& accepted,
               const server::ServedModel& model) {
  v1::GenerateRequest again = request;
  *again.mutable_sampling() = accepted.sampling();
  *again.mutable_stopping() = accepted.stopping();
  *again.mutable_output() = accepted.output();
  if (request.has_text()) {
    again.set_add_special(accepted.add_special());
    again.set_parse_special(accepted.parse_special());
  }
  server::GenerateDraft draft;
  const auto error = Draft(again, model, &draft);
  SLUICE_CHECK(!error, "the echo is accepted");
  // A chat is rendered anew, perhaps a second later.
  if (accepted.has_rendered_at()) draft.accepted.set_rendered_at(accepted.rendered_at());
  SLUICE_CHECK(google::protobuf::util::MessageDifferencer::Equals(draft.accepted, accepted),
               "the echo of the echo is the echo");
}

}  // namespace
}  // namespace sluice::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice;
  static const std::unique_ptr<const server::ServedModel> kModel = fuzz::MakeModel();
  v1::GenerateRequest request;
  server::GenerateDraft draft;
  auto error =
      server::ParseGenerate(std::string(reinterpret_cast<const char*>(data), size), &request);
  if (!error) error = fuzz::Draft(request, *kModel, &draft);
  if (error) {
    fuzz::CheckError(*error);
    return 0;
  }
  fuzz::CheckDraft(draft, *kModel);
  fuzz::CheckEcho(request, draft.accepted, *kModel);
  return 0;
}
