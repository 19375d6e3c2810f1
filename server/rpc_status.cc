#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

#include "server/rpc_error.h"

namespace sluice::server {

grpc::Status ToGrpcStatus(const RpcError& error, grpc::ServerContextBase& context) {
  google::rpc::Status details;
  details.set_code(static_cast<int>(error.code));
  details.set_message(error.message);
  if (!error.violations.empty()) {
    google::rpc::BadRequest bad_request;
    for (const FieldViolation& violation : error.violations) {
      auto* field = bad_request.add_field_violations();
      field->set_field(violation.field);
      field->set_description(violation.description);
    }
    details.add_details()->PackFrom(bad_request);
  }
  if (error.quota) {
    google::rpc::QuotaFailure failure;
    auto* violation = failure.add_violations();
    violation->set_subject(error.quota->field);
    violation->set_description(error.quota->description);
    details.add_details()->PackFrom(failure);
  }
  if (!error.reason.empty()) {
    google::rpc::ErrorInfo facts;
    facts.set_reason(error.reason);
    facts.set_domain(std::string(kErrorDomain));
    for (const auto& [key, value] : error.metadata) (*facts.mutable_metadata())[key] = value;
    details.add_details()->PackFrom(facts);
  }
  if (error.retry_after) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(error.retry_after->count() / 1000);
    retry.mutable_retry_delay()->set_nanos(
        static_cast<int32_t>(error.retry_after->count() % 1000 * 1'000'000));
    details.add_details()->PackFrom(retry);
    if (error.pushback) {
      context.AddTrailingMetadata("grpc-retry-pushback-ms",
                                  std::to_string(error.retry_after->count()));
    }
  }
  return grpc::Status(static_cast<grpc::StatusCode>(error.code), error.message,
                      details.SerializeAsString());
}

}  // namespace sluice::server
