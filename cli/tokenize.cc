#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/flags.h"
#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "engine/model_file/model_file.h"
#include "engine/tokenizer/detokenizer.h"
#include "engine/tokenizer/tokenizer.h"

namespace sluice::cli {
namespace {

constexpr char kTokenizeName[] = "tokenize";

struct TokenizeFlags {
  std::string model;
  bool no_special = false;
  bool no_bos = false;
  bool json = false;
  bool jsonl = false;
};

absl::StatusOr<std::string> ReadStdin() {
  std::string text;
  char buffer[1 << 16];
  size_t count = 0;
  while ((count = std::fread(buffer, 1, sizeof(buffer), stdin)) > 0) text.append(buffer, count);
  if (std::ferror(stdin) != 0) return engine::DataLoss("standard input cannot be read");
  return text;
}

std::string ToJson(const std::vector<engine::TokenId>& ids,
                   const std::shared_ptr<const engine::Tokenizer>& tokenizer) {
  nlohmann::ordered_json json;
  json["ids"] = ids;
  json["pieces"] = nlohmann::ordered_json::array();
  std::string text;
  engine::Detokenizer detokenizer(tokenizer, /*skip_special=*/true, /*continues_text=*/false);
  for (const engine::TokenId id : ids) {
    json["pieces"].push_back(std::string(tokenizer->TokenBytes(id)));
    detokenizer.Append(id, text);
  }
  detokenizer.Finish(text);
  json["text"] = text;
  // A token may be a part of a code point, which JSON cannot hold: U+FFFD stands for it.
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

absl::Status PrintTokens(const TokenizeFlags& flags,
                         const std::shared_ptr<const engine::Tokenizer>& tokenizer,
                         const std::string& text) {
  ASSIGN_OR_RETURN(const std::vector<engine::TokenId> ids,
                   tokenizer->Encode(text, {!flags.no_bos, !flags.no_special}));
  std::string line;
  if (flags.json) {
    line = ToJson(ids, tokenizer);
  } else {
    for (const engine::TokenId id : ids) line += (line.empty() ? "" : " ") + std::to_string(id);
  }
  std::printf("%s\n", line.c_str());
  return absl::OkStatus();
}

absl::Status Tokenize(const TokenizeFlags& flags) {
  // Only the vocabulary is read: no weights, so a file of 40 GB answers at once.
  ASSIGN_OR_RETURN(const std::shared_ptr<const engine::ModelFile> file,
                   engine::ModelFile::Open(flags.model));
  std::vector<std::string> warnings;
  ASSIGN_OR_RETURN(const std::shared_ptr<const engine::Tokenizer> tokenizer,
                   engine::Tokenizer::FromFile(*file, &warnings));
  for (const std::string& warning : warnings) {
    std::fprintf(stderr, "warning: %s\n", warning.c_str());
  }
  ASSIGN_OR_RETURN(const std::string input, ReadStdin());
  if (!flags.jsonl) return PrintTokens(flags, tokenizer, input);
  size_t line_number = 0;
  for (size_t begin = 0; begin < input.size();) {
    const size_t end = std::min(input.find('\n', begin), input.size());
    const auto text = nlohmann::json::parse(input.data() + begin, input.data() + end, nullptr,
                                            /*allow_exceptions=*/false);
    begin = end + 1;
    ++line_number;
    absl::Status status = engine::InvalidArgument("expected a JSON string");
    if (text.is_string()) {
      status = PrintTokens(flags, tokenizer, text.get_ref<const std::string&>());
    }
    if (!status.ok()) return engine::Prefix("line " + std::to_string(line_number), status);
  }
  return absl::OkStatus();
}

int Run(const TokenizeFlags& flags) {
  if (flags.model.empty()) return UsageError(kTokenizeName, "give --model PATH");
  const absl::Status status = Tokenize(flags);
  if (status.ok()) return FinishOutput(kTokenizeName, kExitOk);
  PrintError(kTokenizeName, engine::Message(status));
  return kExitFailed;
}

}  // namespace

Command AddTokenize(CLI::App& program) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* const app =
      program.add_subcommand(kTokenizeName, "Print the token ids of the text on standard input");
  AddModelFlag(*app, &flags->model);
  app->add_flag("--no-special", flags->no_special,
                "Take control tokens in the text as ordinary characters");
  app->add_flag("--no-bos", flags->no_bos, "Do not put the model's BOS before the text");
  app->add_flag("--json", flags->json,
                "An object with ids, pieces and decoded text instead of a line of ids");
  app->add_flag("--jsonl", flags->jsonl,
                "Each input line is a text, as a JSON string; a line out for each");
  app->footer(
      "All of the input is one text, a newline at its end included. The file needs a vocabulary "
      "only.\n"
      "\n"
      "Example:\n"
      "  printf 'Hello world' | sluice tokenize --model smollm2.gguf");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace sluice::cli
