#include "engine/chat/json_text.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "engine/chat/value_text.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::engine::chat {
namespace {

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, Budget& budget) : style_(style), budget_(budget) {}

  absl::Status Append(const Value& value, int level) {
    RETURN_IF_ERROR(budget_.Steps(1));
    const size_t size = out_.size() + (value.is_text() ? value.text().size() : 0);
    RETURN_IF_ERROR(budget_.Grow(counted_, size));
    counted_ = size;
    if (value.is_text()) {
      AppendString(value.text());
    } else if (value.is_bool()) {
      Put(value.IsTrue() ? "true" : "false");
    } else if (value.is_int()) {
      Put(std::to_string(*value.AsInt()));
    } else if (value.is_float()) {
      Put(Float(value.as_float()));
    } else if (value.is_none()) {
      Put("null");
    } else if (value.is_dict()) {
      return AppendDict(value.dict(), level);
    } else if (value.is_sequence() && (value.sequence().kind == Sequence::Kind::kList ||
                                       value.sequence().kind == Sequence::Kind::kTuple)) {
      return AppendList(value.sequence(), level);
    } else {
      return InvalidArgument("Object of type " + std::string(value.TypeName()) +
                             " is not JSON serializable");
    }
    return absl::OkStatus();
  }
  MarkedText Take() { return std::move(out_); }

 private:
  void Put(std::string_view bytes) { out_.Append(bytes, kContent); }

  static std::string Float(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return FloatText(value);
  }

  void AppendString(const MarkedText& text) {
    static constexpr std::string_view kSpecial = "\"\\\n\r\t\b\f";
    static constexpr std::string_view kLetters = "\"\\nrtbf";
    const std::string& bytes = text.bytes();
    Put("\"");
    for (size_t at = 0; at < bytes.size();) {
      // Most of a text is written as it is.
      size_t plain = at;
      while (plain < bytes.size() && IsPlain(static_cast<uint8_t>(bytes[plain]))) ++plain;
      out_.Append(text, at, plain - at);
      if (plain == bytes.size()) break;
      const Utf8Step step = NextUtf8(std::string_view(bytes).substr(plain));
      const char32_t c = step.code_point;
      std::string escape;
      if (const size_t letter = kSpecial.find(bytes[plain]); letter != std::string_view::npos) {
        escape = {'\\', kLetters[letter]};
      } else if (c >= 0x10000) {
        escape = Escape(0xD800 + ((c - 0x10000) >> 10)) + Escape(0xDC00 + ((c - 0x10000) & 0x3FF));
      } else {
        escape = Escape(c);
      }
      out_.Append(escape, text.MarkAt(plain));
      at = plain + step.length;
    }
    Put("\"");
  }
  bool IsPlain(uint8_t byte) const {
    return byte >= 0x20 && byte != '"' && byte != '\\' && (!style_.ascii_only || byte < 0x80);
  }
  static std::string Escape(char32_t code) {
    char text[16];
    std::snprintf(text, sizeof(text), "\\u%04x", static_cast<unsigned>(code));
    return text;
  }

  void BreakLine(int level) {
    if (!style_.indent) return;
    std::string line = "\n";
    for (int i = 0; i < level; ++i) line += *style_.indent;
    Put(line);
  }

  absl::Status AppendList(const Sequence& list, int level) {
    Put("[");
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) Put(style_.item_separator);
      BreakLine(level + 1);
      RETURN_IF_ERROR(Append(list.items[i], level + 1));
    }
    if (!list.items.empty()) BreakLine(level);
    Put("]");
    return absl::OkStatus();
  }

  absl::Status AppendDict(const Dict& dict, int level) {
    std::vector<std::pair<MarkedText, const Value*>> entries;
    for (const auto& [key, value] : dict.entries) {
      ASSIGN_OR_RETURN(MarkedText name, KeyText(key));
      entries.emplace_back(std::move(name), &value);
    }
    if (style_.sorts_keys) {
      std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
        return a.first.bytes() < b.first.bytes();
      });
    }
    Put("{");
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) Put(style_.item_separator);
      BreakLine(level + 1);
      AppendString(entries[i].first);
      Put(style_.key_separator);
      RETURN_IF_ERROR(Append(*entries[i].second, level + 1));
    }
    if (!entries.empty()) BreakLine(level);
    Put("}");
    return absl::OkStatus();
  }

  static absl::StatusOr<MarkedText> KeyText(const Value& key) {
    if (key.is_text()) return key.text();
    std::string name;
    if (key.is_bool()) {
      name = key.IsTrue() ? "true" : "false";
    } else if (key.is_int()) {
      name = std::to_string(*key.AsInt());
    } else if (key.is_float()) {
      name = Float(key.as_float());
    } else if (key.is_none()) {
      name = "null";
    } else {
      return InvalidArgument("keys must be str, int, float, bool or None, not " +
                             std::string(key.TypeName()));
    }
    return MarkedText(std::move(name), kContent);
  }

  const JsonStyle& style_;
  Budget& budget_;
  MarkedText out_;
  size_t counted_ = 0;  // bytes of `out_` that the budget knows of
};

