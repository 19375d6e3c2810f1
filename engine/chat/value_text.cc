#include "engine/chat/value_text.h"

#include <charconv>
#include <cmath>
#include <cstdio>

#include "engine/base/status.h"
#include "engine/chat/callable.h"
#include "engine/chat/unicode.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::engine::chat {
namespace {

// A string in quotes, with escapes: repr(str).
void AppendQuoted(const MarkedText& text, MarkedText& out) {
  const std::string& bytes = text.bytes();
  const bool has_single = bytes.find('\'') != std::string::npos;
  const char quote = has_single && bytes.find('"') == std::string::npos ? '"' : '\'';
  const std::string_view quotes(&quote, 1);
  out.Append(quotes, kContent);
  for (size_t at = 0; at < bytes.size();) {
    const Utf8Step step = NextUtf8(std::string_view(bytes).substr(at));
    const char32_t c = step.code_point;
    char escape[16] = "";
    if (c == '\\' || c == static_cast<unsigned char>(quote)) {
      std::snprintf(escape, sizeof(escape), "\\%c", static_cast<char>(c));
    } else if (c == '\n' || c == '\r' || c == '\t') {
      std::snprintf(escape, sizeof(escape), "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
    } else if (!IsPrintable(c)) {
      std::snprintf(escape, sizeof(escape),
                    c < 0x100     ? "\\x%02x"
                    : c < 0x10000 ? "\\u%04x"
                                  : "\\U%08x",
                    static_cast<unsigned>(c));
    }
    if (escape[0] != '\0') {
      out.Append(escape, text.MarkAt(at));
    } else {
      out.Append(text, at, step.length);
    }
    at += step.length;
  }
  out.Append(quotes, kContent);
}

class Writer {
 public:
  explicit Writer(Budget& budget) : budget_(budget) {}

  absl::Status Append(const Value& value, bool is_repr) {
    RETURN_IF_ERROR(budget_.Steps(1));
    const size_t size = out_.size() + (value.is_text() ? value.text().size() : 0);
    RETURN_IF_ERROR(budget_.Grow(counted_, size));
    counted_ = size;
    if (value.is_text()) {
      if (is_repr) {
        AppendQuoted(value.text(), out_);
      } else {
        out_.Append(value.text());
      }
      return absl::OkStatus();
    }
    if (value.is_sequence()) return AppendSequence(value.sequence());
    if (value.is_dict()) return AppendDict(value.dict());
    if (value.is_namespace()) return AppendNamespace(value.name_space());
    if (const auto number = value.AsInt(); number && !value.is_bool()) {
      return Add(std::to_string(*number));
    }
    if (value.is_bool()) return Add(value.IsTrue() ? "True" : "False");
    if (value.is_float()) return Add(FloatText(value.as_float()));
    if (value.is_none()) return Add("None");
    if (value.is_undefined()) return Add(is_repr ? "Undefined" : "");
    if (value.is_loop()) return Add("<LoopContext>");
    return Add("<" + std::string(value.TypeName()) + " '" + value.callable().name + "'>");
  }
  MarkedText Take() { return std::move(out_); }

 private:
  void Put(std::string_view bytes) { out_.Append(bytes, kContent); }
  absl::Status Add(std::string_view bytes) {
    Put(bytes);
    return absl::OkStatus();
  }

  absl::Status AppendSequence(const Sequence& sequence) {
    using Kind = Sequence::Kind;
    if (sequence.kind == Kind::kGenerator || sequence.kind == Kind::kRange) {
      return Add(sequence.text);
    }
    const bool is_tuple = sequence.kind == Kind::kTuple;
    if (sequence.kind == Kind::kKeys) Put("dict_keys(");
    if (sequence.kind == Kind::kValues) Put("dict_values(");
    if (sequence.kind == Kind::kItems) Put("dict_items(");
    Put(is_tuple ? "(" : "[");
    for (size_t i = 0; i < sequence.items.size(); ++i) {
      if (i > 0) Put(", ");
      RETURN_IF_ERROR(Append(sequence.items[i], true));
    }
    if (is_tuple && sequence.items.size() == 1) Put(",");
    Put(is_tuple ? ")" : "]");
    return Add(is_tuple || sequence.kind == Kind::kList ? "" : ")");
  }

  absl::Status AppendDict(const Dict& dict) {
    Put("{");
    for (size_t i = 0; i < dict.entries.size(); ++i) {
      if (i > 0) Put(", ");
      RETURN_IF_ERROR(Append(dict.entries[i].first, true));
      Put(": ");
      RETURN_IF_ERROR(Append(dict.entries[i].second, true));
    }
    return Add("}");
  }

  absl::Status AppendNamespace(const Namespace& space) {
    // A namespace may hold itself.
    if (++num_namespaces_ > budget_.limits().max_value_depth) {
      return ResourceExhausted("namespaces in each other are too deep to be rendered");
    }
    Put("<Namespace {");
    for (size_t i = 0; i < space.attributes.size(); ++i) {
      if (i > 0) Put(", ");
      RETURN_IF_ERROR(Append(Value::Content(space.attributes[i].first), true));
      Put(": ");
      RETURN_IF_ERROR(Append(space.attributes[i].second, true));
    }
    --num_namespaces_;
    return Add("}>");
  }

  Budget& budget_;
  MarkedText out_;
  size_t counted_ = 0;  // bytes of `out_` that the budget knows of
  int num_namespaces_ = 0;
};

absl::StatusOr<MarkedText> Write(const Value& value, Budget& budget, bool is_repr) {
  if (value.is_text() && !is_repr) return value.text();
  Writer writer(budget);
  RETURN_IF_ERROR(writer.Append(value, is_repr));
  return writer.Take();
}

}  // namespace

std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char digits[40];
  const auto scientific =
      std::to_chars(digits, digits + sizeof(digits), value, std::chars_format::scientific);
  const std::string_view text(digits, static_cast<size_t>(scientific.ptr - digits));
  const size_t mark = text.find('e');
  int exponent = 0;
  const size_t exponent_begin = mark + (text[mark + 1] == '+' ? 2 : 1);
  std::from_chars(text.data() + exponent_begin, text.data() + text.size(), exponent);
  if (exponent < -4 || exponent >= 16) return std::string(text);
  char plain[40];
  const auto fixed = std::to_chars(plain, plain + sizeof(plain), value, std::chars_format::fixed);
  std::string out(plain, static_cast<size_t>(fixed.ptr - plain));
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

absl::StatusOr<MarkedText> ToText(const Value& value, Budget& budget) {
  return Write(value, budget, false);
}

absl::StatusOr<MarkedText> ToRepr(const Value& value, Budget& budget) {
  return Write(value, budget, true);
}

}  // namespace sluice::engine::chat
