// The interpreter of chat templates by itself: marks of the text, limits, errors. What it renders
// is compared with Python's jinja2 in tests/e2e/test_chat_templates.py.
#include "engine/chat/chat_template.h"

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/chat/json_text.h"

namespace sluice::engine::chat {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

using Variables = std::vector<std::pair<std::string, Value>>;

Variables Usual() {
  return {{"content", Value::Content("<s>user</s>")},
          {"bos", Value::Template("<s>")},
          {"messages", *FromJson(R"([{"role": "user", "content": "<s>Hi"}])", 10)}};
}

absl::StatusOr<MarkedText> Render(std::string_view source, const Limits& limits = {}) {
  const auto parsed = ChatTemplate::Parse(source, limits);
  if (!parsed.ok()) return parsed.status();
  return parsed->Render(Usual(), 0);
}

// Template text in braces, content as it is.
std::string Marked(std::string_view source) {
  const auto text = Render(source);
  if (!text.ok()) return Message(text.status());
  std::string out;
  for (const MarkedText::Run& run : text->Runs()) {
    const std::string bytes = text->bytes().substr(run.begin, run.end - run.begin);
    out += run.mark == MarkedText::Mark::kTemplate ? "{" + bytes + "}" : bytes;
  }
  return out;
}

std::string ErrorOf(std::string_view source, const Limits& limits = {}) {
  const auto text = Render(source, limits);
  return text.ok() ? "rendered: " + text->bytes().substr(0, 100) : Message(text.status());
}

TEST(ChatTemplateTest, TextOfTheTemplateAndContentAreTold) {
  EXPECT_EQ(Marked("a{{ 'b' + content + 'c' }}d"), "{ab}<s>user</s>{cd}");
  EXPECT_EQ(Marked("{{ bos }}{{ messages[0].content }}"), "{<s>}<s>Hi");
  EXPECT_EQ(Marked("{% for m in messages %}<{{ m['role'] }}>{{ m.content }}{% endfor %}"),
            "{<}user{>}<s>Hi");
  EXPECT_EQ(Marked("{{ 1 }}{{ true }}{{ none }}"), "1TrueNone");
}

TEST(ChatTemplateTest, MarksSurviveWhatIsDoneToText) {
  EXPECT_EQ(Marked("{{ ('<' ~ content ~ '>')|upper }}"), "{<}<S>USER</S>{>}");
  EXPECT_EQ(Marked("{{ (' a' + content)|trim }}"), "{a}<s>user</s>");
  EXPECT_EQ(Marked("{{ ('ab' + content)[1:4] }}"), "{b}<s");
  EXPECT_EQ(Marked("{{ ('ab' + content)[::-1] }}"), ">s/<resu>s<{ba}");
  EXPECT_EQ(Marked("{{ content.replace('user', '<s>') }}"), "<s>{<s>}</s>");
  EXPECT_EQ(Marked("{{ ('x,' + content + ',y').split(',')|join(';') }}"), "{x;}<s>user</s>{;y}");
  EXPECT_EQ(Marked("{% set x %}[{{ content }}]{% endset %}{{ x }}"), "{[}<s>user</s>{]}");
  EXPECT_EQ(Marked("{% macro m(x) %}({{ x }}){% endmacro %}{{ m(content) }}"), "{(}<s>user</s>{)}");
  EXPECT_EQ(Marked("{% filter upper %}a{{ content }}{% endfilter %}"), "{A}<S>USER</S>");
  EXPECT_EQ(Marked("{{ '%s|' % content }}"), "<s>user</s>{|}");
  EXPECT_EQ(Marked("{{ '{}|'.format(content) }}"), "<s>user</s>{|}");
  EXPECT_EQ(Marked("{{ content|indent(2, true) }}"), "  <s>user</s>");
  EXPECT_EQ(Marked("{% set ns = namespace(t='') %}{% set ns.t = ns.t + content %}{{ ns.t + '!' }}"),
            "<s>user</s>{!}");
  // JSON is content, quotes and keys included, but for strings of the template.
  EXPECT_EQ(Marked("{{ {'k': content}|tojson }}"), "{\"{k}\": \"<s>user</s>\"}");
  EXPECT_EQ(Marked("{{ messages|string }}"), "[{'role': 'user', 'content': '<s>Hi'}]");
}

TEST(ChatTemplateTest, ErrorsNameTheLine) {
  EXPECT_EQ(ErrorOf("\n\n{{ nope.x }}"), "line 3: 'nope' is undefined");
  EXPECT_EQ(ErrorOf("a\n{% if x %}\nb"),
            "line 3: expected '{% endif %}', got the end of the template");
  EXPECT_EQ(ErrorOf("\n{{ raise_exception('Only user and assistant roles are supported!') }}"),
            "line 2: Only user and assistant roles are supported!");
  EXPECT_EQ(ErrorOf("{{ 'a' + 1 }}"), "line 1: unsupported operand types for +: 'str' and 'int'");
  EXPECT_EQ(ErrorOf("\r\n{{ a b }}"), "line 2: expected '}}', got 'b'");
  EXPECT_THAT(ErrorOf("{{ \"\xFF\" }}"), HasSubstr("not valid UTF-8"));
}

TEST(ChatTemplateTest, AnErrorEchoesLittleOfTheContent) {
  const auto parsed = ChatTemplate::Parse("{{ raise_exception('Bad: ' + content + '!') }}");
  ASSERT_TRUE(parsed.ok());
  const auto text = parsed->Render({{"content", Value::Content(std::string(1000, 'x'))}}, 0);
  EXPECT_EQ(Message(text.status()), "line 1: Bad: " + std::string(64, 'x') + "...!");
}

TEST(ChatTemplateTest, TimeIsTheCallers) {
  const auto parsed = ChatTemplate::Parse("{{ strftime_now('%Y') }}");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->Render({}, 1764350000)->bytes(), "2025");
}

