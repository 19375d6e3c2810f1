// Renders chat templates for the comparison with Python's jinja2
// (tests/e2e/test_chat_templates.py). Each line in is {"template": text, "variables": object,
// "now": seconds}; each line out is
// {"text": ...} or {"error": ..., "parsed": whether the template itself was good}.
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "engine/chat/chat_template.h"
#include "engine/chat/json_text.h"

namespace {

using sluice::engine::Message;
using namespace sluice::engine::chat;

nlohmann::json Render(const nlohmann::json& job) {
  const auto parsed = ChatTemplate::Parse(job.at("template").get<std::string>());
  if (!parsed.ok()) return {{"error", Message(parsed.status())}, {"parsed", false}};
  std::vector<std::pair<std::string, Value>> variables;
  // As text, because nlohmann's objects forget the order of their keys.
  const std::string text = job.at("variables").get<std::string>();
  const auto values = FromJson(text, 100);
  if (!values.ok()) return {{"error", Message(values.status())}, {"parsed", false}};
  for (const auto& [name, value] : values->dict().entries) {
    variables.emplace_back(name.bytes(), value);
  }
  const auto rendered = parsed->Render(std::move(variables), job.value("now", int64_t{0}));
  if (!rendered.ok()) return {{"error", Message(rendered.status())}, {"parsed", true}};
  return {{"text", rendered->bytes()}};
}

}  // namespace

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::cout << Render(nlohmann::json::parse(line)).dump() << std::endl;
  }
}
