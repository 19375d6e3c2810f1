// Which of the chat templates in a model's file conversations are rendered by.
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/chat/chat_encoder.h"
#include "engine/chat/conversation.h"
#include "engine/engine.h"
#include "engine/inspect.h"
#include "tests/testing/gguf_writer.h"

namespace sluice::engine {
namespace {

using ::testing::Contains;
using ::testing::EndsWith;
using testing::TempFile;

const std::string kKey = "tokenizer.chat_template";

using Templates = std::vector<std::pair<std::string, std::string>>;  // by key

std::string ModelWith(const Templates& templates) {
  testing::GgufDraft draft = testing::MakeTinyModelDraft({});
  for (const auto& [key, text] : templates) draft.SetString(key, text);
  return draft.Bytes();
}

absl::StatusOr<LoadedModel> Load(const Templates& templates,
                                 const std::string& chat_template_path = "") {
  EngineOptions options;
  options.num_threads = 1;
  options.chat_template_path = chat_template_path;
  return LoadModel(TempFile(ModelWith(templates)).path(), options, 1, nullptr);
}

// What `sluice inspect` says of the chat template.
std::string Inspected(const Templates& templates) {
  const auto text = InspectFile(TempFile(ModelWith(templates)).path(), /*json=*/false);
  if (!text.ok()) return Message(text.status());
  const size_t begin = text->find("chat template ");
  return text->substr(begin, text->find('\n', begin) - begin);
}

std::string Rendered(const LoadedModel& model, bool has_tools) {
  Conversation conversation;
  EXPECT_TRUE(conversation.Add({.role = "user", .content = "Hi"}).ok());
  if (has_tools) {
    EXPECT_TRUE(conversation.SetTools(R"([{"name": "f"}])").ok());
  }
  const auto text = model.chat->Render(conversation, 0);
  return text.ok() ? text->bytes() : Message(text.status());
}

TEST(LoadChatTest, ToolsAreForTheTemplateOfTheirName) {
  const auto model = Load({{kKey, "plain"}, {kKey + ".tool_use", "{{ tools }}"}});
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(Rendered(*model, false), "plain");
  EXPECT_EQ(Rendered(*model, true), "[{'name': 'f'}]");
  const TempFile other("other");
  const auto replaced = Load({{kKey, "plain"}, {kKey + ".tool_use", "{{ tools }}"}}, other.path());
  ASSERT_TRUE(replaced.ok()) << replaced.status();
  EXPECT_EQ(Rendered(*replaced, false), "other");
  EXPECT_EQ(Rendered(*replaced, true), "other");
}

TEST(LoadChatTest, TemplatesThatCannotBeUsedAreNamed) {
  const auto broken = Load({{kKey, "plain"}, {kKey + ".tool_use", "{% include 'x' %}"}});
  ASSERT_TRUE(broken.ok()) << broken.status();
  const std::string error =
      "the model's chat template for tools is not usable: line 1: unknown block 'include'";
  EXPECT_THAT(broken->warnings, Contains(error + "; no chat with tools"));
  EXPECT_EQ(Rendered(*broken, false), "plain");
  EXPECT_EQ(Rendered(*broken, true), error);
  const auto nameless = Load({{kKey + ".tool_use", "{{ tools }}"}});
  ASSERT_TRUE(nameless.ok()) << nameless.status();
  EXPECT_EQ(nameless->chat, nullptr);
  EXPECT_EQ(nameless->chat_error,
            "the model's file has chat templates by name only, 'tool_use' first, and none named "
            "'default'");
}

TEST(LoadChatTest, InspectSaysWhichTemplatesThereAre) {
  EXPECT_THAT(Inspected({}), EndsWith(" no"));
  EXPECT_THAT(Inspected({{kKey, "plain"}}), EndsWith(" yes"));
  EXPECT_THAT(Inspected({{kKey, "plain"}, {kKey + ".tool_use", "{{ tools }}"}}),
              EndsWith(" yes, and another for tools"));
  EXPECT_THAT(Inspected({{kKey + ".rag", "{{ documents }}"}}),
              EndsWith(" no, only by name, 'rag' first"));
}

}  // namespace
}  // namespace sluice::engine
