#include "server/rpc_error.h"

#include <iterator>

namespace sluice::server {
namespace {

// Trailers must fit a client's default metadata limit of 8 KiB, base64 included.
constexpr size_t kMaxViolations = 8;

}  // namespace

RpcError MakeError(absl::StatusCode code, std::string message, std::string reason) {
  RpcError error;
  error.code = code;
  error.message = std::move(message);
  error.reason = std::move(reason);
  return error;
}

RpcError BadFields(std::vector<FieldViolation> violations) {
  RpcError error =
      MakeError(absl::StatusCode::kInvalidArgument,
                violations.front().field + ": " + violations.front().description, "BAD_FIELD");
  if (violations.size() > kMaxViolations) violations.resize(kMaxViolations);
  error.violations = std::move(violations);
  return error;
}

RpcError BadField(std::string field, std::string description) {
  std::vector<FieldViolation> violations;
  violations.push_back({std::move(field), std::move(description)});
  return BadFields(std::move(violations));
}

RpcError ModelNotFound(std::string_view name, std::string_view served) {
  return MakeError(absl::StatusCode::kNotFound,
                   "model " + Quote(name) + " is not served here; " + Quote(served) + " is",
                   "MODEL_NOT_FOUND");
}

RpcError StillLoading() {
  RpcError error =
      MakeError(absl::StatusCode::kUnavailable, "the model is still loading", "LOADING");
  error.retry_after = std::chrono::seconds(1);
  return error;
}

RpcError Draining() {
  return MakeError(absl::StatusCode::kUnavailable, "the server is draining", "DRAINING");
}

RpcError PermissionDenied(std::string message, std::string reason) {
  return MakeError(absl::StatusCode::kPermissionDenied, std::move(message), std::move(reason));
}

RpcError ModelNotAllowed(std::string_view name) {
  return PermissionDenied("the tenant may not use model " + Quote(name), "MODEL_NOT_ALLOWED");
}

RpcError QueueFull(std::string message, std::optional<std::chrono::milliseconds> retry_after) {
  RpcError error =
      MakeError(absl::StatusCode::kResourceExhausted, std::move(message), "QUEUE_FULL");
  error.retry_after = retry_after;
  error.pushback = retry_after.has_value();
  return error;
}

std::string Quote(std::string_view input) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : input.substr(0, kMaxEchoedBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f && c != '"' && c != '\\') {
      out.push_back(c);
    } else {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  out += "\"";
  if (input.size() > kMaxEchoedBytes) out += "... (" + std::to_string(input.size()) + " bytes)";
  return out;
}

std::string_view CodeName(absl::StatusCode code) {
  static constexpr std::string_view kNames[] = {"OK",
                                                "CANCELLED",
                                                "UNKNOWN",
                                                "INVALID_ARGUMENT",
                                                "DEADLINE_EXCEEDED",
                                                "NOT_FOUND",
                                                "ALREADY_EXISTS",
                                                "PERMISSION_DENIED",
                                                "RESOURCE_EXHAUSTED",
                                                "FAILED_PRECONDITION",
                                                "ABORTED",
                                                "OUT_OF_RANGE",
                                                "UNIMPLEMENTED",
                                                "INTERNAL",
                                                "UNAVAILABLE",
                                                "DATA_LOSS",
                                                "UNAUTHENTICATED"};
  const auto index = static_cast<size_t>(code);
  return index < std::size(kNames) ? kNames[index] : "UNKNOWN";
}

}  // namespace sluice::server
