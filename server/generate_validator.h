#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/chat/conversation.h"
#include "engine/request.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/rpc_error.h"
#include "server/served_model.h"
#include "sluice/v1/inference.pb.h"

namespace sluice::server {

// A Generate call on its way from bytes to an engine::Request. Value.
struct GenerateDraft {
  engine::Request request;                           // without handle and deadline
  v1::Accepted accepted;                             // without queue_position
  std::string text;                                  // to be tokenised into request.prompt
  std::optional<engine::Conversation> conversation;  // the same, by the chat template
  engine::Tokenizer::EncodeOptions encode;
  const char* input = "text";        // the field that the prompt came in
  std::string resumed_digest;        // what the prompt's is to be; empty: no matter
  std::optional<int64_t> render_at;  // the time that the template is given; nothing: now
};

// Parses the body of a call. INVALID_ARGUMENT for malformed bytes and for more than one input.
std::optional<RpcError> ParseGenerate(const std::string& body, v1::GenerateRequest* request);

// Checks every field that needs no tokens and resolves what is unset; `seed` is taken when the
// call has none. All violations are reported at once.
std::optional<RpcError> ValidateGenerate(const v1::GenerateRequest& request,
                                         const ServedModel& model, uint64_t seed,
                                         engine::Time arrival, GenerateDraft* draft);

// Checks the prompt's length against context and pool, resolves max_tokens, and works out where a
// resumed output stands. `tenant_most`: what
// the tenant's limits leave after this prompt (MaxTokensOf).
std::optional<RpcError> ResolveLengths(const ServedModel& model, std::optional<int64_t> tenant_most,
                                       GenerateDraft* draft);

}  // namespace sluice::server
