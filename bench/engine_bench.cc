// Speed of the engine on a model file: prefill of one prompt, decode of one and of several
// sequences, beside what the memory allows. The path is the served one (dispatcher, scheduler,
// runner) without gRPC.
//
//   engine_bench MODEL [--device cuda:0] [--threads N] [--prompt 512] [--tokens 128] [--batches
//   1,2,4,8]
//   [--repetitions 5]
//
// Prints one line a case and, last, one JSON line to be kept in bench/results/.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "bench/machine.h"
#include "engine/canary.h"
#include "engine/engine.h"

namespace {

using sluice::engine::Request;
using sluice::engine::RequestEnd;

struct Arguments {
  std::string model;
  std::string device = "cpu";
  int threads = 0;
  int prompt = 512;
  int tokens = 128;
  int repetitions = 5;
  std::vector<int> batches = {1, 2, 4, 8, 16};
};

Arguments Parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag.rfind("--", 0) != 0) {
      arguments.model = flag;
      continue;
    }
    const char* value = i + 1 < argc ? argv[++i] : "";
    if (flag == "--device") arguments.device = value;
    if (flag == "--threads") arguments.threads = std::atoi(value);
    if (flag == "--prompt") arguments.prompt = std::atoi(value);
    if (flag == "--tokens") arguments.tokens = std::atoi(value);
    if (flag == "--repetitions") arguments.repetitions = std::atoi(value);
    if (flag == "--batches") {
      arguments.batches.clear();
      std::istringstream list(value);
      for (std::string item; std::getline(list, item, ',');)
        arguments.batches.push_back(std::atoi(item.c_str()));
    }
  }
  return arguments;
}

// Runs `batch` equal requests together and returns their ends.
std::vector<RequestEnd> Run(sluice::engine::LoadedModel& model, int batch, int prompt, int tokens) {
  static uint64_t next_handle = 1;
  for (int i = 0; i < batch; ++i) {
    Request request;
    request.handle = {next_handle++};
    request.prompt = sluice::engine::CanaryTokens(model.facts.vocab_size, prompt);
    request.sampling.temperature = 0;
    request.stopping.max_tokens = tokens;
    request.stopping.ignore_eos = true;
    request.output.return_text = false;
    request.arrival = std::chrono::steady_clock::now();
    const absl::Status status = model.dispatcher->Dispatch(std::move(request));
    if (!status.ok()) {
      std::fprintf(stderr, "%s\n", status.ToString().c_str());
      std::exit(1);
    }
  }
  std::vector<RequestEnd> ends;
  while (ends.size() < static_cast<size_t>(batch)) {
    for (const auto& chunk : model.dispatcher->chunks().Take(0)) {
      if (chunk.request_end) ends.push_back(*chunk.request_end);
    }
  }
  return ends;
}

struct Figure {
  std::string name;
  double tokens_per_second = 0;  // median
  double least = 0, most = 0;
};

Figure Summarise(std::string name, std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {std::move(name), values[values.size() / 2], values.front(), values.back()};
}

}  // namespace

int main(int argc, char** argv) {
  const Arguments arguments = Parse(argc, argv);
  if (arguments.model.empty()) {
    std::fprintf(
        stderr,
        "usage: engine_bench MODEL [--threads N] [--prompt N] [--tokens N] [--batches LIST]\n");
    return 2;
  }
  sluice::engine::EngineOptions options;
  options.device = arguments.device;
  options.num_threads = arguments.threads;
  options.max_batch = *std::max_element(arguments.batches.begin(), arguments.batches.end());
  options.max_step_tokens = std::max({512, arguments.prompt, options.max_batch});
  options.max_context = std::max(1024, arguments.prompt + arguments.tokens + 16);
  auto model = sluice::engine::LoadModel(arguments.model, options, 1, nullptr);
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", model.status().ToString().c_str());
    return 1;
  }
  const int threads = arguments.threads > 0 ? arguments.threads
                                            : static_cast<int>(std::thread::hardware_concurrency());
  const double bandwidth = sluice::bench::ReadBandwidth(threads);
  const double limit = bandwidth / static_cast<double>(model->facts.weight_bytes);
  std::printf("%s, %s, %s\n", sluice::bench::MachineName().c_str(), model->facts.backend.c_str(),
              model->facts.file.c_str());
  std::printf("memory reads %.1f GB/s: at most %.0f steps/s with %.1f MB of weights\n",
              bandwidth / 1e9, limit, static_cast<double>(model->facts.weight_bytes) / 1e6);
  const sluice::bench::BusyMeter busy;
  std::vector<Figure> figures;
  Run(*model, 1, 16, 8);  // warm-up
  std::vector<double> values;
  for (int i = 0; i < arguments.repetitions; ++i) {
    values.push_back(arguments.prompt /
                     Run(*model, 1, arguments.prompt, 1)[0].timing.time_to_first_token_seconds);
  }
  figures.push_back(Summarise("pp" + std::to_string(arguments.prompt), values));
  for (int batch : arguments.batches) {
    values.clear();
    for (int i = 0; i < arguments.repetitions; ++i) {
      double longest = 0;
      for (const RequestEnd& end : Run(*model, batch, 1, arguments.tokens + 1)) {
        longest = std::max(longest, end.timing.decode_seconds);
      }
      values.push_back(batch * arguments.tokens / longest);
    }
    figures.push_back(
        Summarise("tg" + std::to_string(arguments.tokens) + " b" + std::to_string(batch), values));
  }
  std::string json;
  for (const Figure& figure : figures) {
    std::printf("%-12s %9.1f tok/s  (%.1f to %.1f)\n", figure.name.c_str(),
                figure.tokens_per_second, figure.least, figure.most);
    char item[128];
    std::snprintf(item, sizeof item, "%s\"%s\": %.1f", json.empty() ? "" : ", ",
                  figure.name.c_str(), figure.tokens_per_second);
    json += item;
  }
  const double others = busy.OthersShare();
  std::printf("others used %.1f %% of the machine%s\n", 100 * others,
              others > sluice::bench::kBusyLimit ? ": too much to record these figures" : "");
  if (others <= sluice::bench::kBusyLimit) {
    std::printf(
        "{\"machine\": \"%s\", \"backend\": \"%s\", \"model\": \"%s\", \"read_gb_s\": %.1f, %s}\n",
        sluice::bench::MachineName().c_str(), model->facts.backend.c_str(),
        model->facts.file.c_str(), bandwidth / 1e9, json.c_str());
  }
  model->dispatcher->Shutdown();
  return 0;
}
