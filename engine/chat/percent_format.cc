#include "engine/chat/percent_format.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "engine/base/status.h"
#include "engine/chat/operators.h"
#include "engine/chat/unicode.h"
#include "engine/chat/value_text.h"

namespace sluice::engine::chat {
namespace {

// One conversion, "%-8.3f".
struct Conversion {
  std::string flags;
  size_t width = 0;
  int precision = -1;
  char type = 0;

  bool Has(char flag) const { return flags.find(flag) != std::string::npos; }
};

class Formatter {
 public:
  Formatter(const MarkedText& format, const Value& values, Budget& budget)
      : format_(format), text_(format.bytes()), values_(values), budget_(budget) {}

  absl::StatusOr<MarkedText> Run() {
    while (at_ < text_.size()) {
      const size_t percent = std::min(text_.find('%', at_), text_.size());
      out_.Append(format_, at_, percent - at_);
      at_ = percent;
      if (at_ < text_.size()) RETURN_IF_ERROR(Convert());
      RETURN_IF_ERROR(budget_.Text(out_.size()));
    }
    const bool is_tuple =
        values_.is_sequence() && values_.sequence().kind == Sequence::Kind::kTuple;
    const size_t num_values = is_tuple ? values_.sequence().items.size() : 1;
    const bool may_be_left = values_.is_dict() || (values_.is_sequence() && !is_tuple);
    if (num_used_ < num_values && !may_be_left) {
      return InvalidArgument("not all arguments converted during string formatting");
    }
    return std::move(out_);
  }

 private:
  absl::StatusOr<Value> Next() {
    if (key_) {
      if (!values_.is_dict()) return InvalidArgument("format requires a mapping");
      const Value* value = values_.dict().Find(*key_);
      if (value == nullptr) return InvalidArgument("no such key in the values of a format");
      num_used_ = 1;
      return *value;
    }
    const size_t index = num_used_++;
    if (values_.is_sequence() && values_.sequence().kind == Sequence::Kind::kTuple) {
      if (index < values_.sequence().items.size()) return values_.sequence().items[index];
    } else if (index == 0) {
      return values_;
    }
    return InvalidArgument("not enough arguments for format string");
  }

  absl::Status Number(size_t* out) {
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      *out = *out * 10 + static_cast<size_t>(text_[at_++] - '0');
      if (*out > 100'000) return InvalidArgument("a width in a format is too large");
    }
    return absl::OkStatus();
  }

  absl::Status Convert() {
    const size_t begin = at_++;
    Conversion how;
    key_.reset();
    if (at_ < text_.size() && text_[at_] == '(') {
      const size_t close = text_.find(')', at_);
      if (close == std::string_view::npos) return InvalidArgument("incomplete format key");
      key_ = std::string(text_.substr(at_ + 1, close - at_ - 1));
      at_ = close + 1;
    }
    while (at_ < text_.size() && std::string_view("-+ #0").find(text_[at_]) != std::string::npos) {
      how.flags += text_[at_++];
    }
    RETURN_IF_ERROR(Number(&how.width));
    if (at_ < text_.size() && text_[at_] == '.') {
      ++at_;
      size_t precision = 0;
      RETURN_IF_ERROR(Number(&precision));
      how.precision = static_cast<int>(std::min<size_t>(precision, 100'000));
    }
    if (at_ >= text_.size()) return InvalidArgument("incomplete format");
    how.type = text_[at_++];
    if (how.type == '%') {
      out_.Append(format_, begin, 1);
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const Value value, Next());
    ASSIGN_OR_RETURN(MarkedText converted, One(how, value));
    Pad(how, converted);
    return absl::OkStatus();
  }

  absl::StatusOr<MarkedText> One(const Conversion& how, const Value& value) {
    if (how.type == 's' || how.type == 'r') {
      ASSIGN_OR_RETURN(MarkedText text,
                       how.type == 's' ? ToText(value, budget_) : ToRepr(value, budget_));
      const CodePoints points(text.bytes());
      if (how.precision < 0 || points.values.size() <= static_cast<size_t>(how.precision)) {
        return text;
      }
      return text.Substr(0, points.offsets[static_cast<size_t>(how.precision)]);
    }
    if (value.is_undefined()) return UndefinedError(value);
    if (!value.is_number()) {
      return InvalidArgument(std::string("%") + how.type + " format: a number is required, not " +
                             std::string(value.TypeName()));
    }
    return Numeric(how, value);
  }

  absl::StatusOr<MarkedText> Numeric(const Conversion& how, const Value& value) {
    std::string format = "%" + how.flags;
    std::erase(format, '-');
    if (how.Has('0') && !how.Has('-') && how.width > 0) format += std::to_string(how.width);
    if (how.precision >= 0) format += "." + std::to_string(std::min(how.precision, 1000));
    char buffer[2048];
    int size = 0;
    switch (how.type) {
      case 'd':
      case 'i':
      case 'u':
      case 'x':
      case 'X':
      case 'o': {
        auto number = value.AsInt();
        const bool is_decimal = how.type == 'd' || how.type == 'i' || how.type == 'u';
        if (!number && is_decimal && std::abs(value.as_float()) < 9e18) {
          number = static_cast<int64_t>(value.as_float());
        }
        if (!number) return InvalidArgument("a format needs an integer");
        if (!is_decimal && *number < 0) return InvalidArgument("a format of a negative number");
        format += std::string("l") + (is_decimal ? 'd' : how.type);
        size = std::snprintf(buffer, sizeof(buffer), format.c_str(), *number);
        break;
      }
      case 'f':
      case 'F':
      case 'e':
      case 'E':
      case 'g':
      case 'G':
        format += how.type;
        size = std::snprintf(buffer, sizeof(buffer), format.c_str(), *value.AsDouble());
        break;
      default:
        return InvalidArgument(std::string("unsupported format character '") + how.type + "'");
    }
    if (size < 0 || static_cast<size_t>(size) >= sizeof(buffer)) {
      return InvalidArgument("a number in a format is too long");
    }
    return MarkedText(std::string(buffer, static_cast<size_t>(size)), kContent);
  }

  void Pad(const Conversion& how, const MarkedText& text) {
    const size_t length = CountCodePoints(text.bytes());
    const std::string spaces(how.width > length ? how.width - length : 0, ' ');
    if (!how.Has('-')) out_.Append(spaces, kContent);
    out_.Append(text);
    if (how.Has('-')) out_.Append(spaces, kContent);
  }

  const MarkedText& format_;
  const std::string_view text_;
  const Value& values_;
  Budget& budget_;
  size_t at_ = 0;
  size_t num_used_ = 0;
  std::optional<std::string> key_;
  MarkedText out_;
};

}  // namespace

absl::StatusOr<MarkedText> FormatPercent(const MarkedText& format, const Value& values,
                                         Budget& budget) {
  return Formatter(format, values, budget).Run();
}

}  // namespace sluice::engine::chat
