#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cctype>
#include <chrono>
#include <ctime>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "tests/server/test_server.h"

namespace sluice::server {
namespace {

// The body of an HTTP GET from the loopback.
std::string Get(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
    const std::string request =
        "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
    char buffer[4096];
    for (ssize_t n = 0; (n = read(fd, buffer, sizeof buffer)) > 0;) {
      answer.append(buffer, static_cast<size_t>(n));
    }
  }
  close(fd);
  const size_t body = answer.find("\r\n\r\n");
  return body == std::string::npos ? "" : answer.substr(body + 4);
}

// A scrape in the Prometheus text format: types and help texts by name, values by series.
struct Scrape {
  std::map<std::string, std::string> types, helps;
  std::map<std::string, double> values;
};

Scrape Parse(const std::string& text) {
  Scrape scrape;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash, kind, name, rest;
    if (line.rfind("# ", 0) == 0) {
      words >> hash >> kind >> name;
      std::getline(words, rest);
      auto& into = kind == "TYPE" ? scrape.types : scrape.helps;
      EXPECT_TRUE(into.emplace(name, rest).second) << "twice: " << line;
      continue;
    }
    const size_t space = line.rfind(' ');
    if (space == std::string::npos) {
      ADD_FAILURE() << "not a sample: " << line;
      continue;
    }
    const std::string series = line.substr(0, space);
    EXPECT_TRUE(scrape.values.emplace(series, std::stod(line.substr(space + 1))).second)
        << "twice: " << series;
  }
  return scrape;
}

const std::set<std::string>& ExpectedNames() {
  static const std::set<std::string> kNames = {"sluice_requests_running",
                                               "sluice_requests_waiting",
                                               "sluice_kv_pages",
                                               "sluice_kv_usage_ratio",
                                               "sluice_engine_up",
                                               "sluice_engine_last_step_age_seconds",
                                               "sluice_draining",
                                               "sluice_open_streams",
                                               "sluice_startup_seconds",
                                               "sluice_selfcheck_error",
                                               "sluice_selfcheck_tolerance",
                                               "sluice_selfcheck_passed",
                                               "sluice_build_info",
                                               "sluice_log_lines_dropped_total",
                                               "process_cpu_seconds_total",
                                               "process_resident_memory_bytes",
                                               "process_virtual_memory_bytes",
                                               "process_open_fds",
                                               "process_max_fds",
                                               "process_start_time_seconds",
                                               "sluice_leaked_pages",
                                               "sluice_requests_total",
                                               "sluice_rejected_total",
                                               "sluice_cancelled_total",
                                               "sluice_prompt_tokens_total",
                                               "sluice_generation_tokens_total",
                                               "sluice_preemptions_total",
                                               "sluice_prefix_cache_queries_tokens_total",
                                               "sluice_prefix_cache_hits_tokens_total",
                                               "vllm:prefix_cache_queries_total",
                                               "vllm:prefix_cache_hits_total",
                                               "sluice_recomputed_tokens_total",
                                               "sluice_nonfinite_logits_total",
                                               "sluice_time_to_first_token_seconds",
                                               "sluice_inter_token_latency_seconds",
                                               "sluice_request_duration_seconds",
                                               "sluice_queue_time_seconds",
                                               "sluice_step_duration_seconds",
                                               "sluice_step_host_gap_seconds",
                                               "sluice_step_tokens",
                                               "sluice_batch_rows",
                                               "sluice_cancel_to_free_seconds",
                                               "vllm:num_requests_running",
                                               "vllm:num_requests_waiting",
                                               "vllm:kv_cache_usage_perc",
                                               "vllm:cache_config_info",
                                               "vllm:prompt_tokens_total",
                                               "vllm:generation_tokens_total",
                                               "vllm:time_to_first_token_seconds",
                                               "vllm:inter_token_latency_seconds",
                                               "vllm:e2e_request_latency_seconds",
                                               "vllm:request_success_total",
                                               "vllm:num_preemptions_total"};
  return kNames;
}

TestServer::Options WithMetrics() {
  TestServer::Options options;
  options.server.metrics_listen = "127.0.0.1:0";
  return options;
}

