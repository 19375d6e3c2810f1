#include "cli/load_report.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace sluice::cli {
namespace {

TEST(QuantilesTest, NearestRankOfWeightedValues) {
  std::vector<Quantiles::Weighted> values;
  for (int i = 100; i >= 1; --i) values.push_back({i * 1e-3});
  const Quantiles even = Quantiles::Of(values);
  EXPECT_DOUBLE_EQ(even.p50, 50);
  EXPECT_DOUBLE_EQ(even.p90, 90);
  EXPECT_DOUBLE_EQ(even.p99, 99);
  EXPECT_DOUBLE_EQ(even.most, 100);
  EXPECT_NEAR(even.mean, 50.5, 1e-9);
  // One value of weight 9 and one of weight 1: the ninth tenth ends with the first.
  const Quantiles heavy = Quantiles::Of({{0.2, 1}, {0.1, 9}});
  EXPECT_DOUBLE_EQ(heavy.p90, 100);
  EXPECT_DOUBLE_EQ(heavy.p95, 200);
  EXPECT_NEAR(heavy.mean, 110, 1e-9);
  EXPECT_DOUBLE_EQ(Quantiles::Of({}).p99, 0);
  EXPECT_DOUBLE_EQ(Quantiles::Of({{0.25, 1}}).p50, 250);
}

CallRecord Call(double first, double total, std::vector<CallRecord::Gap> gaps) {
  CallRecord record;
  record.first_seconds = first;
  record.total_seconds = total;
  record.prompt_tokens = 10;
  record.output_tokens = 1;
  for (const CallRecord::Gap& gap : gaps) record.output_tokens += gap.tokens;
  record.gaps = std::move(gaps);
  return record;
}

TEST(LoadReportTest, LatenciesAreOfCallsThatEndedOkAndTokensOfAll) {
  CallRecord cut = Call(9, 9, {{9.0f, 1}});
  cut.status_code = 14;
  cut.message = "gone";
  const LoadReport report = LoadReport::Of(
      {Call(0.5, 1.0, {{0.25f, 1}, {0.25f, 3}}), Call(0.25, 0.5, {{0.25f, 1}}), cut}, 2.0);
  EXPECT_EQ(report.calls, 3);
  EXPECT_EQ(report.calls_ok, 2);
  EXPECT_EQ(report.output_tokens, 5 + 2 + 2);
  EXPECT_DOUBLE_EQ(report.OutputTokensPerSecond(), 4.5);
  EXPECT_DOUBLE_EQ(report.tokens_per_delta, 7.0 / 5.0);
  EXPECT_DOUBLE_EQ(report.first_token.most, 500);
  EXPECT_DOUBLE_EQ(report.first_token.p50, 250);
  EXPECT_DOUBLE_EQ(report.call.most, 1000);
  EXPECT_DOUBLE_EQ(report.token.p50, 125);  // 0.5 s over 4 tokens, 0.25 s over 1
  EXPECT_DOUBLE_EQ(report.inter_delta.p50, 250);
  // Three of five tokens came in a delta of three.
  EXPECT_NEAR(report.inter_token.p50, 250.0 / 3, 1e-4);
  EXPECT_DOUBLE_EQ(report.inter_token.most, 250);
  EXPECT_EQ(report.errors.at("UNAVAILABLE"), 1);
  EXPECT_EQ(report.first_error, "gone");
}

TEST(LoadReportTest, JsonHoldsTheFactsAndTheFigures) {
  CallRecord cut;
  cut.status_code = 8;
  const LoadReport report = LoadReport::Of({Call(0.5, 1.0, {{0.5f, 1}}), cut}, 1.0);
  const auto json = nlohmann::json::parse(report.Json("\"model\": \"m\""));
  EXPECT_EQ(json["model"], "m");
  EXPECT_EQ(json["calls_ok"], 1);
  EXPECT_EQ(json["errors"]["RESOURCE_EXHAUSTED"], 1);
  EXPECT_EQ(json["first_token_ms"]["p99"], 500.0);
  EXPECT_EQ(json["output_tokens_per_second"], 2.0);
  EXPECT_TRUE(nlohmann::json::parse(LoadReport::Of({}, 0).Json("")).is_object());
}

TEST(LoadReportTest, TextNamesEveryErrorOnce) {
  CallRecord cut;
  cut.status_code = 14;
  cut.message = "connection refused";
  const std::string text = LoadReport::Of({cut, cut}, 1.0).Text();
  EXPECT_NE(text.find("0 of 2 calls ended OK"), std::string::npos);
  EXPECT_NE(text.find("UNAVAILABLE: 2 calls\n"), std::string::npos);
  EXPECT_NE(text.find("first error: connection refused\n"), std::string::npos);
  EXPECT_EQ(StatusName(0), "OK");
  EXPECT_EQ(StatusName(99), "99");
}

}  // namespace
}  // namespace sluice::cli
