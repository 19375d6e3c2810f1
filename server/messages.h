#pragma once

#include <google/protobuf/message_lite.h>

#include <optional>
#include <string>

#include "engine/request.h"
#include "server/rpc_error.h"
#include "server/served_model.h"
#include "sluice/v1/inference.pb.h"

namespace sluice::server {

// Values of the engine as messages of the API, and back.

// INVALID_ARGUMENT when `body` is not a message of this type, or text in it is not UTF-8.
std::optional<RpcError> ParseBody(const std::string& body, google::protobuf::MessageLite* message);
// NOT_FOUND unless `asked` is empty or the served model's name.
std::optional<RpcError> CheckModelName(const std::string& asked, const std::string& served);

v1::Provenance ProvenanceOf(const ServedModel& model);
// PROVENANCE_MISMATCH, naming what differs, unless all of `asked` is as `served` has it.
std::optional<RpcError> CheckProvenance(const v1::Provenance& asked, const v1::Provenance& served);
v1::Model Describe(const ServedModel& model);
v1::Load DescribeLoad(const ServedModel& model, bool draining, int64_t open_streams);

v1::FinishReason ToProto(engine::FinishReason reason);
v1::SequenceFinished ToProto(int32_t index, const engine::SequenceEnd& end);
v1::RequestFinished ToProto(const engine::RequestEnd& end);
// `chunk`'s tokens, as far as `output` asks for them; its text and logprobs are moved away.
v1::PromptLogprobs ToPromptLogprobs(int32_t position,
                                    const std::vector<engine::TokenLogprobs>& tokens);
v1::Delta ToDelta(engine::TokenChunk& chunk, const engine::OutputParams& output);

}  // namespace sluice::server
