#pragma once

#include <string>

#include "engine/engine.h"

namespace sluice::cli {

// Draws the progress of a long work, such as loading a model, on stderr when that is a terminal, on
// one line that is wiped in the end; draws nothing otherwise. Not thread-safe.
class ProgressBar {
 public:
  explicit ProgressBar(std::string work = "loading");
  ~ProgressBar();  // wipes the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void Update(const engine::LoadProgress& progress);

 private:
  const std::string work_;
  const bool on_terminal_;
  std::string drawn_;
};

}  // namespace sluice::cli
