#include "engine/safetensors/json_document.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

std::string Refused(std::string_view text) {
  const absl::StatusOr<JsonDocument> document = JsonDocument::Parse(text);
  EXPECT_EQ(document.status().code(), absl::StatusCode::kInvalidArgument) << text.substr(0, 80);
  return Message(document.status());
}

TEST(JsonDocumentTest, KeepsEveryKindOfValue) {
  const absl::StatusOr<JsonDocument> document = JsonDocument::Parse(
      R"( {"n": null, "t": true, "i": -7, "u": 18446744073709551615, "f": 1.5, "s": "a\u00e9\n",
           "a": [1, [2, []], {"x": {}}], "": 3} )");
  ASSERT_TRUE(document.ok()) << document.status();
  const JsonValue root = document->root();
  ASSERT_TRUE(root.is_object());
  EXPECT_EQ(root.size(), 8u);
  EXPECT_TRUE(root.Find("n")->is_null());
  EXPECT_EQ(root.Find("t")->AsBool(), true);
  EXPECT_EQ(root.Find("i")->AsInteger(), -7);
  EXPECT_EQ(root.Find("i")->AsNumber(), -7.0);
  EXPECT_EQ(root.Find("u")->AsInteger(), std::nullopt);
  EXPECT_EQ(root.Find("u")->AsNumber(), 0x1p64);
  EXPECT_EQ(root.Find("f")->AsNumber(), 1.5);
  EXPECT_EQ(root.Find("f")->AsInteger(), std::nullopt);
  EXPECT_EQ(root.Find("s")->AsString(), "a\u00e9\n");
  EXPECT_EQ(root.Find("s")->AsBool(), std::nullopt);
  EXPECT_EQ(root.Find("")->AsInteger(), 3);
  EXPECT_FALSE(root.Find("missing").has_value());
  const JsonValue array = *root.Find("a");
  EXPECT_EQ(array.size(), 3u);
  EXPECT_FALSE(array.Find("x").has_value());
  std::vector<std::string> elements;
  for (const JsonValue element : array) elements.push_back(element.Dump());
  EXPECT_THAT(elements, ::testing::ElementsAre("1", "[2,[]]", R"({"x":{}})"));
}

TEST(JsonDocumentTest, DumpsEqualValuesAsEqualTexts) {
  const auto a = JsonDocument::Parse(R"({"b": [1, "\"\\\u0001"], "a": {"d": null, "c": false}})");
  const auto b = JsonDocument::Parse(R"({"a":{"c":false,"d":null},"b":[1,"\u0022\u005c\u0001"]})");
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->root().Dump(), R"({"a":{"c":false,"d":null},"b":[1,"\"\\\u0001"]})");
  EXPECT_EQ(a->root().Dump(), b->root().Dump());
  EXPECT_EQ(a->root().Dump(7), R"({"a":{"...)");
}

TEST(JsonDocumentTest, RefusesWhatIsNoJson) {
  for (const char* text : {"", " ", "{", "[1,", "{\"a\":1,}", "[1] 2", "nul", "{\"a\" 1}",
                           "\"\xff\"", "\"\\ud800\"", "01", "NaN", "1e999", "{1:2}"}) {
    EXPECT_THAT(Refused(text), HasSubstr("at byte ")) << text;
  }
}

TEST(JsonDocumentTest, RefusesAKeyTwice) {
  EXPECT_THAT(Refused(R"({"a": {"b": 1, "c": {}, "b": [2]}})"), HasSubstr("'b' again"));
  EXPECT_TRUE(JsonDocument::Parse(R"({"a": {"b": 1}, "b": 1, "c": [{"b": 1}, {"b": 2}]})").ok());
}

TEST(JsonDocumentTest, RefusesDepthBeyondTheLimit) {
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_TRUE(JsonDocument::Parse(nested(JsonDocument::kMaxDepth)).ok());
  EXPECT_THAT(Refused(nested(JsonDocument::kMaxDepth + 1)), HasSubstr("64 levels"));
  EXPECT_THAT(Refused(std::string(10'000'000, '[')), HasSubstr("64 levels"));
}

TEST(JsonDocumentTest, RefusesMoreValuesThanTheLimit) {
  std::string text = "[0";
  for (size_t i = 2; i < JsonDocument::kMaxValues; ++i) text += ",0";
  EXPECT_TRUE(JsonDocument::Parse(text + "]").ok());
  EXPECT_THAT(Refused(text + ",0]"), HasSubstr("4194304 JSON values"));
}

}  // namespace
}  // namespace sluice::engine
