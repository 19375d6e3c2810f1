#include "cli/flags.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string_view>
#include <thread>
#include <utility>

#include "cli/exit_codes.h"

#include "engine/base/failpoint.h"
#include "engine/base/status.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::cli {
namespace {

using engine::InvalidArgument;

// Splits "1.5GiB" into a number that is finite and not negative, and its unit in lower case.
struct Quantity {
  double number = 0;
  std::string unit;
};
std::optional<Quantity> ParseQuantity(const std::string& text) {
  if (text.empty() || std::isdigit(static_cast<unsigned char>(text[0])) == 0) return std::nullopt;
  Quantity quantity;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), quantity.number,
                                            std::chars_format::fixed);
  if (error != std::errc() || !std::isfinite(quantity.number)) return std::nullopt;
  for (const char* c = end; c != text.data() + text.size(); ++c) {
    quantity.unit += static_cast<char>(std::tolower(static_cast<unsigned char>(*c)));
  }
  return quantity;
}

std::string Shortest(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  return text;
}

// What a user typed, cut to a length that keeps a message on one line.
std::string Quote(const std::string& text) {
  constexpr size_t kMost = 64;
  return "'" + (text.size() > kMost ? text.substr(0, kMost) + "..." : text) + "'";
}

class GroupedFormatter final : public CLI::Formatter {
 public:
  GroupedFormatter() { column_width(34); }

  // CLI11 leaves two empty lines between groups.
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override {
    std::string help = CLI::Formatter::make_help(app, std::move(name), mode);
    for (size_t at = 0; (at = help.find("\n\n\n", at)) != std::string::npos;) help.erase(at, 1);
    return help;
  }
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_size() == 0) return "";
    return " " + option->get_type_name();
  }
  std::string make_option_desc(const CLI::Option* option) const override {
    std::string text = option->get_description();
    if (!option->get_default_str().empty()) text += " [" + option->get_default_str() + "]";
    if (option->get_required()) text += " (required)";
    return text;
  }
};

}  // namespace

absl::StatusOr<uint64_t> ParseByteSize(const std::string& text) {
  const absl::Status bad =
      InvalidArgument("expected a size such as 4096, 512M, 2G or 1GiB, got " + Quote(text));
  const std::optional<Quantity> quantity = ParseQuantity(text);
  if (!quantity) return bad;
  std::string_view unit = quantity->unit;
  constexpr std::string_view kUnits = "kmgt";
  int power = 0;
  if (!unit.empty() && kUnits.find(unit[0]) != std::string_view::npos) {
    power = static_cast<int>(kUnits.find(unit[0])) + 1;
    unit.remove_prefix(1);
    if (!unit.empty() && unit[0] == 'i') {
      unit.remove_prefix(1);
      if (unit != "b") return bad;  // "2Gi" is a typing error as likely as a unit
    }
  }
  if (unit != "" && unit != "b") return bad;
  const double bytes = std::ldexp(quantity->number, 10 * power);
  if (bytes >= 9.2e18) return bad;
  return static_cast<uint64_t>(bytes);
}

absl::StatusOr<std::chrono::milliseconds> ParseDuration(const std::string& text) {
  const absl::Status bad =
      InvalidArgument("expected a time such as 500ms, 30s or 2m, got " + Quote(text));
  const std::optional<Quantity> quantity = ParseQuantity(text);
  if (!quantity) return bad;
  double scale = 0;
  if (quantity->unit == "ms") scale = 1;
  if (quantity->unit == "s" || quantity->unit.empty()) scale = 1e3;
  if (quantity->unit == "m") scale = 60e3;
  if (quantity->unit == "h") scale = 3600e3;
  const double milliseconds = quantity->number * scale;
  constexpr double kYear = 365.0 * 24 * 3600e3;
  if (scale == 0 || milliseconds > kYear) return bad;
  return std::chrono::milliseconds(std::llround(milliseconds));
}

absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const std::string& text) {
  std::vector<int32_t> ids;
  const char* c = text.data();
  const char* const end = text.data() + text.size();
  const absl::Status bad = InvalidArgument("expected token ids such as 1,2,3, got " + Quote(text));
  while (true) {
    while (c != end && *c == ' ') ++c;
    int32_t id = 0;
    const auto [after, error] = std::from_chars(c, end, id);
    if (error != std::errc() || id < 0) return bad;
    ids.push_back(id);
    c = after;
    while (c != end && *c == ' ') ++c;
    if (c == end) return ids;
    if (*c != ',') return bad;
    ++c;
  }
}

