#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace sluice::engine {

enum class JsonKind : uint8_t { kNull, kBool, kInteger, kNumber, kString, kArray, kObject };

class JsonValue;

// A JSON text (RFC 8259) from somebody else, read with limits: at most 64 levels and 4 Mi values,
// and no key twice in one object. Takes 24 bytes a value besides the strings: a vocabulary of
// 262,144 pieces and twice as many merges is 50 MB. Immutable; thread-safe.
class JsonDocument {
 public:
  static constexpr size_t kMaxDepth = 64;
  static constexpr size_t kMaxValues = size_t{4} << 20;

  // INVALID_ARGUMENT saying what is wrong at which byte. `text` is not kept.
  static absl::StatusOr<JsonDocument> Parse(std::string_view text);

  JsonValue root() const;

 private:
  friend class JsonValue;
  class Reader;

  // A value and, right behind it, what it holds.
  struct Node {
    JsonKind kind;
    bool truth;     // kBool
    uint32_t key;   // of a member: index in strings_
    uint32_t text;  // kString: index in strings_
    uint32_t end;   // index of the first node that is not of this value
    union {
      int64_t integer;  // kInteger
      double number;    // kNumber
    };
  };
  std::string_view Text(uint32_t index) const {
    return std::string_view(bytes_).substr(begins_[index], begins_[index + 1] - begins_[index]);
  }

  std::vector<Node> nodes_;
  std::string bytes_;             // of all keys and strings
  std::vector<uint32_t> begins_;  // of each in bytes_, and the end
};

// One value of a JsonDocument, which has to outlive it. Value; a member has a key as well.
class JsonValue {
 public:
  JsonKind kind() const { return node().kind; }
  bool is_null() const { return kind() == JsonKind::kNull; }
  bool is_string() const { return kind() == JsonKind::kString; }
  bool is_array() const { return kind() == JsonKind::kArray; }
  bool is_object() const { return kind() == JsonKind::kObject; }
  std::string_view key() const { return document_->Text(node().key); }

  // nullopt for a value of another kind.
  std::optional<bool> AsBool() const;
  std::optional<int64_t> AsInteger() const;
  std::optional<double> AsNumber() const;  // integers too
  std::optional<std::string_view> AsString() const;

  // The member of an object; nullopt when it has none of that name or this is no object. Looks at
  // one member after the other.
  std::optional<JsonValue> Find(std::string_view key) const;
  // Elements or members; 0 for what is no array or object.
  size_t size() const;

  // JSON without spaces, members by ascending key, at most `most` bytes of it: equal values, equal
  // texts.
  std::string Dump(size_t most = SIZE_MAX) const;

  class Iterator {
   public:
    Iterator(const JsonDocument* document, uint32_t index) : document_(document), index_(index) {}
    JsonValue operator*() const { return {document_, index_}; }
    Iterator& operator++() {
      index_ = document_->nodes_[index_].end;
      return *this;
    }
    bool operator!=(const Iterator& other) const { return index_ != other.index_; }

   private:
    const JsonDocument* document_;
    uint32_t index_;
  };
  Iterator begin() const { return {document_, index_ + 1}; }
  Iterator end() const { return {document_, node().end}; }

 private:
  friend class JsonDocument;
  JsonValue(const JsonDocument* document, uint32_t index) : document_(document), index_(index) {}
  const JsonDocument::Node& node() const { return document_->nodes_[index_]; }
  void DumpTo(std::string& out, size_t most) const;

  const JsonDocument* document_;
  uint32_t index_;
};

// "null", "a number", "an object": for messages.
std::string_view KindName(JsonKind kind);

}  // namespace sluice::engine
