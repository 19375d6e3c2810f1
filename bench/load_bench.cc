// Time until a model is ready, self-check and KV cache included, and where it went.
//
//   load_bench MODEL [--device cuda:0] [--repetitions 3]
//
// The first load of a process includes what a device's context takes. Weights are read from the
// page cache when they lie there: run it twice. Prints one line a load and, last, one JSON line to
// be kept in bench/results/.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/engine.h"

int main(int argc, char** argv) {
  using sluice::engine::EngineOptions;
  std::string path;
  int repetitions = 3;
  EngineOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind("--", 0) != 0) {
      path = word;
      continue;
    }
    const char* value = i + 1 < argc ? argv[++i] : "";
    if (word == "--device") options.device = value;
    if (word == "--repetitions") repetitions = std::atoi(value);
  }
  if (path.empty()) {
    std::fprintf(stderr, "usage: load_bench MODEL [--device cuda:0] [--repetitions 3]\n");
    return 2;
  }
  std::string seconds_list, backend, file;
  unsigned long long weight_bytes = 0;
  for (int i = 0; i < repetitions; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const auto model = sluice::engine::LoadModel(path, options, 1, nullptr);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    if (!model.ok()) {
      std::fprintf(stderr, "load_bench: %s\n", model.status().ToString().c_str());
      return 1;
    }
    backend = model->facts.backend;
    file = model->facts.file;
    weight_bytes = model->facts.weight_bytes;
    std::printf("load %d: %.2f s, weights of %.2f GB, %s\n", i + 1, seconds.count(),
                static_cast<double>(weight_bytes) * 1e-9, model->self_check.message.c_str());
    for (const std::string& note : model->notes) std::printf("  %s\n", note.c_str());
    std::fflush(stdout);
    char text[32];
    std::snprintf(text, sizeof text, "%s%.3f", i == 0 ? "" : ", ", seconds.count());
    seconds_list += text;
  }
  std::printf(
      "{\"bench\": \"load\", \"file\": \"%s\", \"backend\": \"%s\", \"weight_bytes\": %llu, "
      "\"ready_seconds\": [%s]}\n",
      file.c_str(), backend.c_str(), weight_bytes, seconds_list.c_str());
  return 0;
}
