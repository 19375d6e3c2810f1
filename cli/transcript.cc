#include "cli/transcript.h"

#include <algorithm>
#include <cctype>
#include <cstdarg>
#include <set>
#include <string_view>

namespace sluice::cli {
namespace {

std::string Format(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string Format(const char* format, ...) {
  char text[96];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return text;
}

// "7042 -0.0712 | 7042 -0.0712, 28 -2.5521".
std::string LogprobLine(const engine::TokenLogprobs& token) {
  std::string line = Format("%d %.6f", token.token, token.logprob);
  for (size_t i = 0; i < token.top.size(); ++i) {
    line += Format("%s%d %.6f", i == 0 ? " | " : ", ", token.top[i].token, token.top[i].logprob);
  }
  return line + "\n";
}

std::string LowerName(engine::FinishReason reason) {
  std::string name(engine::Name(reason));
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name;
}

}  // namespace

Transcript::Transcript(std::FILE* out, Form form, int num_sequences, engine::Time start)
    : out_(out), form_(form), start_(start), outputs_(num_sequences), last_token_(start) {}

bool Transcript::Add(const engine::TokenChunk& chunk, engine::Time now) {
  if (!chunk.token_ids.empty()) {
    const auto count = static_cast<int64_t>(chunk.token_ids.size());
    if (!first_token_) {
      first_token_ = now;
      num_first_tokens_ = count;
    }
    last_token_ = now;
    num_tokens_ += count;
  }
  if (chunk.index < 0 || chunk.index >= static_cast<int32_t>(outputs_.size())) return true;
  Output& output = outputs_[chunk.index];
  output.logprobs.insert(output.logprobs.end(), chunk.logprobs.begin(), chunk.logprobs.end());
  if (form_ == Form::kText) {
    Print(chunk.index, chunk.text);
  } else {
    std::string ids;
    for (const engine::TokenId id : chunk.token_ids) ids += std::to_string(id) + " ";
    Print(chunk.index, ids);
  }
  if (chunk.sequence_end) {
    output.end = *chunk.sequence_end;
    PrintEnd(chunk.index);
  }
  return !write_failed_;
}

void Transcript::Finish() {
  if (line_open_) Write("\n");
}

void Transcript::Print(int32_t index, const std::string& text) {
  if (outputs_.size() == 1) {
    Write(text);
  } else {
    outputs_[index].held += text;
  }
}

void Transcript::PrintEnd(int32_t index) {
  Output& output = outputs_[index];
  if (outputs_.size() > 1) {
    Write("--- sequence " + std::to_string(index) + " ---\n" + output.held);
    output.held.clear();
    Finish();
  }
  if (!output.logprobs.empty()) {
    Finish();
    for (const engine::TokenLogprobs& token : output.logprobs) Write(LogprobLine(token));
  }
}

void Transcript::Write(const std::string& text) {
  if (text.empty() || write_failed_) return;
  line_open_ = text.back() != '\n';
  write_failed_ =
      std::fwrite(text.data(), 1, text.size(), out_) != text.size() || std::fflush(out_) != 0;
}

std::string Transcript::Summary(const engine::Usage& usage) const {
  std::set<std::string> reasons;
  for (const Output& output : outputs_) {
    if (output.end.reason != engine::FinishReason::kNone) {
      reasons.insert(LowerName(output.end.reason));
    }
  }
  std::string line = std::to_string(num_tokens_) + (num_tokens_ == 1 ? " token" : " tokens");
  std::string list;
  for (const std::string& reason : reasons) list += (list.empty() ? "" : ", ") + reason;
  if (!list.empty()) line += " (" + list + ")";
  // The first chunk waited for the prompt, so the rate is that of the tokens after it.
  const double decode = engine::Seconds(last_token_ - first_token_.value_or(last_token_));
  if (decode > 0 && num_tokens_ > num_first_tokens_) {
    line +=
        Format(", %.1f tokens/s", static_cast<double>(num_tokens_ - num_first_tokens_) / decode);
  }
  if (first_token_) {
    line += Format(", first token after %.1f ms", engine::Seconds(*first_token_ - start_) * 1e3);
  }
  if (usage.prompt_tokens > 0) line += Format(", prompt of %d tokens", usage.prompt_tokens);
  return line;
}

}  // namespace sluice::cli
