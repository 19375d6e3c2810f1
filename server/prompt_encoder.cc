#include "server/prompt_encoder.h"

#include <openssl/sha.h>

#include <array>
#include <bit>
#include <cstdint>
#include <ctime>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/chat/chat_encoder.h"

namespace sluice::server {
namespace {

// SHA-256 in hex.
std::string DigestOf(const std::vector<engine::TokenId>& prompt) {
  static_assert(sizeof(engine::TokenId) == 4 && std::endian::native == std::endian::little);
  std::array<uint8_t, SHA256_DIGEST_LENGTH> digest;
  SHA256(reinterpret_cast<const uint8_t*>(prompt.data()), prompt.size() * sizeof(engine::TokenId),
         digest.data());
  std::string hex;
  for (const uint8_t byte : digest) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  return hex;
}

std::optional<RpcError> CheckDigest(GenerateDraft* draft) {
  std::string digest = DigestOf(draft->request.prompt);
  if (!draft->resumed_digest.empty() && draft->resumed_digest != digest) {
    RpcError error = MakeError(absl::StatusCode::kFailedPrecondition,
                               "resume.prompt_digest: this is not the prompt of the broken stream",
                               "PROMPT_MISMATCH");
    error.metadata = {{"resumed_prompt_digest", Quote(draft->resumed_digest)},
                      {"served_prompt_digest", Quote(digest)}};
    return error;
  }
  draft->accepted.set_prompt_digest(std::move(digest));
  return std::nullopt;
}

}  // namespace

std::optional<RpcError> EncodePrompt(const ServedModel& model, GenerateDraft* draft) {
  if (draft->text.empty() && !draft->conversation) return CheckDigest(draft);
  if (draft->conversation) {
    if (!draft->render_at) draft->render_at = std::time(nullptr);
    draft->accepted.set_rendered_at(*draft->render_at);
  }
  auto ids = draft->conversation
                 ? model.loaded.chat->Encode(*draft->conversation, draft->encode, *draft->render_at)
                 : model.loaded.tokenizer->Encode(draft->text, draft->encode);
  if (!ids.ok()) return BadField(draft->input, engine::Message(ids.status()));
  if (ids->empty()) return BadField(draft->input, "gives no tokens");
  draft->request.prompt = std::move(*ids);
  draft->text = std::string();
  draft->conversation.reset();
  return CheckDigest(draft);
}

}  // namespace sluice::server
