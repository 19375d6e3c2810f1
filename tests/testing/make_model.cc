// Writes a GGUF file of random weights with the shape and types of a real model: for measuring
// speed where the real file is not at hand. Any program that reads GGUF loads it.
//
//   make_model SHAPE TYPES FILE [--layers N] [--seed N] [--threads N]
//   make_model qwen2.5-7b q4_k_m /dev/shm/7b.gguf

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/status.h"
#include "tests/testing/synthetic_model.h"

namespace sluice::testing {
namespace {

int Usage() {
  std::string types;
  for (const std::string& type : SyntheticTypes()) types += " " + type;
  std::fprintf(
      stderr,
      "usage: make_model SHAPE TYPES FILE [--layers N] [--seed N] [--threads N]\n"
      "  SHAPE: smollm2-135m qwen2.5-0.5b qwen2.5-1.5b qwen2.5-3b qwen2.5-7b\n  TYPES:%s\n",
      types.c_str());
  return 2;
}

int Main(const std::vector<std::string>& words) {
  std::vector<std::string> places;
  int layers = 0, seed = 1;
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i].rfind("--", 0) != 0) {
      places.push_back(words[i]);
      continue;
    }
    int* const value = words[i] == "--layers"    ? &layers
                       : words[i] == "--seed"    ? &seed
                       : words[i] == "--threads" ? &threads
                                                 : nullptr;
    if (value == nullptr || i + 1 == words.size()) return Usage();
    *value = std::atoi(words[++i].c_str());
  }
  if (places.size() != 3) return Usage();
  absl::StatusOr<SyntheticSpec> spec = SyntheticShape(places[0]);
  absl::Status status = spec.status();
  if (status.ok()) {
    spec->types = places[1];
    spec->seed = static_cast<uint64_t>(seed);
    if (layers > 0) spec->layers = layers;
    const auto begin = std::chrono::steady_clock::now();
    const absl::StatusOr<SyntheticReport> report = WriteSyntheticModel(*spec, places[2], threads);
    status = report.status();
    if (status.ok()) {
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      std::printf("%s: %s %s, %.1f MB, %.1f MB read by a step, %.1f s\n", places[2].c_str(),
                  spec->name.c_str(), spec->types.c_str(),
                  static_cast<double>(report->file_bytes) * 1e-6,
                  static_cast<double>(report->step_bytes) * 1e-6, seconds.count());
      return 0;
    }
  }
  std::fprintf(stderr, "make_model: %s\n", engine::Message(status).c_str());
  return 1;
}

}  // namespace
}  // namespace sluice::testing

int main(int argc, char** argv) { return sluice::testing::Main({argv + 1, argv + argc}); }