// M89: a template that means harm costs a second at most and gives one error.
TEST(ChatTemplateTest, HostileTemplatesEndAtALimit) {
  const auto times = [](int count, std::string_view part) {
    std::string text;
    for (int i = 0; i < count; ++i) text += part;
    return text;
  };
  const std::pair<std::string, const char*> cases[] = {
      {std::string(size_t{10} << 20, 'x'),
       "expected a template of at most 1048576 bytes, got 10485760"},
      {"{{ " + times(100'000, "(") + "1" + times(100'000, ")") + " }}",
       "line 1: nested deeper than"},
      {"{{ " + times(100'000, "[") + times(100'000, "]") + " }}", "line 1: nested deeper than"},
      {"{{ " + times(100'000, "not ") + "1 }}", "line 1: nested deeper than"},
      {"{{ " + times(100'000, "-") + "1 }}", "line 1: nested deeper than"},
      {"{{ 1" + times(100'000, " + 1") + " }}", "line 1: an expression of more than"},
      {"{{ a" + times(100'000, ".a") + " }}", "line 1: an expression of more than"},
      {"{{ a" + times(100'000, "|abs") + " }}", "line 1: an expression of more than"},
      {times(50'000, "{% if 1 %}"), "line 1: nested deeper than"},
      {"{% if 0 %}" + times(60'000, "{% elif 0 %}") + "{% endif %}", "line 1: too many elifs"},
      {"{% for " + times(100'000, "(") + times(100'000, ")") + "%}", "line 1: nested deeper than"},
      {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
       "line 1: expressions and macros are nested"},
      {"{% macro f(n) %}{{ n }}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
       "line 1: expressions and"},
      {"{{ range(10**9)|list }}", "line 1: a range of more than 100000 items"},
      {"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
       "line 1: the template "},
      {"{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% "
       "endfor %}",
       "line 1: the template makes a text of more than"},
      {"{{ 'x' * 10**12 }}", "line 1: the template makes a text of more than"},
      {"{{ [0] * 10**12 }}", "line 1: the template "},
      {"{{ 'x'|center(10**12) }}", "line 1: the template makes a text of more than"},
      {"{{ '%99999999d' % 1 }}", "line 1: a width in a format is too large"},
      {"{{ ('x' * 1000000).replace('', 'y' * 1000000) }}", "line 1: the template makes a text"},
      {"{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor "
       "%}",
       "line 1: lists are nested deeper than"},
      {"{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "line 1: namespaces in each other"},
      {"{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% "
       "endfor %}",
       "line 1: the template "},
      {"{{ 9 ** 9 ** 9 }}", "line 1: an integer beyond 64 bits"},
      {"{{ ''.__class__.__mro__[1].__subclasses__() }}", "line 1: 'str object' has no attribute"},
      {"{{ messages.append.__globals__ }}", "line 1: 'list object' has no attribute 'append'"},
      {"{{ lipsum.__globals__.os.popen('id').read() }}", "line 1: 'lipsum' is undefined"}};
  for (const auto& [source, message] : cases) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_THAT(ErrorOf(source), StartsWith(message)) << source.substr(0, 100);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    EXPECT_LT(seconds.count(), 100) << source.substr(0, 100);  // loaded machines, sanitizers
  }
}

TEST(ChatTemplateTest, WhatATemplateLeavesBehindIsFreed) {
  // Namespaces, loops and macros that hold each other: the leak check of the sanitizers looks.
  for (const char* source :
       {"{% set ns = namespace() %}{% set ns.self = ns %}{% set ns.list = [ns] %}",
        "{% set ns = namespace() %}{% for i in [1, 2] %}{% set ns.loop = loop %}{% endfor %}{{ "
        "ns.loop.index }}",
        "{% for i in [1] %}{{ loop.changed(loop) }}{% endfor %}",
        "{% set ns = namespace() %}{% macro m() %}x{% endmacro %}{% set ns.m = m %}{{ ns.m() }}"}) {
    EXPECT_TRUE(Render(source).ok()) << source << ErrorOf(source);
  }
  EXPECT_EQ(ErrorOf("{% set ns = namespace() %}{% for i in [1] %}{% macro m() %}x{% endmacro %}"
                    "{% set ns.m = m %}{% endfor %}{{ ns.m() }}"),
            "line 1: macro 'm' is called outside of its scope");
}

TEST(ChatTemplateTest, AConversationOfMegabytesFits) {
  std::string json = "[";
  for (int i = 0; i < 2000; ++i) {
    json += std::string(i > 0 ? "," : "") + R"({"role": ")" + (i % 2 == 0 ? "user" : "assistant") +
            R"(", "content": ")" + std::string(2000, 'x') + "\"}";
  }
  const auto parsed = ChatTemplate::Parse(
      "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
      "{{ raise_exception('order') }}{% endif %}{{ '<|' + m.role + '|>' + m.content|trim + '\n' }}"
      "{% endfor %}");
  ASSERT_TRUE(parsed.ok());
  const auto text = parsed->Render({{"messages", *FromJson(json + "]", 10)}}, 0);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_GT(text->size(), size_t{4'000'000});
}

TEST(FromJsonTest, RefusesWhatItCannotHold) {
  EXPECT_EQ(Message(FromJson("[1,", 10).status()).substr(0, 14), "not valid from");
  EXPECT_FALSE(FromJson("", 10).ok());
  EXPECT_FALSE(FromJson("{\"a\": 1} x", 10).ok());
  EXPECT_FALSE(FromJson("\"\\ud800\"", 10).ok());
  EXPECT_EQ(Message(FromJson("18446744073709551615", 10).status()), "a number beyond 64 bits");
  EXPECT_EQ(Message(FromJson("123456789012345678901234567890", 10).status()),
            "a number beyond 64 bits");
  EXPECT_EQ(Message(FromJson(std::string(100'000, '['), 10).status()), "nested deeper than 10");
  EXPECT_TRUE(FromJson("[[[[[[[[[[]]]]]]]]]]", 10).ok());
}

}  // namespace
}  // namespace sluice::engine::chat
