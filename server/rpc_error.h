#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace grpc {
class ServerContextBase;
class Status;
}  // namespace grpc

namespace sluice::server {

inline constexpr std::string_view kErrorDomain = "sluice";
inline constexpr size_t kMaxEchoedBytes = 64;

struct FieldViolation {
  std::string field;  // path in the request, "sampling.temperature"
  std::string description;
};

// How a call fails: the status and the details that travel with it. Value.
struct RpcError {
  absl::StatusCode code = absl::StatusCode::kUnknown;
  std::string message;
  std::string reason;                      // of ErrorInfo, "QUEUE_FULL"; empty: no ErrorInfo
  std::vector<FieldViolation> violations;  // of BadRequest
  std::optional<FieldViolation> quota;     // of QuotaFailure: the subject in place of the field
  std::vector<std::pair<std::string, std::string>> metadata;  // of ErrorInfo
  std::optional<std::chrono::milliseconds> retry_after;       // RetryInfo
  bool pushback = false;  // and the trailer grpc-retry-pushback-ms
};

// An error without details but `reason`, which may be empty.
RpcError MakeError(absl::StatusCode code, std::string message, std::string reason);
// INVALID_ARGUMENT for one field.
RpcError BadField(std::string field, std::string description);
// INVALID_ARGUMENT for some; `violations` is not empty.
RpcError BadFields(std::vector<FieldViolation> violations);
RpcError ModelNotFound(std::string_view name, std::string_view served);
RpcError StillLoading();
RpcError Draining();
RpcError ModelNotAllowed(std::string_view name);
RpcError PermissionDenied(std::string message, std::string reason);
// `retry_after`: nothing when no retry can help.
RpcError QueueFull(std::string message, std::optional<std::chrono::milliseconds> retry_after);

// At most 64 bytes of what a client sent, in quotes, with everything but printable ASCII escaped.
std::string Quote(std::string_view input);

// The status with its google.rpc.Status details (which the library sends as
// grpc-status-details-bin); adds the other trailers to `context`, so call it right before Finish.
grpc::Status ToGrpcStatus(const RpcError& error, grpc::ServerContextBase& context);

// "INVALID_ARGUMENT".
std::string_view CodeName(absl::StatusCode code);

}  // namespace sluice::server
