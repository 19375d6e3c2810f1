#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/chat/arguments.h"
#include "engine/chat/filter_table.h"
#include "engine/chat/interpreter.h"

// Methods of dicts, lists, tuples and loops. Those that change their object are missing: Hugging
// Face's sandbox refuses them too.
namespace sluice::engine::chat {
namespace {

using Result = absl::StatusOr<Value>;

Result Get(Interpreter& /*interpreter*/, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("get", arguments, {"key", "default"}, 1));
  if (!arguments.named.empty()) return InvalidArgument("get() takes no keyword arguments");
  if (!Dict::IsHashable(bound[0]) && !bound[0].is_undefined()) {
    return InvalidArgument("unhashable type: '" + std::string(bound[0].TypeName()) + "'");
  }
  if (const Value* value = self.dict().Find(bound[0])) return *value;
  return bound.Has(1) ? bound[1] : Value(None());
}

template <Sequence::Kind kKind>
Result View(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("dict method", arguments, {}).status());
  RETURN_IF_ERROR(interpreter.budget().Items(3 * self.dict().entries.size()));
  std::vector<Value> items;
  for (const auto& [key, value] : self.dict().entries) {
    if (kKind == Sequence::Kind::kKeys) items.push_back(key);
    if (kKind == Sequence::Kind::kValues) items.push_back(value);
    if (kKind == Sequence::Kind::kItems) items.push_back(Value::Tuple({key, value}));
  }
  return Value(std::make_shared<Sequence>(kKind, std::move(items)));
}

Result Copy(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  RETURN_IF_ERROR(BoundArguments::Bind("copy", arguments, {}).status());
  if (self.is_dict()) {
    RETURN_IF_ERROR(interpreter.budget().Items(3 * self.dict().entries.size()));
    return Value(Value::DictPtr(std::make_shared<Dict>(self.dict())));
  }
  RETURN_IF_ERROR(interpreter.budget().Items(self.sequence().items.size()));
  return Value::List(self.sequence().items);
}

Result Index(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("index", arguments, {"value"}, 1));
  const std::vector<Value>& items = self.sequence().items;
  RETURN_IF_ERROR(interpreter.budget().Items(items.size()));
  for (size_t i = 0; i < items.size(); ++i) {
    if (AreEqual(items[i], bound[0])) return Value(static_cast<int64_t>(i));
  }
  return InvalidArgument("the value is not in the list");
}

Result Count(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const auto bound, BoundArguments::Bind("count", arguments, {"value"}, 1));
  RETURN_IF_ERROR(interpreter.budget().Items(self.sequence().items.size()));
  int64_t count = 0;
  for (const Value& item : self.sequence().items) count += AreEqual(item, bound[0]) ? 1 : 0;
  return Value(count);
}

Result Cycle(Interpreter& /*interpreter*/, const Value& self, const Arguments& arguments) {
  if (arguments.positional.empty()) return InvalidArgument("no items for cycling given");
  return arguments.positional[self.loop().index0() % arguments.positional.size()];
}

Result Changed(Interpreter& /*interpreter*/, const Value& self, const Arguments& arguments) {
  return Value(self.loop().Changed(arguments.positional));
}

}  // namespace

Function FindContainerMethod(const Value& receiver, std::string_view name) {
  if (receiver.is_dict()) {
    if (name == "get") return Get;
    if (name == "items") return View<Sequence::Kind::kItems>;
    if (name == "keys") return View<Sequence::Kind::kKeys>;
    if (name == "values") return View<Sequence::Kind::kValues>;
    if (name == "copy") return Copy;
  } else if (receiver.is_sequence() && receiver.sequence().has_index()) {
    if (name == "index") return Index;
    if (name == "count") return Count;
    if (name == "copy" && receiver.sequence().kind == Sequence::Kind::kList) return Copy;
  } else if (receiver.is_loop()) {
    if (name == "cycle") return Cycle;
    if (name == "changed") return Changed;
  }
  return nullptr;
}

}  // namespace sluice::engine::chat
