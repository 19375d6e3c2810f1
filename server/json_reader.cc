#include "server/json_reader.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "server/field_limits.h"
#include "server/rpc_error.h"

namespace sluice::server {
namespace {

constexpr int kMaxDepth = 8;

std::string Bounds(double minimum, double maximum) {
  return " from " + FormatNumber(minimum) + " to " + FormatNumber(maximum);
}

// Goes through a text with its parser, which keeps the last of the members of one name, and finds
// the first key that an object has twice.
class RepeatedKeys {
 public:
  using Event = nlohmann::json::parse_event_t;

  void Follow(Event event, const nlohmann::json& parsed) {
    if (event == Event::object_end || event == Event::array_end) {
      open_.pop_back();
    } else if (event == Event::key) {
      open_.back().key = parsed.get<std::string>();
      const bool is_new = open_.back().keys.insert(open_.back().key).second;
      if (!is_new && error_.empty()) {
        error_ = Path() + ": expected each key once, got " + Quote(open_.back().key) + " again";
      }
    } else {
      if (!open_.empty()) ++open_.back().num_values;
      if (event != Event::value) open_.push_back({.is_array = event == Event::array_start});
    }
  }
  // Empty when there is none.
  const std::string& error() const { return error_; }

 private:
  struct Level {
    bool is_array;
    size_t num_values = 0;
    std::string key = {};  // the last
    std::set<std::string> keys = {};
  };

  // Of the innermost object: "tokens[3]".
  std::string Path() const {
    std::string path;
    for (size_t i = 0; i + 1 < open_.size(); ++i) {
      const Level& level = open_[i];
      if (level.is_array) {
        path += "[" + std::to_string(level.num_values - 1) + "]";
      } else {
        const std::string quoted = Quote(level.key);
        path += (path.empty() ? "" : ".") + quoted.substr(1, quoted.rfind('"') - 1);
      }
    }
    return path.empty() ? "the file" : path;
  }

  std::vector<Level> open_;
  std::string error_;
};

}  // namespace

JsonReader::JsonReader(const nlohmann::json& json, std::string path,
                       std::initializer_list<std::string_view> keys)
    : json_(json), path_(std::move(path)) {
  if (!json.is_object()) {
    status_ = engine::InvalidArgument((path_.empty() ? "the file" : path_) +
                                      ": expected an object, got " + json.type_name());
    return;
  }
  for (const auto& [key, value] : json.items()) {
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
    std::string known;
    for (const std::string_view name : keys)
      known += (known.empty() ? "" : ", ") + std::string(name);
    Fail("", "unknown key " + Quote(key) + ": expected one of " + known);
  }
}

std::string JsonReader::PathOf(const std::string& key) const {
  if (path_.empty() || key.empty()) return path_ + key;
  return path_ + "." + key;
}

void JsonReader::Fail(const std::string& key, const std::string& what) {
  if (!status_.ok()) return;
  const std::string path = PathOf(key);
  status_ = engine::InvalidArgument((path.empty() ? "" : path + ": ") + what);
}

const nlohmann::json* JsonReader::Find(const char* key) const {
  if (!json_.is_object()) return nullptr;
  const auto place = json_.find(key);
  return place == json_.end() ? nullptr : &*place;
}

std::optional<std::string> JsonReader::String(const char* key) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  Fail(key, std::string("expected a string, got ") + value->type_name());
  return std::nullopt;
}

std::optional<double> JsonReader::Number(const char* key, double minimum, double maximum) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_number()) {
    const double number = value->get<double>();
    if (number >= minimum && number <= maximum) return number;
  }
  Fail(key, "expected a number" + Bounds(minimum, maximum));
  return std::nullopt;
}

std::optional<int64_t> JsonReader::Integer(const char* key, int64_t minimum, int64_t maximum) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_number_unsigned() || value->is_number_integer()) {
    // As a double first: an unsigned number above 2^63 would come out negative.
    const double number = value->get<double>();
    if (number >= static_cast<double>(minimum) && number <= static_cast<double>(maximum)) {
      return value->get<int64_t>();
    }
  }
  Fail(key, "expected a whole number" +
                Bounds(static_cast<double>(minimum), static_cast<double>(maximum)));
  return std::nullopt;
}

const nlohmann::json* JsonReader::Array(const char* key) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr || value->is_array()) return value;
  Fail(key, std::string("expected an array, got ") + value->type_name());
  return nullptr;
}

const nlohmann::json* JsonReader::Object(const char* key) {
  const nlohmann::json* value = Find(key);
  if (value == nullptr || value->is_object()) return value;
  Fail(key, std::string("expected an object, got ") + value->type_name());
  return nullptr;
}

absl::StatusOr<nlohmann::json> ParseJson(const std::string& text) {
  bool too_deep = false;
  RepeatedKeys repeated;
  const auto watch = [&](int depth, RepeatedKeys::Event event, nlohmann::json& parsed) {
    too_deep = too_deep || depth > kMaxDepth;
    if (!too_deep) repeated.Follow(event, parsed);
    return !too_deep;
  };
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(text, watch);
  } catch (const nlohmann::json::parse_error& error) {
    return engine::InvalidArgument("no JSON: it breaks off at byte " + std::to_string(error.byte));
  } catch (const nlohmann::json::exception&) {
    return engine::InvalidArgument("no JSON: a number is out of range");
  }
  if (too_deep) {
    return engine::InvalidArgument("nested more than " + std::to_string(kMaxDepth) + " deep");
  }
  if (!repeated.error().empty()) return engine::InvalidArgument(repeated.error());
  return json;
}

}  // namespace sluice::server
