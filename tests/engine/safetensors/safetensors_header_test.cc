// A safetensors file that is wrong in one place is refused with an error that names the place.

#include "engine/safetensors/safetensors_header.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "tests/engine/safetensors/model_directory.h"
#include "tests/testing/gguf_writer.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;
using testing::SafetensorsBytes;
using testing::TempFile;

absl::StatusOr<SafetensorsHeader> ReadBytes(const std::string& bytes) {
  const TempFile file(bytes);
  const absl::StatusOr<OpenFile> open = OpenFile::Open(file.path());
  if (!open.ok()) return open.status();
  return SafetensorsHeader::Read(*open);
}

constexpr char kGood[] = R"({"__metadata__":{"format":"pt"},)"
                         R"("b":{"dtype":"BF16","shape":[3],"data_offsets":[24,30]},)"
                         R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}   )";

TEST(SafetensorsHeaderTest, ListsTensorsInTheOrderOfTheirData) {
  const auto header = ReadBytes(SafetensorsBytes(kGood, std::string(30, 'x')));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->json, kGood);
  EXPECT_EQ(header->data_begin, 8 + sizeof(kGood) - 1);
  ASSERT_EQ(header->tensors.size(), 2u);
  const StoredTensor& a = header->tensors[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.type, kernels::DType::kF32);
  EXPECT_THAT(a.shape, ::testing::ElementsAre(2, 3));
  EXPECT_EQ(a.begin, header->data_begin);
  EXPECT_EQ(a.bytes, 24u);
  const StoredTensor& b = header->tensors[1];
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.type, kernels::DType::kBF16);
  EXPECT_EQ(b.begin, header->data_begin + 24);
  EXPECT_EQ(b.bytes, 6u);
}

TEST(SafetensorsHeaderTest, KnowsTheSizeOfTypesThatItDoesNotCompute) {
  const auto header = ReadBytes(SafetensorsBytes(
      R"({"i":{"dtype":"I64","shape":[],"data_offsets":[0,8]}})", std::string(8, 'x')));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->tensors[0].type, std::nullopt);
  EXPECT_EQ(header->tensors[0].dtype, "I64");
}

TEST(SafetensorsHeaderTest, TakesAFileWithoutTensors) {
  const auto header = ReadBytes(SafetensorsBytes("{}", ""));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_TRUE(header->tensors.empty());
}

struct HeaderCase {
  const char* name;
  std::string bytes;
  std::vector<std::string> says;
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
};
void PrintTo(const HeaderCase& c, std::ostream* out) { *out << c.name; }

// One tensor of 30 bytes of data, described as given.
std::string One(const std::string& description) {
  return SafetensorsBytes("{\"t\":" + description + "}", std::string(30, 'x'));
}