// Builds values from the events of nlohmann's parser, which does not recurse.
class JsonReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit JsonReader(int max_depth) : max_depth_(max_depth) {}

  bool null() override { return Add(Value(None())); }
  bool boolean(bool value) override { return Add(Value(value)); }
  bool number_integer(number_integer_t value) override { return Add(Value(int64_t{value})); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Fail("a number beyond 64 bits");
    }
    return Add(Value(static_cast<int64_t>(value)));
  }
  bool number_float(number_float_t value, const string_t& text) override {
    // The parser takes integers that are too large for floats.
    if (text.find_first_of(".eE") == std::string::npos) return Fail("a number beyond 64 bits");
    return Add(Value(value));
  }
  bool string(string_t& value) override { return Add(Value::Content(std::move(value))); }
  bool binary(binary_t& /*value*/) override { return Fail("binary data"); }
  bool start_object(size_t /*size*/) override { return Open(true); }
  bool start_array(size_t /*size*/) override { return Open(false); }
  bool key(string_t& value) override {
    open_.back().key = Value::Content(std::move(value));
    return true;
  }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool parse_error(size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    return Fail("not valid from byte " + std::to_string(position));
  }

  const std::string& error() const { return error_; }
  Value Take() { return std::move(result_); }

 private:
  struct Container {
    bool is_dict;
    std::shared_ptr<Dict> dict;
    std::vector<Value> items;
    Value key;
  };

  bool Fail(std::string what) {
    if (error_.empty()) error_ = std::move(what);
    return false;
  }
  bool Add(Value value) {
    if (open_.empty()) {
      result_ = std::move(value);
    } else if (Container& parent = open_.back(); parent.is_dict) {
      parent.dict->Set(std::move(parent.key), std::move(value));
    } else {
      parent.items.push_back(std::move(value));
    }
    return true;
  }
  bool Open(bool is_dict) {
    if (static_cast<int>(open_.size()) >= max_depth_) {
      return Fail("nested deeper than " + std::to_string(max_depth_));
    }
    open_.push_back({is_dict, is_dict ? std::make_shared<Dict>() : nullptr, {}, {}});
    return true;
  }
  bool Close() {
    Container closed = std::move(open_.back());
    open_.pop_back();
    if (!closed.is_dict) return Add(Value::List(std::move(closed.items)));
    return Add(Value(Value::DictPtr(std::move(closed.dict))));
  }

  const int max_depth_;
  std::vector<Container> open_;
  Value result_;
  std::string error_;
};

}  // namespace

absl::StatusOr<MarkedText> ToJson(const Value& value, const JsonStyle& style, Budget& budget) {
  JsonWriter writer(style, budget);
  RETURN_IF_ERROR(writer.Append(value, 0));
  return writer.Take();
}

absl::StatusOr<Value> FromJson(std::string_view text, int max_depth) {
  JsonReader reader(max_depth);
  if (nlohmann::json::sax_parse(text.begin(), text.end(), &reader)) return reader.Take();
  return InvalidArgument(reader.error().empty() ? "not valid JSON" : reader.error());
}

}  // namespace sluice::engine::chat
