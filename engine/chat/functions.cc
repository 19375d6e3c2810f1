#include <algorithm>
#include <ctime>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/chat/arguments.h"
#include "engine/chat/filter_table.h"
#include "engine/chat/interpreter.h"
#include "engine/chat/value_text.h"
#include "engine/tokenizer/utf8.h"

// Functions of every template: Jinja's, and those that Hugging Face adds.
namespace sluice::engine::chat {
namespace {

using Result = absl::StatusOr<Value>;

Result Range(Interpreter& interpreter, const Value& /*self*/, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("range", arguments, {"start", "stop", "step"}, 1));
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    if (bound[i].is_undefined()) return UndefinedError(bound[i]);
    if (!bound[i].AsInt()) return InvalidArgument("range() needs integers");
  }
  int64_t start = *bound[0].AsInt(), stop = 0, step = 1;
  if (bound.Has(1)) {
    ASSIGN_OR_RETURN(stop, bound.Int(1, 0));
    ASSIGN_OR_RETURN(step, bound.Int(2, 1));
  } else {
    std::swap(start, stop);
  }
  if (step == 0) return InvalidArgument("range() arg 3 must not be zero");
  // Exact beyond 64 bits.
  const auto distance =
      step > 0 ? static_cast<__int128>(stop) - start : static_cast<__int128>(start) - stop;
  const auto stride = step > 0 ? static_cast<__int128>(step) : -static_cast<__int128>(step);
  const __int128 count = distance <= 0 ? 0 : (distance + stride - 1) / stride;
  const int64_t most = interpreter.budget().limits().max_range;
  if (count > most) {
    return ResourceExhausted("a range of more than " + std::to_string(most) + " items");
  }
  RETURN_IF_ERROR(interpreter.budget().Items(static_cast<size_t>(count)));
  std::vector<Value> items;
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) items.emplace_back(start + i * step);
  auto range = std::make_shared<Sequence>(Sequence::Kind::kRange, std::move(items));
  range->text = "range(" + std::to_string(start) + ", " + std::to_string(stop) +
                (step == 1 ? "" : ", " + std::to_string(step)) + ")";
  return Value(std::move(range));
}

// Of dict() and namespace(): another dict, and names.
absl::Status CheckOneMapping(std::string_view function, const Arguments& arguments) {
  if (arguments.positional.empty()) return absl::OkStatus();
  if (arguments.positional.size() == 1 && arguments.positional[0].is_dict()) {
    return absl::OkStatus();
  }
  return InvalidArgument(std::string(function) + "() takes one mapping and keyword arguments");
}

Result MakeDict(Interpreter& interpreter, const Value& /*self*/, const Arguments& arguments) {
  RETURN_IF_ERROR(CheckOneMapping("dict", arguments));
  auto dict = arguments.positional.empty() ? std::make_shared<Dict>()
                                           : std::make_shared<Dict>(arguments.positional[0].dict());
  RETURN_IF_ERROR(interpreter.budget().Items(3 * (dict->entries.size() + 1)));
  for (const auto& [name, value] : arguments.named) dict->Set(Value::Template(name), value);
  return Value(Value::DictPtr(std::move(dict)));
}

Result MakeNamespace(Interpreter& interpreter, const Value& /*self*/, const Arguments& arguments) {
  RETURN_IF_ERROR(CheckOneMapping("namespace", arguments));
  RETURN_IF_ERROR(interpreter.budget().Items(8));
  Namespace* const space = interpreter.NewNamespace();
  if (!arguments.positional.empty()) {
    for (const auto& [key, value] : arguments.positional[0].dict().entries) {
      if (key.is_text()) space->Set(key.bytes(), value);
    }
  }
  for (const auto& [name, value] : arguments.named) space->Set(name, value);
  return Value(space);
}

// What a template says is shown, but no more of what others wrote than an error may echo.
Result RaiseException(Interpreter& interpreter, const Value& /*self*/, const Arguments& arguments) {
  constexpr size_t kMostContent = 64, kMost = 512;
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("raise_exception", arguments, {"message"}, 1));
  ASSIGN_OR_RETURN(const MarkedText text, ToText(bound[0], interpreter.budget()));
  std::string message;
  size_t content_left = kMostContent;
  const auto append = [&message](std::string_view bytes, size_t most) {
    size_t size = std::min(bytes.size(), most);
    while (size < bytes.size() && size > 0 && (static_cast<uint8_t>(bytes[size]) & 0xC0) == 0x80) {
      --size;
    }
    message += bytes.substr(0, size);
    if (size < bytes.size()) message += "...";
    return size;
  };
  for (const MarkedText::Run& run : text.Runs()) {
    if (message.size() >= kMost) break;
    const std::string_view bytes =
        std::string_view(text.bytes()).substr(run.begin, run.end - run.begin);
    if (run.mark == MarkedText::Mark::kContent) {
      content_left -= append(bytes, content_left);
    } else {
      append(bytes, kMost - message.size());
    }
  }
  return InvalidArgument(message);
}

Result StrftimeNow(Interpreter& interpreter, const Value& /*self*/, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound,
                   BoundArguments::Bind("strftime_now", arguments, {"format"}, 1));
  ASSIGN_OR_RETURN(const MarkedText* format, bound.Text(0));
  if (format->size() > 256) return InvalidArgument("strftime_now: the format is too long");
  const std::time_t now = interpreter.now();
  std::tm parts = {};
  localtime_r(&now, &parts);
  char text[4096];
  // An empty result and one that is too long look alike, so that it never is empty.
  const std::string marked = format->bytes() + "|";
  const size_t size = std::strftime(text, sizeof(text), marked.c_str(), &parts);
  if (size == 0) return InvalidArgument("strftime_now: the text is too long");
  std::string out(text, size - 1);
  if (FindInvalidUtf8(out) != std::string_view::npos) {
    return InvalidArgument("strftime_now: the text is not valid UTF-8");
  }
  return Value::Content(std::move(out));
}

}  // namespace

Function FindFunction(std::string_view name) {
  static constexpr std::pair<std::string_view, Function> kFunctions[] = {
      {"range", Range},
      {"dict", MakeDict},
      {"namespace", MakeNamespace},
      {"raise_exception", RaiseException},
      {"strftime_now", StrftimeNow}};
  for (const auto& [known, function] : kFunctions) {
    if (known == name) return function;
  }
  return nullptr;
}

}  // namespace sluice::engine::chat