absl::StatusOr<kernels::PlantedBug> ParsePlantedBug(const std::string& name) {
  using kernels::PlantedBug;
  constexpr std::pair<std::string_view, PlantedBug> kBugs[] = {
      {"none", PlantedBug::kNone},
      {"kv-head0", PlantedBug::kKvHeadZeroOnly},
      {"prefill-stride", PlantedBug::kPrefillStride},
      {"ffn-4e", PlantedBug::kFfnFourTimesWidth},
      {"k-bias", PlantedBug::kKeyBiasDropped},
      {"rope-base", PlantedBug::kRopeBaseTenThousand},
      {"vocab-unpadded", PlantedBug::kVocabularyUnpadded},
      {"device-fault", PlantedBug::kDeviceFault},
  };
  if (!kernels::kPlantedBugsBuilt) {
    return engine::FailedPrecondition(
        "--plant-bug: this program holds no planted bugs, sluice_planted of a tree with tests "
        "does");
  }
  std::string names;
  for (const auto& [known, bug] : kBugs) {
    if (name == known) return bug;
    if (!names.empty()) names += ", ";
    names += known;
  }
  return InvalidArgument("--plant-bug: expected one of " + names + ", got " + Quote(name));
}

std::string FormatBytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

CLI::Validator Between(double minimum, double maximum, bool minimum_excluded) {
  const std::string expected = std::string("expected a number in ") +
                               (minimum_excluded ? "(" : "[") + Shortest(minimum) + ", " +
                               Shortest(maximum) + "]";
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        double value = 0;
        const char* const end = text.data() + text.size();
        const auto [after, error] = std::from_chars(text.data(), end, value);
        const bool ok = error == std::errc() && after == end && value <= maximum &&
                        (minimum_excluded ? value > minimum : value >= minimum);
        return ok ? "" : expected + ", got " + Quote(text);
      },
      "");
}

CLI::Validator IntegerBetween(int64_t minimum, int64_t maximum) {
  const std::string expected = maximum == std::numeric_limits<int32_t>::max()
                                   ? "expected a whole number from " + std::to_string(minimum)
                                   : "expected a whole number from " + std::to_string(minimum) +
                                         " to " + std::to_string(maximum);
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        int64_t value = 0;
        const char* const end = text.data() + text.size();
        const auto [after, error] = std::from_chars(text.data(), end, value);
        const bool ok =
            error == std::errc() && after == end && value >= minimum && value <= maximum;
        return ok ? "" : expected + ", got " + Quote(text);
      },
      "");
}

CLI::Validator Uint64() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        uint64_t value = 0;
        const char* const end = text.data() + text.size();
        const auto [after, error] = std::from_chars(text.data(), end, value);
        return error == std::errc() && after == end
                   ? ""
                   : "expected a whole number from 0 to 2^64 - 1, got " + Quote(text);
      },
      "");
}

CLI::Validator OneOf(std::vector<std::string> words) {
  return CLI::Validator(
      [words = std::move(words)](std::string& text) -> std::string {
        std::string list;
        for (const std::string& word : words) {
          if (text == word) return "";
          list += (list.empty() ? "" : ", ") + word;
        }
        return "expected one of " + list + ", got " + Quote(text);
      },
      "");
}

CLI::Validator Device() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        const std::string prefix = "cuda:";
        const bool ok =
            text == "cpu" ||
            (text.rfind(prefix, 0) == 0 &&
             IntegerBetween(0, std::numeric_limits<int32_t>::max())(text.substr(prefix.size()))
                 .empty());
        return ok ? "" : "expected cpu or cuda:N, got " + Quote(text);
      },
      "");
}

CLI::Validator PrintableText() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        return !text.empty() && engine::IsPrintableUtf8(text)
                   ? ""
                   : "expected printable UTF-8, got " + std::to_string(text.size()) + " bytes";
      },
      "");
}

std::shared_ptr<CLI::Formatter> HelpFormatter() { return std::make_shared<GroupedFormatter>(); }

CLI::Option* AddModelFlag(CLI::App& app, std::string* model) {
  return app.add_option("--model", *model, "GGUF file, or directory with one or with safetensors")
      ->type_name("PATH");
}

