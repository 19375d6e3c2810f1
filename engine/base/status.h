#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sluice::engine {

// Debian's Abseil has string types of its own: here, and in hash.h, is where std types cross into
// it.
inline absl::Status MakeStatus(absl::StatusCode code, std::string_view message) {
  return absl::Status(code, absl::string_view(message.data(), message.size()));
}
inline absl::Status InvalidArgument(std::string_view message) {
  return MakeStatus(absl::StatusCode::kInvalidArgument, message);
}
inline absl::Status NotFound(std::string_view message) {
  return MakeStatus(absl::StatusCode::kNotFound, message);
}
inline absl::Status Unimplemented(std::string_view message) {
  return MakeStatus(absl::StatusCode::kUnimplemented, message);
}
inline absl::Status ResourceExhausted(std::string_view message) {
  return MakeStatus(absl::StatusCode::kResourceExhausted, message);
}
inline absl::Status FailedPrecondition(std::string_view message) {
  return MakeStatus(absl::StatusCode::kFailedPrecondition, message);
}
inline absl::Status Internal(std::string_view message) {
  return MakeStatus(absl::StatusCode::kInternal, message);
}
inline absl::Status Unavailable(std::string_view message) {
  return MakeStatus(absl::StatusCode::kUnavailable, message);
}
inline absl::Status DeadlineExceeded(std::string_view message) {
  return MakeStatus(absl::StatusCode::kDeadlineExceeded, message);
}
inline absl::Status Cancelled(std::string_view message) {
  return MakeStatus(absl::StatusCode::kCancelled, message);
}
inline absl::Status DataLoss(std::string_view message) {
  return MakeStatus(absl::StatusCode::kDataLoss, message);
}

inline std::string Message(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}
// The same code, with `context` and ": " before the message.
inline absl::Status Prefix(std::string_view context, const absl::Status& status) {
  if (status.ok()) return status;
  return MakeStatus(status.code(), std::string(context) + ": " + Message(status));
}

}  // namespace sluice::engine

#define SLUICE_CONCAT_INNER(a, b) a##b
#define SLUICE_CONCAT(a, b) SLUICE_CONCAT_INNER(a, b)
#define RETURN_IF_ERROR(expr)                                         \
  do {                                                                \
    if (absl::Status status_ = (expr); !status_.ok()) return status_; \
  } while (false)
#define ASSIGN_OR_RETURN(lhs, expr) \
  SLUICE_ASSIGN_OR_RETURN(SLUICE_CONCAT(statusor_, __LINE__), lhs, expr)
#define SLUICE_ASSIGN_OR_RETURN(temp, lhs, expr) \
  auto temp = (expr);                            \
  if (!temp.ok()) return temp.status();          \
  lhs = std::move(*temp)