std::vector<HeaderCase> HeaderCases() {
  const std::string data(30, 'x');
  return {
      {"Empty", "", {"header", "a file of 0"}},
      {"SevenBytes", "1234567", {"header", "a file of 7"}},
      {"NoHeader", SafetensorsBytes(0, "", ""), {"header", "a length of 2 to 0"}},
      {"LengthOfOne", SafetensorsBytes(1, kGood, data), {"a length of 2 to", "got 1 (at byte 0)"}},
      {"LengthBeyondTheFile",
       SafetensorsBytes(sizeof(kGood) - 1 + 31, kGood, data),
       {"a length of 2 to", "which the file has left"}},
      {"HugeLength", SafetensorsBytes(UINT64_MAX, kGood, data), {"got 18446744073709551615"}},
      {"TruncatedHeader", SafetensorsBytes(kGood, "").substr(0, 60), {"the file has left"}},
      {"HeaderCutShort", SafetensorsBytes(60, kGood, data), {"header", "syntax error"}},
      {"SpaceFirst", SafetensorsBytes(" {}", ""), {"from byte 8 on"}},
      {"AnArray", SafetensorsBytes("[]", ""), {"a JSON object"}},
      {"Deep", SafetensorsBytes("{\"a\":" + std::string(100'000, '['), ""), {"64 levels"}},
      {"NameTwice",
       SafetensorsBytes(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                        R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                        "xx"),
       {"'a' again"}},
      {"NoName",
       SafetensorsBytes(R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x"),
       {"a name of 1 to"}},
      {"NoObject", One("7"), {"tensor 't'", "an object, got an integer"}},
      {"StrangeField",
       One(R"({"dtype":"U8","shape":[30],"data_offsets":[0,30],"scale":2})"),
       {"tensor 't'", "'scale'"}},
      {"NoType", One(R"({"shape":[30],"data_offsets":[0,30]})"), {"tensor 't'", "dtype"}},
      {"UnknownType",
       One(R"({"dtype":"F4","shape":[60],"data_offsets":[0,30]})"),
       {"tensor 't'", "dtype", "'F4'"},
       absl::StatusCode::kUnimplemented},
      {"NoShape", One(R"({"dtype":"U8","data_offsets":[0,30]})"), {"tensor 't'", "shape"}},
      {"NegativeDimension",
       One(R"({"dtype":"U8","shape":[-30],"data_offsets":[0,30]})"),
       {"shape", "got -30"}},
      {"FractionalDimension",
       One(R"({"dtype":"U8","shape":[30.0],"data_offsets":[0,30]})"),
       {"shape", "got 30"}},
      {"ZeroDimension",
       One(R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})"),
       {"shape [0]", "got 0"}},
      {"HugeDimension",
       One(R"({"dtype":"U8","shape":[9223372036854775807],"data_offsets":[0,30]})"),
       {"shape", "9223372036854775807"}},
      {"NineDimensions",
       One(R"({"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]})"),
       {"shape", "at most 8"}},
      {"OverflowingShape",
       One(R"({"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,30]})"),
       {"more than 2^64", "got 30"}},
      {"OneOffset",
       One(R"({"dtype":"U8","shape":[30],"data_offsets":[30]})"),
       {"data_offsets", "expected 2"}},
      {"ThreeOffsets",
       One(R"({"dtype":"U8","shape":[30],"data_offsets":[0,30,30]})"),
       {"data_offsets", "expected 2"}},
      {"OffsetsBackwards",
       One(R"({"dtype":"U8","shape":[30],"data_offsets":[30,0]})"),
       {"a begin and an end", "[30, 0]"}},
      {"EndBeyondTheData",
       One(R"({"dtype":"U8","shape":[31],"data_offsets":[0,31]})"),
       {"at most 30", "[0, 31]"}},
      {"FewerBytesThanTheShape",
       One(R"({"dtype":"F16","shape":[4,4],"data_offsets":[0,30]})"),
       {"expected 32 bytes for shape [4, 4] of F16", "got 30"}},
      {"GapAtTheStart",
       One(R"({"dtype":"U8","shape":[29],"data_offsets":[1,30]})"),
       {"tensor 't'", "expected 0", "(gap)"}},
      {"GapAtTheEnd",
       One(R"({"dtype":"U8","shape":[29],"data_offsets":[0,29]})"),
       {"tensors of 30 bytes", "got 29"}},
      {"Overlap",
       SafetensorsBytes(R"({"a":{"dtype":"U8","shape":[20],"data_offsets":[0,20]},)"
                        R"("b":{"dtype":"U8","shape":[11],"data_offsets":[19,30]}})",
                        data),
       {"tensor 'b'", "expected 20", "(overlap)"}},
  };
}

class SafetensorsHeaderErrorTest : public ::testing::TestWithParam<HeaderCase> {};

TEST_P(SafetensorsHeaderErrorTest, IsRefusedWithTheReason) {
  const TempFile file(GetParam().bytes);
  const absl::StatusOr<OpenFile> open = OpenFile::Open(file.path());
  ASSERT_TRUE(open.ok());
  const absl::Status status = SafetensorsHeader::Read(*open).status();
  EXPECT_EQ(status.code(), GetParam().code) << Message(status);
  EXPECT_THAT(Message(status), ::testing::StartsWith(file.path() + ": "));
  for (const std::string& text : GetParam().says) EXPECT_THAT(Message(status), HasSubstr(text));
}

INSTANTIATE_TEST_SUITE_P(Cases, SafetensorsHeaderErrorTest, ::testing::ValuesIn(HeaderCases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(SafetensorsHeaderTest, RefusesMoreTensorsThanTheLimit) {
  std::string header = "{";
  for (size_t i = 0; i <= SafetensorsHeader::kMaxTensors; ++i) {
    const std::string n = std::to_string(i), next = std::to_string(i + 1);
    header += (i == 0 ? "\"" : ",\"") + n + R"(":{"dtype":"U8","shape":[1],"data_offsets":[)" + n +
              "," + next + "]}";
  }
  const auto read = ReadBytes(
      SafetensorsBytes(header + "}", std::string(SafetensorsHeader::kMaxTensors + 1, 'x')));
  EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(read.status()), HasSubstr("at most 65536 tensors"));
}

}  // namespace
}  // namespace sluice::engine
