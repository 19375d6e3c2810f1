#pragma once

#include <optional>

#include "server/generate_validator.h"
#include "server/rpc_error.h"
#include "server/served_model.h"

namespace sluice::server {

// Tokenises the text or the conversation, if there is one: takes about a second for some megabytes.
// FAILED_PRECONDITION when the prompt is not that of the stream which is to go on.
std::optional<RpcError> EncodePrompt(const ServedModel& model, GenerateDraft* draft);

}  // namespace sluice::server
