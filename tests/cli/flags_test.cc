#include "cli/flags.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"

namespace sluice::cli {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(ByteSizeTest, TakesPlainNumbersAndUnitsOf1024) {
  const std::pair<const char*, uint64_t> cases[] = {
      {"0", 0},           {"4096", 4096},       {"1k", 1024},         {"512M", 512ull << 20},
      {"2G", 2ull << 30}, {"1GiB", 1ull << 30}, {"1.5G", 3ull << 29}, {"1T", 1ull << 40},
      {"7b", 7},          {"3KB", 3072},        {"2gb", 2ull << 30},
  };
  for (const auto& [text, bytes] : cases) {
    const absl::StatusOr<uint64_t> parsed = ParseByteSize(text);
    ASSERT_TRUE(parsed.ok()) << text << ": " << engine::Message(parsed.status());
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(ByteSizeTest, RefusesWhatIsNoSize) {
  for (const char* text : {"", "M", "-1", "+1", " 1", "1 G", "2X", "1Gi", "1GiBs", "nan", "inf",
                           "1e3", "99999999999G", "0x10"}) {
    const absl::StatusOr<uint64_t> parsed = ParseByteSize(text);
    ASSERT_FALSE(parsed.ok()) << text << " gave " << *parsed;
    EXPECT_THAT(engine::Message(parsed.status()), HasSubstr(std::string("'") + text + "'"));
  }
}

TEST(DurationTest, TakesUnits) {
  EXPECT_EQ(*ParseDuration("500ms"), milliseconds(500));
  EXPECT_EQ(*ParseDuration("30s"), milliseconds(30'000));
  EXPECT_EQ(*ParseDuration("30"), milliseconds(30'000));
  EXPECT_EQ(*ParseDuration("0.25s"), milliseconds(250));
  EXPECT_EQ(*ParseDuration("2m"), milliseconds(120'000));
  EXPECT_EQ(*ParseDuration("1h"), milliseconds(3'600'000));
  for (const char* text : {"", "s", "-1s", "1d", "1sec", "9999999h", "nan"}) {
    EXPECT_FALSE(ParseDuration(text).ok()) << text;
  }
}

TEST(TokenIdsTest, TakesCommaSeparatedNumbers) {
  EXPECT_THAT(*ParseTokenIds("7"), ElementsAre(7));
  EXPECT_THAT(*ParseTokenIds("1,2, 3"), ElementsAre(1, 2, 3));
  for (const char* text : {"", ",", "1,", "1 2", "-1", "1,x", "3000000000"}) {
    EXPECT_FALSE(ParseTokenIds(text).ok()) << text;
  }
}

TEST(PlantedBugTest, IsFoundByItsName) {
  const absl::StatusOr<kernels::PlantedBug> bug = ParsePlantedBug("k-bias");
  ASSERT_TRUE(bug.ok()) << bug.status();
  EXPECT_EQ(*bug, kernels::PlantedBug::kKeyBiasDropped);
  EXPECT_TRUE(absl::IsInvalidArgument(ParsePlantedBug("kbias").status()));
}

// The outcome of one check on one text: empty when it is taken.
std::string Check(const CLI::Validator& validator, std::string text) { return validator(text); }

TEST(ValidatorTest, TakesNamesOfDevices) {
  for (const char* name : {"cpu", "cuda:0", "cuda:15"}) EXPECT_EQ(Check(Device(), name), "");
  for (const char* name :
       {"", "gpu", "CPU", "cuda", "cuda:", "cuda:-1", "cuda:1x", "cuda:9999999999"}) {
    EXPECT_THAT(Check(Device(), name), HasSubstr(std::string("got '") + name + "'"));
  }
}

TEST(ValidatorTest, TakesTextOfOneLine) {
  for (const char* text : {"a", "Größe 1"}) EXPECT_EQ(Check(PrintableText(), text), "");
  for (const char* text : {"", "a\nb", "\x1b[2J", "\xff"}) {
    EXPECT_THAT(Check(PrintableText(), text), HasSubstr("printable"));
  }
}

TEST(ValidatorTest, RefusesNanAndWhatLiesOutside) {
  EXPECT_EQ(Check(Between(0, 1), "0"), "");
  EXPECT_EQ(Check(Between(0, 1), "1"), "");
  EXPECT_EQ(Check(Between(0, 1, true), "1e-3"), "");
  EXPECT_THAT(Check(Between(0, 1, true), "0"), HasSubstr("(0, 1]"));
  for (const char* text : {"nan", "inf", "1.1", "-0.1", "", "0.5x"}) {
    EXPECT_NE(Check(Between(0, 1), text), "") << text;
  }
  EXPECT_EQ(Check(IntegerBetween(1, 16), "16"), "");
  for (const char* text : {"0", "17", "1.5", "", "x", "99999999999999999999"}) {
    EXPECT_NE(Check(IntegerBetween(1, 16), text), "") << text;
  }
  EXPECT_EQ(Check(Uint64(), "18446744073709551615"), "");
  EXPECT_NE(Check(Uint64(), "18446744073709551616"), "");
  EXPECT_NE(Check(Uint64(), "-1"), "");
  EXPECT_EQ(Check(OneOf({"f16", "f32"}), "f32"), "");
  EXPECT_THAT(Check(OneOf({"f16", "f32"}), "f64"), HasSubstr("f16, f32"));
}

TEST(EngineFlagsTest, FillTheOptions) {
  CLI::App app;
  engine::EngineOptions options;
  AddEngineFlags(app, &options, "Engine");
  std::vector<std::string> arguments = {"3",    "--threads",   "f32",  "--kv-dtype",
                                        "64M",  "--kv-memory", "avx2", "--isa",
                                        "fast", "--numerics"};
  app.parse(arguments);  // CLI11 takes them last first
  EXPECT_EQ(options.num_threads, 3);
  EXPECT_EQ(options.kv_dtype, engine::KvDType::kF32);
  EXPECT_EQ(options.kv_memory_bytes, 64u << 20);
  EXPECT_TRUE(options.force_avx2);
  EXPECT_TRUE(options.fast_numerics);
  EXPECT_EQ(options.max_batch, engine::EngineOptions().max_batch);
}

TEST(FormatBytesTest, TakesTheLargestUnit) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(uint64_t{3} << 30), "3.0 GiB");
}

}  // namespace
}  // namespace sluice::cli
