#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"

#include "engine/engine.h"
#include "engine/sampling/sampling_params.h"

namespace sluice::cli {

// "4096", "512M", "2G", "1GiB", "1.5g": bytes, all units powers of 1024.
absl::StatusOr<uint64_t> ParseByteSize(const std::string& text);
// "500ms", "30s", "2m", "1h"; a bare number is seconds.
absl::StatusOr<std::chrono::milliseconds> ParseDuration(const std::string& text);
// "1,2,3", spaces allowed after commas.
absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const std::string& text);
// FAILED_PRECONDITION in builds that hold no planted bugs.
absl::StatusOr<kernels::PlantedBug> ParsePlantedBug(const std::string& name);

// "1.4 GiB", "93.8 MiB", "512 B".
std::string FormatBytes(uint64_t bytes);

// Checks for CLI11 options. Unlike CLI11's own they refuse NaN and say what was expected.
CLI::Validator Between(double minimum, double maximum, bool minimum_excluded = false);
CLI::Validator IntegerBetween(int64_t minimum, int64_t maximum);
CLI::Validator Uint64();  // CLI11 itself takes -1 for 2^64 - 1
CLI::Validator OneOf(std::vector<std::string> words);
// "cpu", or "cuda:" and a number.
CLI::Validator Device();
// At least one character, none of them a control character.
CLI::Validator PrintableText();

// One text style for the help of every command: grouped flags, "[default]" after the description.
std::shared_ptr<CLI::Formatter> HelpFormatter();

// Adds --model as every command but inspect has it.
CLI::Option* AddModelFlag(CLI::App& app, std::string* model);
// Adds the flags that set how a model is loaded and scheduled, in group `group`.
void AddEngineFlags(CLI::App& app, engine::EngineOptions* options, const std::string& group);
// --threads and --isa only, for commands that run one engine.
void AddComputeFlags(CLI::App& app, engine::EngineOptions* options, const std::string& group);
// The flags that say how tokens are drawn. Returns that of the seed, which may be left out.
CLI::Option* AddSamplingFlags(CLI::App& app, engine::SamplingParams* sampling, uint64_t* seed,
                              const std::string& group);
// --chat-template.
void AddChatTemplateFlag(CLI::App& app, engine::EngineOptions* options, const std::string& group);
// The hidden --plant-bug.
void AddPlantBugFlag(CLI::App& app, engine::EngineOptions* options);
// --failpoint: what goes wrong on purpose, in programs that were built for it
// (engine/base/failpoint.h). Not shown in help.
void AddFailpointFlag(CLI::App& app);
CLI::Option* AddByteSizeFlag(CLI::App& app, const std::string& name, uint64_t* bytes,
                             const std::string& description);
CLI::Option* AddDurationFlag(CLI::App& app, const std::string& name,
                             std::chrono::milliseconds* duration, const std::string& description);

// Prints "sluice COMMAND: message" on stderr, on one line.
void PrintError(const std::string& command, const std::string& message);
// The last word of a command that writes on stdout: `exit_code`, or kExitFailed and a line on
// stderr when some of its output was lost (a full disk, a closed descriptor).
int FinishOutput(const std::string& command, int exit_code);
// PrintError with a pointer to the help. Returns kExitUsage.
int UsageError(const std::string& command, const std::string& message);

}  // namespace sluice::cli
