#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"

#include "tests/testing/gguf_writer.h"

namespace sluice::testing {

inline constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
inline constexpr absl::StatusCode kUnsupported = absl::StatusCode::kUnimplemented;
inline constexpr absl::StatusCode kOk = absl::StatusCode::kOk;

// One edit of a good file, and what loading the result must come to. Value.
struct HostileCase {
  std::string name;  // "M05_version_0": the number in README.md, and what is edited
  std::function<void(GgufDraft&)> edit;
  std::vector<std::string> says;     // parts of the message
  absl::StatusCode code = kInvalid;  // kOk: the model loads and serves
  // What is missing lies nowhere, and what is wrong with the whole file neither.
  bool has_offset = true;
  std::function<void(std::string&)> edit_bytes = nullptr;  // of the file that was drafted
};
inline void PrintTo(const HostileCase& c, std::ostream* out) { *out << c.name; }

// Header, keys, alignment, tensor records: whatever the file is a model of.
std::vector<HostileCase> FormatCases();
// Facts and tensors of a model.
std::vector<HostileCase> ModelCases();
// Byte-level vocabulary, chat template, parts of a model.
std::vector<HostileCase> VocabularyCases();
// Edits of a file with a SentencePiece vocabulary.
std::vector<HostileCase> SentencePieceCases();

// The good files: 2 layers, 64 wide, about 300 KB.
GgufDraft GoodModel();
GgufDraft GoodSentencePieceModel();

// Edits that several tables make.
inline auto SetKey(std::string key, engine::MetadataValue value) {
  return [key, value](GgufDraft& draft) { draft.Set(key, value); };
}
inline auto SetText(std::string key, std::string value) {
  return [key, value](GgufDraft& draft) { draft.SetString(key, value); };
}
inline auto RemoveKey(std::string key) {
  return [key](GgufDraft& draft) { draft.Remove(key); };
}

}  // namespace sluice::testing
