#include "kernels/cuda/linear_tuner.h"

#include <algorithm>
#include <set>
#include <utility>

#include "kernels/core/status.h"
#include "kernels/cuda/device.h"

namespace sluice::kernels::cuda {
namespace {

// Below, events and launches cost as much as the product: what is measured is not it.
constexpr double kLeastNanos = 9000.0;
// The estimate errs by less.
constexpr double kMostTimesTheFirst = 1.7;
constexpr size_t kMostWays = 6;

}  // namespace

std::vector<LinearConfig> WaysWorthTrying(std::vector<LinearChoice> choices) {
  std::stable_sort(choices.begin(), choices.end(),
                   [](const LinearChoice& a, const LinearChoice& b) { return a.nanos < b.nanos; });
  std::vector<LinearConfig> ways;
  std::set<std::pair<int32_t, int32_t>> seen;
  for (const LinearChoice& choice : choices) {
    if (!ways.empty() && (choices[0].nanos < kLeastNanos || ways.size() == kMostWays ||
                          choice.nanos > kMostTimesTheFirst * choices[0].nanos)) {
      break;
    }
    if (seen.insert({choice.config.cluster, choice.config.threads}).second) {
      ways.push_back(choice.config);
    }
  }
  return ways;
}

LinearTuner::~LinearTuner() {
  for (const Timing& timing : timings_) {
    cudaEventDestroy(timing.begin);
    cudaEventDestroy(timing.end);
  }
}

LinearTuner::Key LinearTuner::KeyOf(const LinearArgs& args) {
  Key key = {};
  key[0] = OperandGroups(args.num_tokens);
  key[1] = args.gated ? 1 : 0;
  for (int i = 0; i < args.num_tasks; ++i) {
    const PackedView& weight = args.tasks[i].weight;
    int32_t* of_task = &key[2 + 3 * static_cast<size_t>(i)];
    of_task[0] = static_cast<int32_t>(weight.type) + 1;
    of_task[1] = weight.tiles;
    of_task[2] = weight.units;
  }
  return key;
}

absl::Status LinearTuner::Launch(const LinearArgs& args, const LinearDevice& device,
                                 cudaStream_t stream) {
  if (!device.has_wgmma || args.num_tokens > 128) return LaunchLinear(args, device, stream);
  Product& product = products_[KeyOf(args)];
  if (product.ways.empty()) {
    for (const LinearConfig& config : WaysWorthTrying(LinearChoices(args, device.multiprocessors)))
      product.ways.push_back({.config = config});
  }
  if (in_trial_ && !product.decided && product.ways.size() > 1) {
    return LaunchTimed(args, device, stream, product);
  }
  return LaunchLinearAs(args, product.ways[product.chosen].config, device, stream);
}

absl::Status LinearTuner::LaunchTimed(const LinearArgs& args, const LinearDevice& device,
                                      cudaStream_t stream, Product& product) {
  Timing timing = {&product, product.next++ % product.ways.size(), nullptr, nullptr};
  RETURN_IF_ERROR(ToStatus(cudaEventCreate(&timing.begin), "an event"));
  if (const cudaError_t error = cudaEventCreate(&timing.end); error != cudaSuccess) {
    cudaEventDestroy(timing.begin);
    return ToStatus(error, "an event");
  }
  timings_.push_back(timing);
  RETURN_IF_ERROR(ToStatus(cudaEventRecord(timing.begin, stream), "timing a product"));
  RETURN_IF_ERROR(LaunchLinearAs(args, product.ways[timing.way].config, device, stream));
  return ToStatus(cudaEventRecord(timing.end, stream), "timing a product");
}

absl::Status LinearTuner::Learn() {
  absl::Status status = absl::OkStatus();
  for (const Timing& timing : timings_) {
    float ms = 0.0f;
    cudaError_t error = cudaEventSynchronize(timing.end);
    if (error == cudaSuccess) error = cudaEventElapsedTime(&ms, timing.begin, timing.end);
    status.Update(ToStatus(error, "timing a product"));
    Way& way = timing.product->ways[timing.way];
    if (way.samples++ == 0 || ms < way.least_ms) way.least_ms = ms;
    cudaEventDestroy(timing.begin);
    cudaEventDestroy(timing.end);
  }
  timings_.clear();
  RETURN_IF_ERROR(status);
  for (auto& [key, product] : products_) {
    const auto tried = [](const Way& way) { return way.samples > 0; };
    if (product.decided || !std::all_of(product.ways.begin(), product.ways.end(), tried)) continue;
    const auto best =
        std::min_element(product.ways.begin(), product.ways.end(),
                         [](const Way& a, const Way& b) { return a.least_ms < b.least_ms; });
    product.chosen = static_cast<size_t>(best - product.ways.begin());
    product.decided = true;
  }
  return absl::OkStatus();
}

}  // namespace sluice::kernels::cuda
