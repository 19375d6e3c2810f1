#include "engine/safetensors/json_document.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {
namespace {

using Json = nlohmann::json;

void AppendQuoted(std::string_view text, std::string& out) {
  constexpr char kHex[] = "0123456789abcdef";
  out += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) {
      out += c;
    } else {
      out += "\\u00";
      out += kHex[c >> 4];
      out += kHex[c & 15];
    }
  }
  out += '"';
}

}  // namespace

// Takes nlohmann's events, one call a token; false from any of them ends the reading.
class JsonDocument::Reader : public nlohmann::json_sax<Json> {
 public:
  explicit Reader(JsonDocument& document) : document_(document) { document_.begins_.push_back(0); }

  absl::Status status() const { return status_; }

  bool null() override { return Add(JsonKind::kNull); }
  bool boolean(bool value) override {
    if (!Add(JsonKind::kBool)) return false;
    document_.nodes_.back().truth = value;
    return true;
  }
  bool number_integer(Json::number_integer_t value) override {
    if (!Add(JsonKind::kInteger)) return false;
    document_.nodes_.back().integer = value;
    return true;
  }
  bool number_unsigned(Json::number_unsigned_t value) override {
    if (value <= static_cast<uint64_t>(INT64_MAX)) {
      return number_integer(static_cast<int64_t>(value));
    }
    return AddNumber(static_cast<double>(value));
  }
  bool number_float(Json::number_float_t value, const std::string&) override {
    return AddNumber(value);
  }
  bool string(std::string& value) override {
    if (!Add(JsonKind::kString)) return false;
    document_.nodes_.back().text = AddText(value);
    return true;
  }
  bool binary(Json::binary_t&) override { return false; }  // JSON has none
  bool key(std::string& name) override {
    key_ = AddText(name);
    return true;
  }
  bool start_object(size_t) override { return Open(JsonKind::kObject); }
  bool start_array(size_t) override { return Open(JsonKind::kArray); }
  bool end_array() override { return Close(); }
  bool end_object() override { return CheckKeys() && Close(); }
  bool parse_error(size_t position, const std::string& token,
                   const nlohmann::detail::exception&) override {
    status_ = InvalidArgument("expected JSON, got a syntax error near " + Quoted(token) +
                              " (at byte " + std::to_string(position > 0 ? position - 1 : 0) + ")");
    return false;
  }

 private:
  bool Fail(const std::string& message) {
    status_ = InvalidArgument(message);
    return false;
  }
  uint32_t AddText(std::string_view text) {
    document_.bytes_ += text;
    document_.begins_.push_back(static_cast<uint32_t>(document_.bytes_.size()));
    return static_cast<uint32_t>(document_.begins_.size() - 2);
  }
  bool Add(JsonKind kind) {
    if (document_.nodes_.size() == kMaxValues) {
      return Fail("expected at most " + std::to_string(kMaxValues) + " JSON values, got more");
    }
    Node& node = document_.nodes_.emplace_back();
    node.kind = kind;
    node.key = key_;
    node.end = static_cast<uint32_t>(document_.nodes_.size());
    return true;
  }
  bool AddNumber(double value) {
    if (!Add(JsonKind::kNumber)) return false;
    document_.nodes_.back().number = value;
    return true;
  }
  bool Open(JsonKind kind) {
    if (open_.size() == kMaxDepth) {
      return Fail("expected at most " + std::to_string(kMaxDepth) + " levels of JSON, got more");
    }
    open_.push_back(static_cast<uint32_t>(document_.nodes_.size()));
    return Add(kind);
  }
  bool Close() {
    document_.nodes_[open_.back()].end = static_cast<uint32_t>(document_.nodes_.size());
    open_.pop_back();
    return true;
  }
  bool CheckKeys() {
    std::vector<std::string_view> keys;
    const auto end = static_cast<uint32_t>(document_.nodes_.size());
    for (uint32_t i = open_.back() + 1; i < end; i = document_.nodes_[i].end) {
      keys.push_back(document_.Text(document_.nodes_[i].key));
    }
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice == keys.end()) return true;
    return Fail("expected each key of an object once, got " + Quoted(*twice) + " again");
  }

  JsonDocument& document_;
  std::vector<uint32_t> open_;  // objects and arrays that are not closed yet
  uint32_t key_ = 0;
  absl::Status status_;
};

