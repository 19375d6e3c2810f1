#include "server/metric_families.h"

#include <algorithm>

namespace sluice::server {

prometheus::ClientMetric& MetricFamilies::Add(prometheus::MetricType type, const std::string& name,
                                              const std::string& help, const Labels& labels) {
  auto family = std::find_if(families_.begin(), families_.end(),
                             [&](const auto& candidate) { return candidate.name == name; });
  if (family == families_.end()) {
    families_.push_back({name, help, type, {}});
    family = families_.end() - 1;
  }
  prometheus::ClientMetric& metric = family->metric.emplace_back();
  for (const auto& [label, value] : labels) metric.label.push_back({label, value});
  return metric;
}

void MetricFamilies::Gauge(const std::string& name, const std::string& help, const Labels& labels,
                           double value) {
  Add(prometheus::MetricType::Gauge, name, help, labels).gauge.value = value;
}

void MetricFamilies::Counter(const std::string& name, const std::string& help, const Labels& labels,
                             double value) {
  Add(prometheus::MetricType::Counter, name, help, labels).counter.value = value;
}

void MetricFamilies::Histogram(const std::string& name, const std::string& help,
                               const Labels& labels,
                               const engine::StatHistogram::Snapshot& snapshot) {
  auto& out = Add(prometheus::MetricType::Histogram, name, help, labels).histogram;
  uint64_t cumulative = 0;
  for (size_t i = 0; i < snapshot.counts.size(); ++i) {
    cumulative += snapshot.counts[i];
    if (i < snapshot.upper_bounds.size()) {
      out.bucket.push_back({cumulative, snapshot.upper_bounds[i]});
    }
  }
  out.sample_count = cumulative;  // the writer prints it as the +Inf bucket
  out.sample_sum = snapshot.sum;
}

}  // namespace sluice::server
