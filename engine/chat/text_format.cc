#include "engine/chat/text_format.h"

#include <algorithm>
#include <charconv>
#include <string>
#include <string_view>
#include <utility>

#include "engine/base/status.h"
#include "engine/chat/interpreter.h"
#include "engine/chat/value_text.h"

namespace sluice::engine::chat {
namespace {

class BraceFormatter {
 public:
  BraceFormatter(const MarkedText& format, const Arguments& arguments, Interpreter& interpreter)
      : format_(format), text_(format.bytes()), arguments_(arguments), interpreter_(interpreter) {}

  absl::StatusOr<MarkedText> Run() {
    while (at_ < text_.size()) {
      const size_t brace = std::min(text_.find_first_of("{}", at_), text_.size());
      out_.Append(format_, at_, brace - at_);
      at_ = brace;
      if (at_ == text_.size()) break;
      if (at_ + 1 < text_.size() && text_[at_ + 1] == text_[at_]) {
        out_.Append(format_, at_, 1);
        at_ += 2;
        continue;
      }
      if (text_[at_] == '}') return InvalidArgument("Single '}' encountered in format string");
      RETURN_IF_ERROR(Field());
      RETURN_IF_ERROR(interpreter_.budget().Text(out_.size()));
    }
    return std::move(out_);
  }

 private:
  absl::Status Field() {
    const size_t close = text_.find('}', at_);
    if (close == std::string_view::npos) {
      return InvalidArgument("expected '}' before end of string");
    }
    std::string_view field = text_.substr(at_ + 1, close - at_ - 1);
    at_ = close + 1;
    if (field.find_first_of(":{") != std::string_view::npos) {
      return Unimplemented("format specifications in str.format are not supported");
    }
    char conversion = 's';
    if (const size_t mark = field.find('!'); mark != std::string_view::npos) {
      if (mark + 2 != field.size()) return InvalidArgument("a bad conversion in a format string");
      conversion = field[mark + 1];
      field = field.substr(0, mark);
    }
    ASSIGN_OR_RETURN(const Value value, Lookup(field));
    if (conversion != 's' && conversion != 'r') {
      return InvalidArgument("an unknown conversion in a format string");
    }
    ASSIGN_OR_RETURN(const MarkedText text, conversion == 'r'
                                                ? ToRepr(value, interpreter_.budget())
                                                : ToText(value, interpreter_.budget()));
    out_.Append(text);
    return absl::OkStatus();
  }

  absl::StatusOr<Value> Lookup(std::string_view field) {
    const size_t name_end = std::min(field.find_first_of(".["), field.size());
    ASSIGN_OR_RETURN(Value value, Argument(field.substr(0, name_end)));
    field = field.substr(name_end);
    while (!field.empty()) {
      if (field[0] == '.') {
        const size_t end = std::min(field.find_first_of(".[", 1), field.size());
        ASSIGN_OR_RETURN(value, interpreter_.AttributeOf(value, field.substr(1, end - 1)));
        field = field.substr(end);
      } else {
        const size_t end = field.find(']');
        if (field[0] != '[' || end == std::string_view::npos) {
          return InvalidArgument("a bad field in a format string");
        }
        const std::string_view key = field.substr(1, end - 1);
        int64_t index = 0;
        const bool is_index = ParseIndex(key, &index);
        ASSIGN_OR_RETURN(value,
                         interpreter_.ItemOrAttribute(
                             value, is_index ? Value(index) : Value::Template(std::string(key))));
        field = field.substr(end + 1);
      }
    }
    return value;
  }

  static bool ParseIndex(std::string_view text, int64_t* index) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *index);
    return !text.empty() && error == std::errc() && end == text.data() + text.size() && *index >= 0;
  }

  absl::StatusOr<Value> Argument(std::string_view name) {
    int64_t index = 0;
    const bool is_numbered = !name.empty() && ParseIndex(name, &index);
    if (name.empty() || is_numbered) {
      const Numbering numbering = name.empty() ? Numbering::kAutomatic : Numbering::kManual;
      if (numbering_ != Numbering::kNone && numbering_ != numbering) {
        return InvalidArgument("a format string mixes automatic and manual field numbering");
      }
      numbering_ = numbering;
      if (name.empty()) index = next_++;
    } else {
      for (const auto& [known, value] : arguments_.named) {
        if (known == name) return value;
      }
      return InvalidArgument("no argument named '" + std::string(name.substr(0, 64)) +
                             "' for a format string");
    }
    if (static_cast<size_t>(index) < arguments_.positional.size()) {
      return arguments_.positional[static_cast<size_t>(index)];
    }
    return InvalidArgument("Replacement index " + std::to_string(index) +
                           " out of range for positional args tuple");
  }

  enum class Numbering : uint8_t { kNone, kAutomatic, kManual };

  const MarkedText& format_;
  const std::string_view text_;
  const Arguments& arguments_;
  Interpreter& interpreter_;
  size_t at_ = 0;
  int64_t next_ = 0;
  Numbering numbering_ = Numbering::kNone;
  MarkedText out_;
};

}  // namespace

absl::StatusOr<MarkedText> FormatBraces(const MarkedText& format, const Arguments& arguments,
                                        Interpreter& interpreter) {
  return BraceFormatter(format, arguments, interpreter).Run();
}

}  // namespace sluice::engine::chat