absl::StatusOr<JsonDocument> JsonDocument::Parse(std::string_view text) {
  if (text.size() >= UINT32_MAX) return InvalidArgument("expected less than 4 GiB of JSON");
  JsonDocument document;
  Reader reader(document);
  const bool done = Json::sax_parse(text.begin(), text.end(), &reader);
  RETURN_IF_ERROR(reader.status());
  if (!done || document.nodes_.empty()) return InvalidArgument("expected JSON, got none");
  return document;
}

JsonValue JsonDocument::root() const { return JsonValue(this, 0); }

std::optional<bool> JsonValue::AsBool() const {
  if (kind() != JsonKind::kBool) return std::nullopt;
  return node().truth;
}

std::optional<int64_t> JsonValue::AsInteger() const {
  if (kind() != JsonKind::kInteger) return std::nullopt;
  return node().integer;
}

std::optional<double> JsonValue::AsNumber() const {
  if (kind() == JsonKind::kInteger) return static_cast<double>(node().integer);
  if (kind() != JsonKind::kNumber) return std::nullopt;
  return node().number;
}

std::optional<std::string_view> JsonValue::AsString() const {
  if (!is_string()) return std::nullopt;
  return document_->Text(node().text);
}

std::optional<JsonValue> JsonValue::Find(std::string_view key) const {
  if (!is_object()) return std::nullopt;
  for (const JsonValue member : *this) {
    if (member.key() == key) return member;
  }
  return std::nullopt;
}

size_t JsonValue::size() const {
  size_t count = 0;
  for (Iterator it = begin(); it != end(); ++it) ++count;
  return count;
}

// As deep as the document, which is kMaxDepth at most.
void JsonValue::DumpTo(std::string& out, size_t most) const {
  if (out.size() >= most) return;
  char digits[32];
  switch (kind()) {
    case JsonKind::kNull:
      out += "null";
      return;
    case JsonKind::kBool:
      out += node().truth ? "true" : "false";
      return;
    case JsonKind::kInteger:
      out += std::to_string(node().integer);
      return;
    case JsonKind::kNumber:
      out.append(digits, std::to_chars(digits, digits + sizeof(digits), node().number).ptr);
      return;
    case JsonKind::kString:
      AppendQuoted(*AsString(), out);
      return;
    case JsonKind::kArray:
    case JsonKind::kObject:
      break;
  }
  std::vector<JsonValue> held;
  for (const JsonValue value : *this) held.push_back(value);
  if (is_object()) {
    std::sort(held.begin(), held.end(),
              [](const JsonValue& a, const JsonValue& b) { return a.key() < b.key(); });
  }
  out += is_object() ? '{' : '[';
  for (size_t i = 0; i < held.size(); ++i) {
    if (i > 0) out += ',';
    if (out.size() >= most) break;
    if (is_object()) {
      AppendQuoted(held[i].key(), out);
      out += ':';
    }
    held[i].DumpTo(out, most);
  }
  out += is_object() ? '}' : ']';
}

std::string JsonValue::Dump(size_t most) const {
  std::string out;
  DumpTo(out, most);
  if (out.size() > most) out = out.substr(0, most) + "...";
  return out;
}

std::string_view KindName(JsonKind kind) {
  switch (kind) {
    case JsonKind::kNull:
      return "null";
    case JsonKind::kBool:
      return "a bool";
    case JsonKind::kInteger:
      return "an integer";
    case JsonKind::kNumber:
      return "a number";
    case JsonKind::kString:
      return "a string";
    case JsonKind::kArray:
      return "an array";
    case JsonKind::kObject:
      return "an object";
  }
  return "";
}

}  // namespace sluice::engine
