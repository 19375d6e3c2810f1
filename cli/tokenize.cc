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
#include "engine/tokenizer/tokenizer.h"

namespace sluice::cli {
namespace {

constexpr char kName[] = "tokenize";

struct TokenizeFlags {
  std::string model;
  bool no_special = false;
  bool no_bos = false;
  bool json = false;
};

absl::StatusOr<std::string> ReadStdin() {
  std::string text;
  char buffer[1 << 16];
  size_t count = 0;
  while ((count = std::fread(buffer, 1, sizeof(buffer), stdin)) > 0) text.append(buffer, count);
  if (std::ferror(stdin) != 0) return engine::DataLoss("standard input cannot be read");
  return text;
}

std::string ToJson(const std::vector<engine::TokenId>& ids, const engine::Tokenizer& tokenizer) {
  nlohmann::ordered_json json;
  json["ids"] = ids;
  json["pieces"] = nlohmann::ordered_json::array();
  for (const engine::TokenId id : ids)
    json["pieces"].push_back(std::string(tokenizer.TokenBytes(id)));
  // A token may be a part of a code point, which JSON cannot hold: U+FFFD stands for it.
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
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
  ASSIGN_OR_RETURN(const std::string text, ReadStdin());
  ASSIGN_OR_RETURN(const std::vector<engine::TokenId> ids,
                   tokenizer->Encode(text, {!flags.no_bos, !flags.no_special}));
  std::string line;
  if (flags.json) {
    line = ToJson(ids, *tokenizer);
  } else {
    for (const engine::TokenId id : ids) line += (line.empty() ? "" : " ") + std::to_string(id);
  }
  std::printf("%s\n", line.c_str());
  return absl::OkStatus();
}

int Run(const TokenizeFlags& flags) {
  if (flags.model.empty()) return UsageError(kName, "give --model FILE");
  const absl::Status status = Tokenize(flags);
  if (status.ok()) return FinishOutput(kName, kExitOk);
  PrintError(kName, engine::Message(status));
  return kExitFailed;
}

}  // namespace

Command AddTokenize(CLI::App& program) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* const app =
      program.add_subcommand(kName, "Print the token ids of the text on standard input");
  AddModelFlag(*app, &flags->model);
  app->add_flag("--no-special", flags->no_special,
                "Take control tokens in the text as ordinary characters");
  app->add_flag("--no-bos", flags->no_bos, "Do not put the model's BOS before the text");
  app->add_flag("--json", flags->json, "An object with ids and pieces instead of a line of ids");
  app->footer(
      "All of the input is taken, a newline at its end included. The file needs a vocabulary "
      "only.\n"
      "\n"
      "Example:\n"
      "  printf 'Hello world' | sluice tokenize --model smollm2.gguf");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace sluice::cli
