#include "tests/sim/scenario.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "tests/sim/random.h"

namespace sluice::sim {
namespace {

using std::chrono::hours;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

enum class Arrivals : uint8_t { kPoisson, kBursts, kAllAtOnce, kOneByOne };

engine::Duration Exponential(Random& random, engine::Duration mean) {
  return engine::Duration(
      static_cast<int64_t>(-std::log(random.Unit()) * static_cast<double>(mean.count())));
}

Features MakeFeatures(Random& random) {
  Features f;
  f.cancels = random.OneIn(2);
  f.stop_reads = random.OneIn(2);
  f.deadlines = random.OneIn(3);
  f.queue_timeouts = random.OneIn(3);
  f.max_times = random.OneIn(4);
  f.nonfinite = random.OneIn(6);
  f.step_failure = random.OneIn(12);
  f.jumps = random.OneIn(5);
  f.hangs = random.OneIn(6);
  f.drain = random.OneIn(8);
  f.shutdown = random.OneIn(10);
  f.flushes = random.OneIn(5);
  f.tenants = random.OneIn(2);
  f.limits = random.OneIn(4);
  f.priorities = random.OneIn(3);
  f.siblings = random.OneIn(3);
  f.shared_prompts = random.OneIn(2);
  f.salts = random.OneIn(3);
  f.bypasses = random.OneIn(4);
  f.scores = random.OneIn(5);
  f.progress = random.OneIn(4);
  f.text = random.OneIn(8);
  f.intervals = random.OneIn(4);
  f.impossible = random.OneIn(4);
  return f;
}

engine::SchedulerLimits MakeLimits(Random& random) {
  engine::SchedulerLimits limits;
  limits.depth = random.Between(0, 1);
  const int kind = random.Between(0, 11);
  const int pages = kind < 3    ? random.Between(1, 4)
                    : kind < 8  ? random.Between(5, 64)
                    : kind < 11 ? random.Between(65, 512)
                                : random.Between(513, 4096);
  limits.num_pages = pages + 1;
  limits.max_batch = random.OneIn(4) ? 1 : random.Between(2, random.OneIn(3) ? 64 : 12);
  limits.max_step_tokens = random.OneIn(4) ? random.Between(1, 8) : random.Between(9, 512);
  limits.max_context =
      random.OneIn(6) ? random.Between(2, 40) : random.Between(32, random.OneIn(4) ? 4096 : 600);
  limits.max_queue = random.OneIn(4) ? random.Between(1, 8) : random.Between(9, 256);
  limits.prefix_cache = !random.OneIn(5);
  return limits;
}

// Limits that some calls meet and others do not.
std::string MakePolicy(Random& random, const Scenario& scenario) {
  if (!scenario.features.tenants) return "{}";
  std::string text = R"({"tenants": {)";
  for (int tenant = 0; tenant < scenario.num_tenants; ++tenant) {
    text += tenant == 0 ? "" : ", ";
    text += "\"t" + std::to_string(tenant) + R"(": {"weight": )" +
            std::to_string(random.OneIn(2) ? 1 : random.Between(1, 9));
    if (scenario.features.limits) {
      if (random.OneIn(2))
        text += R"(, "max_concurrent": )" + std::to_string(random.Between(0, 12));
      if (random.OneIn(3)) {
        text += R"(, "tokens_per_second": )" + std::to_string(random.Between(1, 20000));
        if (random.OneIn(2)) text += R"(, "burst_tokens": )" + std::to_string(random.Zipf(5000));
      }
      if (random.OneIn(3)) text += R"(, "kv_share": 0.)" + std::to_string(random.Between(1, 9));
    }
    text += "}";
  }
  return text + "}}";
}

Event::Kind MakeKind(Random& random, const Features& f) {
  if (f.cancels && random.OneIn(8)) return Event::Kind::kCancel;
  if (f.stop_reads && random.OneIn(8)) return Event::Kind::kStopRead;
  if (f.stop_reads && random.OneIn(10)) return Event::Kind::kRead;
  if (f.stop_reads && random.OneIn(60)) return Event::Kind::kReadAll;
  if (f.jumps && random.OneIn(40)) return Event::Kind::kJump;
  if (f.hangs && random.OneIn(40)) return Event::Kind::kHang;
  if (f.flushes && random.OneIn(30)) return Event::Kind::kFlush;
  if (f.limits && random.OneIn(60)) return Event::Kind::kMemory;
  if (f.tenants && random.OneIn(60)) return Event::Kind::kSetPolicy;
  return Event::Kind::kSubmit;
}

}  // namespace

int Random::Zipf(int most) {
  return std::min(most, static_cast<int>(std::pow(static_cast<double>(most) + 1, 1 - Unit())));
}

const char* Name(Event::Kind kind) {
  static constexpr const char* kNames[] = {"submit",   "cancel",     "stop read", "read",
                                           "read all", "jump",       "hang",      "flush",
                                           "memory",   "set policy", "drain",     "shutdown"};
  return kNames[static_cast<size_t>(kind)];
}

Scenario Scenario::Make(uint64_t seed, size_t num_events) {
  Random random(Mix(seed, 1));
  Scenario s;
  s.seed = seed;
  s.features = MakeFeatures(random);
  s.limits = MakeLimits(random);
  s.lengths = static_cast<Lengths>(random.Between(0, 4));
  if (s.lengths == Lengths::kGrowing) {
    s.limits.num_pages = random.Between(4, 40) + 1;
    s.limits.max_batch = random.Between(2, 16);
    s.limits.max_context = random.Between(100, 600);
  }
  // Long calls make long simulations; most seeds are to be short.
  if (s.lengths == Lengths::kPool && s.limits.num_pages > 130 && !random.OneIn(8))
    s.lengths = Lengths::kZipf;
  s.step_time = microseconds(random.OneIn(3) ? random.Between(10, 200) : random.Between(200, 9000));
  if (s.features.step_failure) s.fail_at = static_cast<uint64_t>(random.Zipf(3000));
  s.num_tenants = s.features.tenants ? random.Between(2, 6) : 1;
  if (s.features.limits) {
    if (random.OneIn(2)) s.bounds.max_waiting_tokens = random.Between(1, 5000);
    if (random.OneIn(2)) s.bounds.max_waiting_bytes = random.Between(1, 20000);
  }
  for (std::string& policy : s.policies) policy = MakePolicy(random, s);
  s.reader_tokens = random.OneIn(3) ? 0 : random.Zipf(64);
  s.stall_timeout = milliseconds(random.OneIn(2) ? 30000 : random.Between(1, 2000));
  s.mailbox_lanes = random.Between(1, 3);

  const auto arrivals = static_cast<Arrivals>(random.Between(0, 3));
  // From an engine that is mostly idle to one that is always full.
  const auto mean_gap = engine::Duration(static_cast<int64_t>(
      static_cast<double>(s.step_time.count()) * std::pow(10.0, random.Unit() * 3 - 1)));
  const int most = random.OneIn(8) ? random.Between(1, 12) : random.Between(20, 300);
  const size_t count = static_cast<size_t>(most);
  const int end_at = random.Between(0, most);  // drain and shutdown
  std::vector<uint32_t> calls;
  s.events.reserve(count);
  for (uint32_t id = 0; id < count; ++id) {
    Event event;
    event.id = id;
    event.random = random.Next();
    event.kind = MakeKind(random, s.features);
    if (static_cast<int>(id) == end_at && s.features.drain) event.kind = Event::Kind::kDrain;
    if (static_cast<int>(id) == end_at + 5 && s.features.shutdown)
      event.kind = Event::Kind::kShutdown;
    const bool aims = event.kind == Event::Kind::kCancel || event.kind == Event::Kind::kStopRead ||
                      event.kind == Event::Kind::kRead;
    if (aims && calls.empty()) event.kind = Event::Kind::kSubmit;
    if (aims && !calls.empty()) {
      // Mostly of the last few: older ones have ended.
      const auto back = std::min(calls.size(), static_cast<size_t>(random.Zipf(64)));
      event.target = calls[calls.size() - back];
    }
    if (event.kind == Event::Kind::kSubmit) calls.push_back(id);
    switch (arrivals) {
      case Arrivals::kPoisson:
        event.gap = Exponential(random, mean_gap);
        break;
      case Arrivals::kBursts:
        if (random.OneIn(16)) event.gap = Exponential(random, mean_gap * 16);
        break;
      case Arrivals::kAllAtOnce:
        if (id == count / 2) event.gap = mean_gap * 50;
        break;
      case Arrivals::kOneByOne:
        event.gap = random.OneIn(3) ? engine::Duration{} : s.step_time * random.Between(1, 40);
        break;
    }
    if (s.events.size() < num_events) s.events.push_back(event);
  }
  s.thorough = random.OneIn(8);
  s.features.resumes = random.OneIn(4);
  s.features.late_reader = random.OneIn(4);
  return s;
}

}  // namespace sluice::sim
