#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace grpc {
class ServerContextBase;
}

namespace sluice::server {

// The caller's place in a distributed trace, by W3C Trace Context
// (https://www.w3.org/TR/trace-context/#traceparent-header). Value.
struct TraceContext {
  std::string trace_id;  // 32 lower-case hex digits, not all 0
  std::string span_id;   // the caller's span: 16 of them
  bool sampled = false;  // the caller may have recorded it
};

// Of a header "00-TRACE_ID-SPAN_ID-FLAGS", or of a later version that begins so. Nothing for what
// is malformed: a trace that breaks off is no reason to refuse a call.
std::optional<TraceContext> ParseTraceparent(std::string_view header);

// Of a call's metadata; nothing when there is no `traceparent`, or more than one.
std::optional<TraceContext> TraceContextOf(const grpc::ServerContextBase& context);

}  // namespace sluice::server
