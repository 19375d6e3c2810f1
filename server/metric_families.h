#pragma once

#include <string>
#include <utility>
#include <vector>

#include "prometheus/metric_family.h"

#include "engine/stats.h"

namespace sluice::server {

using Labels = std::vector<std::pair<std::string, std::string>>;

// Builds metric families in the order in which their names come first.
class MetricFamilies {
 public:
  void Gauge(const std::string& name, const std::string& help, const Labels& labels, double value);
  void Counter(const std::string& name, const std::string& help, const Labels& labels,
               double value);
  void Histogram(const std::string& name, const std::string& help, const Labels& labels,
                 const engine::StatHistogram::Snapshot& snapshot);

  std::vector<prometheus::MetricFamily> Take() { return std::move(families_); }

 private:
  prometheus::ClientMetric& Add(prometheus::MetricType type, const std::string& name,
                                const std::string& help, const Labels& labels);

  std::vector<prometheus::MetricFamily> families_;
};

}  // namespace sluice::server
