#include "engine/safetensors/safetensors_directory.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "engine/base/hash.h"
#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr std::string_view kSingleName = "model.safetensors";
constexpr std::string_view kEnding = ".safetensors";
constexpr uint64_t kMaxJsonBytes = uint64_t{128} << 20;
constexpr size_t kMaxShards = 4096;

using NameMap = std::unordered_map<std::string, std::string, StringHash, StringEqual>;

// Names of files that tensors may lie in, ascending.
absl::StatusOr<std::set<std::string>> ListTensorFiles(const std::string& directory) {
  std::set<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator entry(directory, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with("model") && name.ends_with(kEnding)) names.insert(name);
  }
  if (error) return FailedPrecondition(directory + ": cannot be listed: " + error.message());
  return names;
}

bool IsPlainName(std::string_view name) {
  return name.ends_with(kEnding) && name.size() > kEnding.size() && name[0] != '.' &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

// Which file the index puts each tensor in.
absl::StatusOr<NameMap> ReadIndex(const std::string& path, const JsonDocument& index,
                                  std::set<std::string>& names) {
  const std::optional<JsonValue> map = index.root().Find("weight_map");
  if (!map.has_value() || !map->is_object()) {
    return InvalidArgument(path + ": key 'weight_map': expected an object, got " +
                           (map.has_value() ? std::string(KindName(map->kind())) : "none"));
  }
  NameMap file_of;
  for (const JsonValue member : *map) {
    const std::string_view name = member.AsString().value_or("");
    if (!IsPlainName(name)) {
      return InvalidArgument(path + ": key 'weight_map': tensor " + Quoted(member.key()) +
                             ": expected the name of a safetensors file in this directory, got " +
                             member.Dump(64));
    }
    file_of.emplace(member.key(), name);
    names.emplace(name);
  }
  if (names.empty())
    return InvalidArgument(path + ": key 'weight_map': expected tensors, got none");
  return file_of;
}

// N of "model-00002-of-0000N.safetensors"; 0 for another name.
size_t CountInName(std::string_view name) {
  const size_t of = name.rfind("-of-");
  if (of == std::string_view::npos) return 0;
  const std::string_view digits = name.substr(of + 4, name.size() - of - 4 - kEnding.size());
  size_t count = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
  return error == std::errc() && end == digits.data() + digits.size() ? count : 0;
}

std::string PartName(size_t part, size_t count) {
  const auto padded = [](size_t n) {
    const std::string digits = std::to_string(n);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
  };
  return "model-" + padded(part) + "-of-" + padded(count) + std::string(kEnding);
}

absl::Status CheckCompleteSet(const std::string& directory, const std::set<std::string>& names) {
  if (names.empty()) {
    return NotFound(directory + ": expected " + std::string(kSingleName) + " or " + PartName(1, 2) +
                    " and so on, got no such file");
  }
  const size_t count = CountInName(*names.begin());
  const bool single = *names.begin() == kSingleName;
  std::set<std::string> expected = {std::string(kSingleName)};
  if (!single && count >= 1 && count <= kMaxShards) {
    expected.clear();
    for (size_t part = 1; part <= count; ++part) expected.insert(PartName(part, count));
  }
  for (const std::string& name : names) {
    if (expected.contains(name)) continue;
    return InvalidArgument(directory + ": expected the files of one model, got " +
                           Quoted(*names.begin()) + " and " + Quoted(name) + " without " +
                           std::string(kIndexName));
  }
  for (const std::string& name : expected) {
    if (names.contains(name)) continue;
    return InvalidArgument(directory + ": expected file " + Quoted(name) +
                           " beside the others, got none");
  }
  return absl::OkStatus();
}

absl::Status CheckAgainstIndex(const std::string& path, const NameMap& file_of,
                               const std::map<std::string, std::string>& found) {
  for (const auto& [tensor, file] : file_of) {
    const auto it = found.find(tensor);
    if (it != found.end() && it->second == file) continue;
    return InvalidArgument(
        path + ": key 'weight_map': tensor " + Quoted(tensor) +
        ": expected the file that it lies in, got " + Quoted(file) +
        (it == found.end() ? "; it is in none" : "; it is in " + Quoted(it->second)));
  }
  for (const auto& [tensor, file] : found) {
    if (file_of.contains(tensor)) continue;
    return InvalidArgument(path + ": key 'weight_map': expected every tensor, but " +
                           Quoted(tensor) + " of file " + Quoted(file) + " is missing");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::optional<std::string>> ReadTextFile(const std::string& directory,
                                                        std::string_view name,
                                                        uint64_t most_bytes) {
  const absl::StatusOr<OpenFile> file = OpenFile::Open(directory + "/" + std::string(name));
  if (absl::IsNotFound(file.status())) return std::nullopt;
  RETURN_IF_ERROR(file.status());
  if (file->bytes() > most_bytes) {
    return InvalidArgument(file->path() + ": expected a file of at most " +
                           std::to_string(most_bytes) + " bytes, got " +
                           std::to_string(file->bytes()));
  }
  std::string text(file->bytes(), '\0');
  RETURN_IF_ERROR(file->Read(0, std::as_writable_bytes(std::span(text))));
  return text;
}

absl::StatusOr<std::optional<JsonFile>> ReadJsonFile(const std::string& directory,
                                                     std::string_view name) {
  ASSIGN_OR_RETURN(std::optional<std::string> text, ReadTextFile(directory, name, kMaxJsonBytes));
  if (!text.has_value()) return std::nullopt;
  const std::string path = directory + "/" + std::string(name);
  absl::StatusOr<JsonDocument> document = JsonDocument::Parse(*text);
  if (!document.ok()) return Prefix(path, document.status());
  if (!document->root().is_object()) {
    return InvalidArgument(path + ": expected a JSON object, got " +
                           std::string(KindName(document->root().kind())));
  }
  return JsonFile{std::string(name), *std::move(text), *std::move(document)};
}

absl::StatusOr<std::vector<SafetensorsShard>> OpenShards(const std::string& directory) {
  const std::string index_path = directory + "/" + std::string(kIndexName);
  ASSIGN_OR_RETURN(const std::optional<JsonFile> index, ReadJsonFile(directory, kIndexName));
  std::set<std::string> names;
  NameMap file_of;
  if (index.has_value()) {
    ASSIGN_OR_RETURN(file_of, ReadIndex(index_path, index->document, names));
    ASSIGN_OR_RETURN(const std::set<std::string> present, ListTensorFiles(directory));
    const std::string single(kSingleName);
    if (present.contains(single) && !names.contains(single)) {
      return InvalidArgument(index_path + ": expected the files of one model, got " +
                             Quoted(single) + " beside those that the index names");
    }
  } else {
    ASSIGN_OR_RETURN(names, ListTensorFiles(directory));
    RETURN_IF_ERROR(CheckCompleteSet(directory, names));
  }
  if (names.size() > kMaxShards) {
    return InvalidArgument(index_path + ": key 'weight_map': expected at most " +
                           std::to_string(kMaxShards) + " files, got " +
                           std::to_string(names.size()));
  }
  std::vector<SafetensorsShard> shards;
  std::map<std::string, std::string> found;  // tensor to file
  for (const std::string& name : names) {
    absl::StatusOr<OpenFile> file = OpenFile::Open(directory + "/" + name);
    if (!file.ok() && index.has_value()) {
      return Prefix(index_path + ": key 'weight_map'", file.status());
    }
    RETURN_IF_ERROR(file.status());
    ASSIGN_OR_RETURN(SafetensorsHeader header, SafetensorsHeader::Read(*file));
    for (const StoredTensor& tensor : header.tensors) {
      const auto [other, added] = found.emplace(tensor.name, name);
      if (added) continue;
      return InvalidArgument(file->path() + ": tensor " + Quoted(tensor.name) +
                             ": expected each tensor once, but file " + Quoted(other->second) +
                             " has it too");
    }
    shards.push_back({*std::move(file), std::move(header)});
  }
  if (index.has_value()) RETURN_IF_ERROR(CheckAgainstIndex(index_path, file_of, found));
  return shards;
}

}  // namespace sluice::engine
