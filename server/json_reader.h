#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sluice::server {

// Reads an object of a configuration file strictly: every key is known, every value of its type
// and within its bounds. The first thing that is wrong is kept, with its path; what is read after
// it is a default. `json` and the other arguments outlive the reader.
class JsonReader {
 public:
  // `path` of `json` in the file: "tokens[3]"; "" for the whole.
  JsonReader(const nlohmann::json& json, std::string path,
             std::initializer_list<std::string_view> keys);

  // Absent keys give nothing.
  std::optional<std::string> String(const char* key);
  std::optional<double> Number(const char* key, double minimum, double maximum);
  std::optional<int64_t> Integer(const char* key, int64_t minimum, int64_t maximum);
  // The array or object of a key; null when it is absent or something else.
  const nlohmann::json* Array(const char* key);
  const nlohmann::json* Object(const char* key);

  void Fail(const std::string& key, const std::string& what);
  std::string PathOf(const std::string& key) const;
  const absl::Status& status() const { return status_; }

 private:
  const nlohmann::json* Find(const char* key) const;

  const nlohmann::json& json_;
  const std::string path_;
  absl::Status status_;
};

// A JSON text with limits on its depth, in which no object has a key twice; an error says at which
// byte it breaks off, not what is there: it may be a secret.
absl::StatusOr<nlohmann::json> ParseJson(const std::string& text);

}  // namespace sluice::server
