#pragma once

#include <string_view>

#include "engine/chat/callable.h"
#include "engine/chat/limits.h"

namespace sluice::engine::chat {

// The filters and tests of Jinja 3, and Hugging Face's `tojson`, by name; null when there is none
// of that name here. A test returns a bool.
Function FindFilter(std::string_view name);
Function FindTest(std::string_view name);
// Methods of text, lists and dicts; null: the type has none of that name.
Function FindMethod(const Value& receiver, std::string_view name);
// Functions that every template can call.
Function FindFunction(std::string_view name);

// The parts of the tables that have a file of their own.
Function FindTextFilter(std::string_view name);
Function FindSequenceFilter(std::string_view name);
Function FindNumberFilter(std::string_view name);
Function FindTextMethod(std::string_view name);
Function FindContainerMethod(const Value& receiver, std::string_view name);

// item.part.part or item[index] for filters that take an attribute, "a.b.0" or a number. Where a
// part is undefined, `otherwise` takes its place unless it is null.
absl::StatusOr<Value> AttributePath(Interpreter& interpreter, const Value& item, const Value& path,
                                    const Value* otherwise);
// Replace, after its cost was counted.
absl::StatusOr<MarkedText> ReplaceWithin(const MarkedText& text, std::string_view old,
                                         const MarkedText& replacement, int64_t most,
                                         Budget& budget);

}  // namespace sluice::engine::chat
