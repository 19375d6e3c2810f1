// A chat template, parsed and rendered on one conversation: every input ends at a limit or gives
// valid UTF-8, the same a second time, of which every byte has a mark.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/chat/chat_template.h"
#include "engine/chat/json_text.h"
#include "engine/tokenizer/utf8.h"

namespace {

using namespace sluice::engine;
using chat::Value;

using Variables = std::vector<std::pair<std::string, Value>>;

constexpr char kVariables[] =
    R"({"messages": [{"role": "system", "content": "Be brief."},)"
    R"( {"role": "user", "content": " Hi\n"},)"
    R"( {"role": "assistant", "content": "<think>x</think>é", "tool_calls":)"
    R"( [{"function": {"name": "f", "arguments": {"a": 1, "b": [true, null, 1.5]}}}]}],)"
    R"( "tools": [{"name": "f"}], "n": 7, "x": 2.5, "s": "Grüße, Welt", "l": [3, 1, 2],)"
    R"( "d": {"b": 1, "a": {"c": []}}, "yes": true, "nil": null})";

// Small enough that an input takes a millisecond at most.
chat::Limits SmallLimits() {
  chat::Limits limits;
  limits.max_steps = 20'000;
  limits.max_text_bytes = 1 << 16;
  limits.max_built_bytes = 1 << 22;
  return limits;
}

void Check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

// Anew for each rendering: generators are used up.
Variables MakeVariables() {
  const auto json = chat::FromJson(kVariables, 100);
  Check(json.ok(), "the variables are no JSON");
  Variables variables = {{"bos_token", Value::Template("<s>")},
                         {"add_generation_prompt", Value(true)}};
  for (const auto& [name, value] : json->dict().entries)
    variables.emplace_back(name.bytes(), value);
  return variables;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static const chat::Limits limits = SmallLimits();
  static const Variables variables = MakeVariables();
  const std::string_view source(reinterpret_cast<const char*>(bytes), size);
  const auto parsed = chat::ChatTemplate::Parse(source, limits);
  if (!parsed.ok()) return 0;
  const auto text = parsed->Render(variables, 0);
  const auto again = parsed->Render(variables, 0);
  Check(text.ok() == again.ok(), "a second rendering ends otherwise");
  if (!text.ok()) {
    Check(text.status().message() == again.status().message(), "another error");
    return 0;
  }
  Check(text->bytes() == again->bytes(), "another text");
  Check(text->size() <= limits.max_text_bytes, "more text than the limit");
  Check(FindInvalidUtf8(text->bytes()) == std::string_view::npos, "invalid UTF-8");
  size_t end = 0;
  for (const MarkedText::Run& run : text->Runs()) {
    Check(run.begin == end && run.end > run.begin, "a gap between runs");
    end = run.end;
  }
  Check(end == text->size(), "runs do not cover the text");
  return 0;
}
