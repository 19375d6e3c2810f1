#include "cli/load_report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>

namespace sluice::cli {
namespace {

constexpr const char* kStatusNames[] = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

std::string Line(const char* name, const Quantiles& q) {
  char text[160];
  std::snprintf(text, sizeof text, "%-24s %9.2f %9.2f %9.2f %9.2f %9.2f %9.2f\n", name, q.mean,
                q.p50, q.p90, q.p95, q.p99, q.most);
  return text;
}

std::string JsonMember(const char* name, const Quantiles& q) {
  char text[224];
  std::snprintf(text, sizeof text,
                ", \"%s_ms\": {\"mean\": %.3f, \"p50\": %.3f, \"p90\": %.3f, \"p95\": %.3f, "
                "\"p99\": %.3f, \"max\": %.3f}",
                name, q.mean, q.p50, q.p90, q.p95, q.p99, q.most);
  return text;
}

// What the calls that ended OK give to the quantiles.
struct Samples {
  std::vector<Quantiles::Weighted> first, server_first, token, inter_token, inter_delta, call;
  int64_t deltas = 0, tokens = 0;

  void Add(const CallRecord& record) {
    call.push_back({record.total_seconds});
    if (record.output_tokens == 0) return;
    first.push_back({record.first_seconds});
    server_first.push_back({record.server_first_seconds});
    if (record.output_tokens > 1) {
      token.push_back({(record.total_seconds - record.first_seconds) /
                       static_cast<double>(record.output_tokens - 1)});
    }
    for (const CallRecord::Gap& gap : record.gaps) {
      inter_delta.push_back({gap.seconds});
      inter_token.push_back({gap.seconds / static_cast<double>(gap.tokens), gap.tokens});
    }
    deltas += 1 + static_cast<int64_t>(record.gaps.size());
    tokens += record.output_tokens;
  }
};

}  // namespace

std::string StatusName(int grpc_code) {
  if (grpc_code < 0 || grpc_code >= static_cast<int>(std::size(kStatusNames))) {
    return std::to_string(grpc_code);
  }
  return kStatusNames[grpc_code];
}

Quantiles Quantiles::Of(std::vector<Weighted> values) {
  Quantiles quantiles;
  if (values.empty()) return quantiles;
  std::sort(values.begin(), values.end(),
            [](const Weighted& a, const Weighted& b) { return a.seconds < b.seconds; });
  double sum = 0;
  int64_t count = 0;
  for (const Weighted& value : values) {
    sum += value.seconds * static_cast<double>(value.weight);
    count += value.weight;
  }
  const auto at = [&](double share) {
    const auto rank = static_cast<int64_t>(std::ceil(share * static_cast<double>(count)));
    int64_t seen = 0;
    for (const Weighted& value : values) {
      seen += value.weight;
      if (seen >= rank) return 1e3 * value.seconds;
    }
    return 1e3 * values.back().seconds;
  };
  quantiles.p50 = at(0.5);
  quantiles.p90 = at(0.9);
  quantiles.p95 = at(0.95);
  quantiles.p99 = at(0.99);
  quantiles.most = 1e3 * values.back().seconds;
  quantiles.mean = 1e3 * sum / static_cast<double>(count);
  return quantiles;
}

LoadReport LoadReport::Of(const std::vector<CallRecord>& calls, double seconds) {
  LoadReport report;
  report.calls = static_cast<int64_t>(calls.size());
  report.seconds = seconds;
  Samples samples;
  for (const CallRecord& record : calls) {
    report.output_tokens += record.output_tokens;
    report.prompt_tokens += record.prompt_tokens;
    if (record.status_code != 0) {
      ++report.errors[StatusName(record.status_code)];
      if (report.first_error.empty()) report.first_error = record.message;
      continue;
    }
    ++report.calls_ok;
    samples.Add(record);
  }
  if (samples.deltas > 0) {
    report.tokens_per_delta =
        static_cast<double>(samples.tokens) / static_cast<double>(samples.deltas);
  }
  report.first_token = Quantiles::Of(std::move(samples.first));
  report.server_first_token = Quantiles::Of(std::move(samples.server_first));
  report.token = Quantiles::Of(std::move(samples.token));
  report.inter_token = Quantiles::Of(std::move(samples.inter_token));
  report.inter_delta = Quantiles::Of(std::move(samples.inter_delta));
  report.call = Quantiles::Of(std::move(samples.call));
  return report;
}

double LoadReport::OutputTokensPerSecond() const {
  return seconds > 0 ? static_cast<double>(output_tokens) / seconds : 0;
}

std::string LoadReport::Text() const {
  char head[256];
  std::snprintf(head, sizeof head,
                "%lld of %lld calls ended OK in %.2f s: %.1f calls/s, %.1f output tokens/s, %.1f "
                "tokens/s with the prompts, %.2f tokens a delta\n",
                static_cast<long long>(calls_ok), static_cast<long long>(calls), seconds,
                seconds > 0 ? static_cast<double>(calls) / seconds : 0, OutputTokensPerSecond(),
                seconds > 0 ? static_cast<double>(output_tokens + prompt_tokens) / seconds : 0,
                tokens_per_delta);
  std::string text = head;
  std::snprintf(head, sizeof head, "%-24s %9s %9s %9s %9s %9s %9s\n", "milliseconds", "mean", "p50",
                "p90", "p95", "p99", "max");
  text += head;
  text += Line("time to first token", first_token);
  text += Line("  as the server counts", server_first_token);
  text += Line("time a token of a call", token);
  text += Line("between tokens", inter_token);
  text += Line("between deltas", inter_delta);
  text += Line("whole call", call);
  for (const auto& [name, count] : errors) {
    text += name + ": " + std::to_string(count) + " calls\n";
  }
  if (!first_error.empty()) text += "first error: " + first_error + "\n";
  return text;
}

std::string LoadReport::Json(const std::string& facts) const {
  char head[256];
  std::snprintf(head, sizeof head,
                "\"calls\": %lld, \"calls_ok\": %lld, \"seconds\": %.3f, \"prompt_tokens\": %lld, "
                "\"output_tokens\": %lld, \"output_tokens_per_second\": %.1f, "
                "\"tokens_per_delta\": %.3f",
                static_cast<long long>(calls), static_cast<long long>(calls_ok), seconds,
                static_cast<long long>(prompt_tokens), static_cast<long long>(output_tokens),
                OutputTokensPerSecond(), tokens_per_delta);
  std::string json = "{" + facts + (facts.empty() ? "" : ", ") + head;
  json += JsonMember("first_token", first_token);
  json += JsonMember("server_first_token", server_first_token);
  json += JsonMember("token", token);
  json += JsonMember("inter_token", inter_token);
  json += JsonMember("inter_delta", inter_delta);
  json += JsonMember("call", call);
  json += ", \"errors\": {";
  for (const auto& [name, count] : errors) {
    json += (json.back() == '{' ? "\"" : ", \"") + name + "\": " + std::to_string(count);
  }
  return json + "}}";
}

}  // namespace sluice::cli