CLI::Option* AddByteSizeFlag(CLI::App& app, const std::string& name, uint64_t* bytes,
                             const std::string& description) {
  // The check rewrites "2G" into bytes, so that the option is bound to a plain number.
  return app.add_option(name, *bytes, description)
      ->type_name("SIZE")
      ->transform(CLI::Validator(
          [](std::string& text) -> std::string {
            const absl::StatusOr<uint64_t> size = ParseByteSize(text);
            if (!size.ok()) return engine::Message(size.status());
            text = std::to_string(*size);
            return "";
          },
          ""));
}

CLI::Option* AddDurationFlag(CLI::App& app, const std::string& name,
                             std::chrono::milliseconds* duration, const std::string& description) {
  return app
      .add_option_function<std::string>(
          name,
          [duration](const std::string& text) {
            const absl::StatusOr<std::chrono::milliseconds> parsed = ParseDuration(text);
            if (parsed.ok()) *duration = *parsed;  // the check below has refused the rest
          },
          description)
      ->type_name("TIME")
      ->check(CLI::Validator(
          [](std::string& text) -> std::string {
            const absl::StatusOr<std::chrono::milliseconds> parsed = ParseDuration(text);
            return parsed.ok() ? "" : engine::Message(parsed.status());
          },
          ""));
}

void AddComputeFlags(CLI::App& app, engine::EngineOptions* options, const std::string& group) {
  // More threads only get in each other's way, and far more cannot be started.
  const int64_t most_threads = 4 * std::max<int64_t>(1, std::thread::hardware_concurrency());
  app.add_option("--threads", options->num_threads, "Threads of each engine; 0: cores / engines")
      ->type_name("N")
      ->check(CLI::Validator(
          [most_threads](std::string& text) -> std::string {
            const std::string problem = IntegerBetween(0, most_threads)(text);
            return problem.empty() ? "" : problem + " (at most 4 for each hardware thread)";
          },
          ""))
      ->capture_default_str()
      ->group(group);
  app.add_option("--device", options->device, "cpu, or cuda:N for an NVIDIA GPU")
      ->type_name("NAME")
      ->check(Device())
      ->capture_default_str()
      ->group(group);
  app.add_option_function<std::string>(
         "--isa", [options](const std::string& isa) { options->force_avx2 = isa == "avx2"; },
         "Vector instructions: auto, avx2 (equal bits)")
      ->type_name("NAME")
      ->check(OneOf({"auto", "avx2"}))
      ->default_str("auto")
      ->group(group);
}

