#include "server/trace_context.h"

#include <grpcpp/server_context.h>

#include <algorithm>
#include <iterator>

namespace sluice::server {
namespace {

constexpr size_t kVersionDigits = 2;
constexpr size_t kTraceIdAt = 3, kTraceIdDigits = 32;
constexpr size_t kSpanIdAt = 36, kSpanIdDigits = 16;
constexpr size_t kFlagsAt = 53, kFlagsDigits = 2;
constexpr size_t kLength = 55;

bool IsLowerHex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsZero(std::string_view digits) {
  return digits.find_first_not_of('0') == std::string_view::npos;
}

int ValueOf(char digit) { return digit <= '9' ? digit - '0' : digit - 'a' + 10; }

}  // namespace

std::optional<TraceContext> ParseTraceparent(std::string_view header) {
  if (header.size() < kLength) return std::nullopt;
  const std::string_view version = header.substr(0, kVersionDigits);
  if (!IsLowerHex(version) || version == "ff") return std::nullopt;
  // A later version may go on after another dash.
  const bool ends = header.size() == kLength || (version != "00" && header[kLength] == '-');
  if (!ends) return std::nullopt;
  for (const size_t at : {kTraceIdAt, kSpanIdAt, kFlagsAt}) {
    if (header[at - 1] != '-') return std::nullopt;
  }
  const std::string_view trace_id = header.substr(kTraceIdAt, kTraceIdDigits);
  const std::string_view span_id = header.substr(kSpanIdAt, kSpanIdDigits);
  const std::string_view flags = header.substr(kFlagsAt, kFlagsDigits);
  if (!IsLowerHex(trace_id) || !IsLowerHex(span_id) || !IsLowerHex(flags)) return std::nullopt;
  if (IsZero(trace_id) || IsZero(span_id)) return std::nullopt;
  const bool sampled = (ValueOf(flags[1]) & 1) != 0;
  return TraceContext{std::string(trace_id), std::string(span_id), sampled};
}

std::optional<TraceContext> TraceContextOf(const grpc::ServerContextBase& context) {
  const auto [first, last] = context.client_metadata().equal_range("traceparent");
  if (first == last || std::next(first) != last) return std::nullopt;
  return ParseTraceparent({first->second.data(), first->second.size()});
}

}  // namespace sluice::server
