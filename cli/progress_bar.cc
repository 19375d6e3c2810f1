#include "cli/progress_bar.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

#include "cli/flags.h"

namespace sluice::cli {

ProgressBar::ProgressBar(std::string work)
    : work_(std::move(work)), on_terminal_(isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (!drawn_.empty()) std::fprintf(stderr, "\r\033[K");
}

void ProgressBar::Update(const engine::LoadProgress& progress) {
  if (!on_terminal_) return;
  std::string line = work_ + ": " + std::string(progress.phase);
  if (progress.total > 0) {
    constexpr int kCells = 30;
    const double part = static_cast<double>(progress.done) / static_cast<double>(progress.total);
    const int full = static_cast<int>(part * kCells);
    line += " [" + std::string(full, '=') + std::string(kCells - full, ' ') + "] " +
            std::to_string(static_cast<int>(part * 100)) + " % of " + FormatBytes(progress.total);
  }
  // Progress comes once a tensor piece; the terminal sees it only when the text changes.
  if (line == drawn_) return;
  drawn_ = std::move(line);
  std::fprintf(stderr, "\r\033[K%s", drawn_.c_str());
}

}  // namespace sluice::cli