TEST(MetricsTest, HasEveryNameWithHelpAndCountsTheTruth) {
  TestServer server(WithMetrics());
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(server.Generate(GreedyRequest(4, 10)).status.ok());
  EXPECT_FALSE(server.Generate(GreedyRequest(4, 0)).status.ok());
  ASSERT_TRUE(server.WaitUntilQuiet());
  const Scrape scrape = Parse(Get(server.server().metrics_port(), "/metrics"));
  for (const std::string& name : ExpectedNames()) {
    ASSERT_TRUE(scrape.types.count(name)) << name;
    EXPECT_GT(scrape.helps.at(name).size(), 10u) << name;
  }
  for (const auto& [name, type] : scrape.types) {
    const bool total = name.size() > 6 && name.substr(name.size() - 6) == "_total";
    EXPECT_EQ(type == " counter", total) << name << type;
  }
  const std::string labels = "{model=\"fake\",engine=\"0\"}";
  EXPECT_EQ(scrape.values.at("sluice_generation_tokens_total" + labels), 30);
  EXPECT_EQ(scrape.values.at("sluice_prompt_tokens_total" + labels), 12);
  EXPECT_EQ(scrape.values.at("sluice_engine_up" + labels), 1);
  EXPECT_EQ(scrape.values.at("sluice_leaked_pages" + labels), 0);
  EXPECT_EQ(scrape.values.at("sluice_kv_usage_ratio" + labels), 0);
  EXPECT_EQ(scrape.values.at("sluice_time_to_first_token_seconds_count" + labels), 3);
  EXPECT_EQ(scrape.values.at("sluice_inter_token_latency_seconds_count" + labels), 27);
  EXPECT_EQ(scrape.values.at("sluice_requests_total{model=\"fake\",method=\"Generate\",code=\"OK\","
                             "finish_reason=\"length\"}"),
            3);
  EXPECT_EQ(scrape.values.at("sluice_rejected_total{model=\"fake\",reason=\"BAD_FIELD\"}"), 1);
  EXPECT_EQ(scrape.values.at("vllm:request_success_total{model_name=\"fake\","
                             "finished_reason=\"length\"}"),
            3);
  EXPECT_EQ(scrape.values.at("sluice_open_streams"), 0);
  server.server().BeginDrain();
  EXPECT_EQ(Parse(Get(server.server().metrics_port(), "/metrics")).values.at("sluice_draining"), 1);
}