void AddEngineFlags(CLI::App& app, engine::EngineOptions* options, const std::string& group) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  AddComputeFlags(app, options, group);
  AddByteSizeFlag(app, "--kv-memory", &options->kv_memory_bytes,
                  "KV cache of each engine (512M, 2G); 0: by model and memory")
      ->capture_default_str()
      ->group(group);
  app.add_option_function<std::string>(
         "--kv-dtype",
         [options](const std::string& type) {
           options->kv_dtype = type == "f32" ? engine::KvDType::kF32 : engine::KvDType::kF16;
         },
         "KV cache elements: f32; f16 takes half, less exact")
      ->type_name("TYPE")
      ->check(OneOf({"f16", "f32"}))
      ->default_str("cpu f32, cuda f16")
      ->group(group);
  app.add_option_function<std::string>(
         "--numerics",
         [options](const std::string& mode) { options->fast_numerics = mode == "fast"; },
         "exact: equal bits in any company; fast: prompts sooner on a GPU")
      ->type_name("MODE")
      ->check(OneOf({"exact", "fast"}))
      ->default_str("exact")
      ->group(group);
  app.add_option("--gpu-memory-fraction", options->gpu_memory_fraction,
                 "Of a GPU's free memory to be used (0.05 to 1)")
      ->type_name("F")
      ->check(CLI::Range(0.05, 1.0).description(""))
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-context", options->max_context,
                 "Tokens of a sequence, prompt included; 0: the model's")
      ->type_name("TOKENS")
      ->check(IntegerBetween(0, kMost))
      ->capture_default_str()
      ->group(group);
  app.add_option_function<std::string>(
         "--prefix-cache",
         [options](const std::string& state) { options->prefix_cache = state == "on"; },
         "on, off: keep computed pages of prompts for later ones that begin alike")
      ->type_name("STATE")
      ->check(OneOf({"on", "off"}))
      ->default_str("on")
      ->group(group);
  app.add_option("--max-batch", options->max_batch, "Running sequences of each engine")
      ->type_name("N")
      ->check(IntegerBetween(1, 4096))
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-step-tokens", options->max_step_tokens,
                 "Tokens that one step computes at most")
      ->type_name("TOKENS")
      ->check(IntegerBetween(1, 65'536))
      ->capture_default_str()
      ->group(group);
  app.add_option("--model-sha256", options->model_sha256,
                 "Load the file only when it has this hash (64 hex digits)")
      ->type_name("HEX")
      ->group(group);
  app.add_flag("--mlock", options->lock_memory,
               "Lock weights and KV cache in memory (needs ulimit -l)")
      ->group(group);
  app.add_flag_function(
         "--no-mmap", [](int64_t) {},
         "Taken for llama.cpp's sake, changes nothing: files are never mapped")
      ->group(group);
}

CLI::Option* AddSamplingFlags(CLI::App& app, engine::SamplingParams* sampling, uint64_t* seed,
                              const std::string& group) {
  const auto add = [&](const char* name, auto& value, const char* type, const char* text,
                       const CLI::Validator& check) {
    app.add_option(name, value, text)
        ->type_name(type)
        ->check(check)
        ->capture_default_str()
        ->group(group);
  };
  add("--temperature", sampling->temperature, "T", "0 takes the most likely token",
      Between(0, 100));
  add("--top-k", sampling->top_k, "N", "Among the N likeliest tokens; 0: all",
      IntegerBetween(0, std::numeric_limits<int32_t>::max()));
  add("--typical-p", sampling->typical_p, "P",
      "Among those about as likely as expected that sum to P; not on GPUs yet",
      Between(0, 1, true));
  add("--top-p", sampling->top_p, "P", "Among the likeliest that sum to P", Between(0, 1, true));
  add("--min-p", sampling->min_p, "P", "Among those at least P times as likely as the best",
      Between(0, 1));
  add("--repetition-penalty", sampling->repetition_penalty, "X",
      "Above 1: tokens of prompt and output get less likely", Between(0, 100, true));
  add("--presence-penalty", sampling->presence_penalty, "X",
      "Subtracted from the logits of tokens in the output", Between(-2, 2));
  add("--frequency-penalty", sampling->frequency_penalty, "X",
      "The same, times how often they came", Between(-2, 2));
  return app.add_option("--seed", *seed, "Same seed, same text; unset: a new one each time")
      ->type_name("N")
      ->check(Uint64())
      ->group(group);
}

void AddChatTemplateFlag(CLI::App& app, engine::EngineOptions* options, const std::string& group) {
  app.add_option("--chat-template", options->chat_template_path,
                 "Jinja file to make prompts of chats with; unset: the model's own")
      ->type_name("FILE")
      ->group(group);
}

void AddPlantBugFlag(CLI::App& app, engine::EngineOptions* options) {
  app.add_option_function<std::string>(
         "--plant-bug",
         [options](const std::string& name) {
           const absl::StatusOr<kernels::PlantedBug> bug = ParsePlantedBug(name);
           if (bug.ok()) options->planted_bug = *bug;  // the check below has refused the rest
         },
         "Make the model's path wrong on purpose (test builds)")
      ->type_name("NAME")
      ->check(CLI::Validator(
          [](std::string& name) -> std::string {
            const absl::StatusOr<kernels::PlantedBug> bug = ParsePlantedBug(name);
            return bug.ok() ? "" : engine::Message(bug.status());
          },
          ""))
      ->group("");
}

void AddFailpointFlag(CLI::App& app) {
  app.add_option_function<std::vector<std::string>>(
         "--failpoint", [](const std::vector<std::string>&) {},
         "Make something go wrong on purpose (test builds)")
      ->type_name("NAME=ACTION")
      ->check(CLI::Validator(
          [](std::string& setting) { return engine::Message(engine::SetFailpoint(setting)); }, ""))
      ->group("");
}

void PrintError(const std::string& command, const std::string& message) {
  std::string line = "sluice" + (command.empty() ? "" : " " + command) + ": ";
  for (const char c : message) line += c == '\n' || c == '\r' ? ' ' : c;
  std::fprintf(stderr, "%s\n", line.c_str());
}

int FinishOutput(const std::string& command, int exit_code) {
  if (std::ferror(stdout) == 0 && std::fflush(stdout) == 0) return exit_code;
  PrintError(command, "standard output: cannot be written");
  return kExitFailed;
}

int UsageError(const std::string& command, const std::string& message) {
  PrintError(command,
             message + " (see sluice " + (command.empty() ? "" : command + " ") + "--help)");
  return kExitUsage;
}

}  // namespace sluice::cli
