#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <new>
#include <optional>
#include <string_view>
#include <thread>

#include "engine/base/failpoint.h"
#include "engine/base/mutex.h"
#include "engine/base/status.h"

namespace sluice::engine {
namespace {

constexpr std::array<std::string_view, 6> kNames = {"runner", "logits", "mailbox",
                                                    "accept", "write",  "read"};

enum class Action : uint8_t { kOff, kError, kSleep, kHang, kThrow, kAbort };

struct Setting {
  Action action = Action::kOff;
  std::chrono::milliseconds sleep{0};
  uint64_t first = 1;
  uint64_t times = std::numeric_limits<uint64_t>::max();
  uint64_t passes = 0;  // since it was set
};

// "12" and nothing else.
std::optional<uint64_t> ParseCount(std::string_view text) {
  uint64_t count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return count;
}

// Cuts what follows the last `mark` off `text`. False when it is not a count of 1 at least.
bool TakeCount(char mark, std::string_view* text, uint64_t* count) {
  const size_t at = text->rfind(mark);
  if (at == std::string_view::npos) return true;
  const std::optional<uint64_t> value = ParseCount(text->substr(at + 1));
  if (!value || *value == 0) return false;
  *count = *value;
  *text = text->substr(0, at);
  return true;
}

bool ParseAction(std::string_view text, Setting* setting) {
  constexpr std::string_view kSleep = "sleep:";
  if (text.substr(0, kSleep.size()) == kSleep) {
    const std::optional<uint64_t> count = ParseCount(text.substr(kSleep.size()));
    if (!count || *count > 3'600'000) return false;
    setting->action = Action::kSleep;
    setting->sleep = std::chrono::milliseconds(*count);
    return true;
  }
  constexpr std::pair<std::string_view, Action> kActions[] = {{"off", Action::kOff},
                                                              {"error", Action::kError},
                                                              {"hang", Action::kHang},
                                                              {"throw", Action::kThrow},
                                                              {"abort", Action::kAbort}};
  for (const auto& [name, action] : kActions) {
    if (text != name) continue;
    setting->action = action;
    return true;
  }
  return false;
}

// What is set. Never destroyed: threads pass until the process ends.
class Table {
 public:
  void Set(size_t point, const Setting& setting) {
    MutexLock lock(mutex_);
    settings_[point] = setting;
    ++changes_;
    changed_.NotifyAll();
  }

  bool Pass(size_t point) {
    Setting setting;
    {
      MutexLock lock(mutex_);
      Setting& kept = settings_[point];
      if (kept.action == Action::kOff) return false;
      const uint64_t pass = ++kept.passes;
      if (pass < kept.first || pass - kept.first >= kept.times) return false;
      setting = kept;
      const uint64_t changes = changes_;
      while (setting.action == Action::kHang && changes_ == changes) changed_.Wait(mutex_);
    }
    if (setting.action == Action::kSleep) std::this_thread::sleep_for(setting.sleep);
    if (setting.action == Action::kThrow) throw std::bad_alloc();
    if (setting.action == Action::kAbort) std::abort();
    return setting.action == Action::kError;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  uint64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::array<Setting, kNames.size()> settings_ ABSL_GUARDED_BY(mutex_);
};

Table& TheTable() {
  static Table* const table = new Table;
  return *table;
}

}  // namespace

const bool kFailpointsBuilt = true;

bool Fails(Failpoint point) { return TheTable().Pass(static_cast<size_t>(point)); }

absl::Status SetFailpoint(const std::string& text) {
  const size_t equals = text.find('=');
  const std::string_view name = std::string_view(text).substr(0, equals);
  const auto point = std::find(kNames.begin(), kNames.end(), name);
  if (equals == std::string::npos || point == kNames.end()) {
    std::string names;
    for (const std::string_view known : kNames)
      names.append(names.empty() ? "" : ", ").append(known);
    return InvalidArgument("failpoint: expected NAME=ACTION with a name of " + names);
  }
  std::string_view rest = std::string_view(text).substr(equals + 1);
  Setting setting;
  if (!TakeCount('*', &rest, &setting.times) || !TakeCount('@', &rest, &setting.first) ||
      !ParseAction(rest, &setting)) {
    return InvalidArgument("failpoint " + std::string(name) +
                           ": expected error, sleep:MILLISECONDS (at most 3600000), hang, throw, "
                           "abort or off, then @FIRST and *TIMES if wanted");
  }
  TheTable().Set(static_cast<size_t>(point - kNames.begin()), setting);
  return absl::OkStatus();
}

}  // namespace sluice::engine