TEST(MetricsTest, SeriesBeginAtZero) {
  TestServer server(WithMetrics());
  const Scrape scrape = Parse(Get(server.server().metrics_port(), "/metrics"));
  const auto expect_zero = [&](const std::string& series) {
    const auto value = scrape.values.find(series);
    ASSERT_NE(value, scrape.values.end()) << series;
    EXPECT_EQ(value->second, 0) << series;
  };
  for (const std::string reason :
       {"BAD_FIELD", "FEATURE", "DEADLINE_EXCEEDED", "DRAINING", "DUPLICATE_REQUEST", "ENGINE_DOWN",
        "LOADING", "MODEL_NOT_FOUND", "QUEUE_FULL"}) {
    expect_zero("sluice_rejected_total{model=\"fake\",reason=\"" + reason + "\"}");
  }
  const auto requests = [&](const std::string& method, const std::string& code,
                            const std::string& finish) {
    expect_zero("sluice_requests_total{model=\"fake\",method=\"" + method + "\",code=\"" + code +
                "\",finish_reason=\"" + finish + "\"}");
  };
  for (const char* finish : {"eos", "stop", "length", "context"})
    requests("Generate", "OK", finish);
  requests("Generate", "CANCELLED", "cancelled");
  for (const char* finish : {"", "error"}) {
    for (const char* code :
         {"DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}) {
      requests("Generate", code, finish);
    }
  }
  requests("Generate", "ABORTED", "error");
  requests("Generate", "INVALID_ARGUMENT", "");
  for (const char* method : {"Tokenize", "Detokenize", "GetModel", "ListModels", "GetLoad"}) {
    requests(method, "OK", "");
  }
}

TEST(MetricsTest, SaysWhatTheSelfCheckGave) {
  TestServer server(WithMetrics());
  const Scrape scrape = Parse(Get(server.server().metrics_port(), "/metrics"));
  EXPECT_EQ(scrape.values.at("sluice_selfcheck_error{model=\"fake\"}"), 1e-6);
  EXPECT_EQ(scrape.values.at("sluice_selfcheck_tolerance{model=\"fake\"}"), 0.002);
  EXPECT_EQ(scrape.values.at("sluice_selfcheck_passed{model=\"fake\"}"), 1);
  EXPECT_EQ(
      scrape.values.at("sluice_build_info{model=\"fake\",build=\"test build\",backend=\"fake\","
                       "quantization=\"\"}"),
      1);
}

TEST(MetricsTest, SaysWhatTheProcessTakes) {
  TestServer server(WithMetrics());
  const auto scrape = [&] { return Parse(Get(server.server().metrics_port(), "/metrics")).values; };
  const auto before = scrape();
  const double now = static_cast<double>(std::time(nullptr));
  EXPECT_LE(before.at("process_start_time_seconds"), now + 1);
  EXPECT_GT(before.at("process_start_time_seconds"), now - 3600);
  EXPECT_GT(before.at("process_resident_memory_bytes"), 1 << 20);
  EXPECT_GT(before.at("process_virtual_memory_bytes"), before.at("process_resident_memory_bytes"));
  EXPECT_GT(before.at("process_max_fds"), before.at("process_open_fds"));
  std::vector<int> files;
  for (int i = 0; i < 50; ++i) files.push_back(dup(STDERR_FILENO));
  // Two milliseconds of work at least.
  const auto begin = std::clock();
  while (std::clock() - begin < CLOCKS_PER_SEC / 500) continue;
  const auto after = scrape();
  for (const int fd : files) close(fd);
  EXPECT_GE(after.at("process_open_fds"), before.at("process_open_fds") + 40);
  EXPECT_GE(after.at("process_cpu_seconds_total"), before.at("process_cpu_seconds_total") + 0.002);
  EXPECT_EQ(after.at("process_start_time_seconds"), before.at("process_start_time_seconds"));
}

TEST(MetricsTest, HistogramsAreCumulative) {
  TestServer server(WithMetrics());
  EXPECT_TRUE(server.Generate(GreedyRequest(4, 10)).status.ok());
  ASSERT_TRUE(server.WaitUntilQuiet());
  const Scrape scrape = Parse(Get(server.server().metrics_port(), "/metrics"));
  const std::string prefix = "sluice_step_tokens_bucket{model=\"fake\",engine=\"0\",le=\"";
  EXPECT_EQ(scrape.values.at(prefix + "1\"}"), 9);
  EXPECT_EQ(scrape.values.at(prefix + "4\"}"), 10);
  EXPECT_EQ(scrape.values.at(prefix + "+Inf\"}"), 10);
  EXPECT_EQ(scrape.values.at("sluice_step_tokens_sum{model=\"fake\",engine=\"0\"}"), 13);
}

TEST(MetricsTest, SeriesStayBoundedWhateverClientsSend) {
  TestServer server(WithMetrics());
  const auto count = [&] {
    return Parse(Get(server.server().metrics_port(), "/metrics")).values.size();
  };
  v1::GenerateRequest request = GreedyRequest(4, 1);
  const auto send = [&](int i) {
    request.set_model("hostile " + std::to_string(i));
    server.Generate(request);
    request.set_request_id("id " + std::to_string(i));
    request.clear_model();
    server.Generate(request);
  };
  send(0);
  ASSERT_TRUE(server.WaitUntilQuiet());
  const size_t before = count();
  for (int i = 1; i < 200; ++i) send(i);
  ASSERT_TRUE(server.WaitUntilQuiet());
  EXPECT_EQ(count(), before);
}

TEST(MetricsTest, AnswersWhileTheModelLoads) {
  TestServer::Options options = WithMetrics();
  options.serve = false;
  TestServer server(options);
  const Scrape scrape = Parse(Get(server.server().metrics_port(), "/metrics"));
  EXPECT_EQ(scrape.values.at("sluice_draining"), 0);
  EXPECT_EQ(scrape.types.count("sluice_engine_up"), 0u);
}

TEST(MetricsTest, RefusesAPortInUse) {
  TestServer first(WithMetrics());
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  options.metrics_listen = "127.0.0.1:" + std::to_string(first.server().metrics_port());
  EXPECT_TRUE(absl::IsUnavailable(Server::Start(options).status()));
  options.metrics_listen = "nowhere";
  EXPECT_TRUE(absl::IsInvalidArgument(Server::Start(options).status()));
}

TEST(MetricsTest, AnswersBesideIdleConnectionsAndStopsAtOnce) {
  auto server = std::make_unique<TestServer>(WithMetrics());
  const int port = server->server().metrics_port();
  std::vector<int> idle;
  for (int i = 0; i < 4; ++i) {
    idle.push_back(socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(connect(idle.back(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  const auto scrape_began = std::chrono::steady_clock::now();
  const Scrape scrape = Parse(Get(port, "/metrics"));
  EXPECT_EQ(scrape.values.at("sluice_rejected_total{model=\"fake\",reason=\"QUEUE_FULL\"}"), 0);
  EXPECT_LT(std::chrono::steady_clock::now() - scrape_began, std::chrono::seconds(1));
  for (const int fd : idle) close(fd);
  const auto stop_began = std::chrono::steady_clock::now();
  server.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - stop_began, std::chrono::milliseconds(1500));
}

}  // namespace
}  // namespace sluice::server
