#pragma once

#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/chat/value.h"

namespace sluice::engine::chat {

// The variables of a template, a loop's round, a macro's call or a block. Names belong to the
// syntax tree or the caller of the rendering and outlive it. Not thread-safe.
struct Scope {
  std::shared_ptr<Scope> parent;  // null for the outermost
  std::vector<std::pair<std::string_view, Value>> variables;

  // Here or in the scopes around; null when there is none.
  const Value* Find(std::string_view name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->parent.get()) {
      for (const auto& [key, value] : scope->variables) {
        if (key == name) return &value;
      }
    }
    return nullptr;
  }
  // Here.
  void Set(std::string_view name, Value value) {
    for (auto& [key, old] : variables) {
      if (key != name) continue;
      old = std::move(value);
      return;
    }
    variables.emplace_back(name, std::move(value));
  }
};

}  // namespace sluice::engine::chat
