#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace sluice::cli {

// What one call of a load was seen to do by its client. Times in seconds. Value.
struct CallRecord {
  int status_code = 0;              // gRPC's; 0: OK
  std::string message;              // of a status other than OK
  double first_seconds = 0;         // sent to first token
  double total_seconds = 0;         // sent to the stream's end
  double server_first_seconds = 0;  // arrival to first token as the server counted
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  struct Gap {
    float seconds = 0;   // from the delta before
    int32_t tokens = 0;  // of the delta that ended it
  };
  std::vector<Gap> gaps;
};

// Milliseconds; nearest rank.
struct Quantiles {
  double p50 = 0, p90 = 0, p95 = 0, p99 = 0, most = 0, mean = 0;

  // Of weighted values in seconds; all 0 when there are none.
  struct Weighted {
    double seconds = 0;
    int64_t weight = 1;
  };
  static Quantiles Of(std::vector<Weighted> values);
};

// A load in numbers, defined as other programs for this purpose do. Only calls that ended OK count
// for latencies; tokens of all. Value.
struct LoadReport {
  int64_t calls = 0;
  int64_t calls_ok = 0;
  double seconds = 0;  // first call sent to last stream ended
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  double tokens_per_delta = 0;
  Quantiles first_token;                  // sent to first token
  Quantiles server_first_token;           // the same as the server counted
  Quantiles token;                        // of a call: first token to end, over its other tokens
  Quantiles inter_token;                  // gaps between deltas, each shared by the delta's tokens
  Quantiles inter_delta;                  // gaps between deltas
  Quantiles call;                         // sent to end
  std::map<std::string, int64_t> errors;  // calls by name of their status
  std::string first_error;                // one message, to begin with

  static LoadReport Of(const std::vector<CallRecord>& calls, double seconds);

  double OutputTokensPerSecond() const;
  // Several lines for people.
  std::string Text() const;
  // One line; `facts` is what else belongs into it, as members of a JSON object without braces.
  std::string Json(const std::string& facts) const;
};

// "UNAVAILABLE", or the number for an unknown code.
std::string StatusName(int grpc_code);

}  // namespace sluice::cli
