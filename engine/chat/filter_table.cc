#include "engine/chat/filter_table.h"

namespace sluice::engine::chat {

Function FindFilter(std::string_view name) {
  if (const Function filter = FindTextFilter(name)) return filter;
  if (const Function filter = FindSequenceFilter(name)) return filter;
  return FindNumberFilter(name);
}

Function FindMethod(const Value& receiver, std::string_view name) {
  return receiver.is_text() ? FindTextMethod(name) : FindContainerMethod(receiver, name);
}

}  // namespace sluice::engine::chat
