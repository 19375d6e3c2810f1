#pragma once

#include "engine/chat/interpreter.h"

namespace sluice::engine::chat {

class Interpreter::Level {
 public:
  explicit Level(Interpreter& interpreter) : interpreter_(interpreter) { ++interpreter_.depth_; }
  ~Level() { --interpreter_.depth_; }
  Level(const Level&) = delete;
  Level& operator=(const Level&) = delete;

  // Counts a step too.
  absl::Status Check() const {
    const int most = interpreter_.budget_.limits().max_depth;
    if (interpreter_.depth_ <= most) return interpreter_.budget_.Steps(1);
    return ResourceExhausted("expressions and macros are nested deeper than " +
                             std::to_string(most));
  }

 private:
  Interpreter& interpreter_;
};

}  // namespace sluice::engine::chat
