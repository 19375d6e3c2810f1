#include "server/stream_limits.h"

#include <algorithm>
#include <utility>

namespace sluice::server {

std::vector<StreamLimits::Verdict> StreamLimits::Judge(const std::vector<StreamCount>& counts,
                                                       engine::Time now) {
  std::vector<Verdict> verdicts;
  std::map<int64_t, Connection> open;
  std::vector<const StreamCount*> greedy;
  int64_t excess = 0;
  const auto condemn = [&](const StreamCount& count, ConnectionTable::Fault fault) {
    open[count.id].condemned = true;
    verdicts.push_back({count, fault});
  };
  for (const StreamCount& count : counts) {
    const auto known = connections_.find(count.id);
    Connection& connection = open[count.id];
    connection = known == connections_.end() ? Connection{.seen = now} : known->second;
    if (connection.condemned) continue;
    const double earned = engine::Seconds(now - connection.seen) * kBrokenPerSecond;
    const auto spent = static_cast<double>(count.broken - connection.broken);
    connection.credit = std::min(kBrokenAtOnce, connection.credit + earned) - spent;
    connection.seen = now;
    connection.broken = count.broken;
    if (connection.credit < 0) {
      condemn(count, ConnectionTable::Fault::kBrokenOff);
    } else if (count.held() > kOpenStreams) {
      greedy.push_back(&count);
      excess += count.held() - kOpenStreams;
    }
  }
  std::sort(greedy.begin(), greedy.end(),
            [](const auto* a, const auto* b) { return a->held() > b->held(); });
  for (const StreamCount* count : greedy) {
    const int64_t own = count->held() - kOpenStreams;
    if (own <= kMostExcess && excess <= kMostExcessOfAll) break;
    condemn(*count, ConnectionTable::Fault::kHeld);
    excess -= own;
  }
  connections_ = std::move(open);  // those that are closed are forgotten
  return verdicts;
}

}  // namespace sluice::server
