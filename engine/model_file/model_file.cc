#include "engine/model_file/model_file.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <type_traits>
#include <utility>

#include "engine/base/status.h"
#include "engine/gguf/gguf_parser.h"
#include "engine/gguf/gguf_text.h"
#include "engine/safetensors/safetensors_model.h"

namespace sluice::engine {
namespace {

template <typename T>
constexpr std::string_view ScalarName() {
  if constexpr (std::is_same_v<T, uint8_t>) return "u8";
  if constexpr (std::is_same_v<T, int8_t>) return "i8";
  if constexpr (std::is_same_v<T, uint16_t>) return "u16";
  if constexpr (std::is_same_v<T, int16_t>) return "i16";
  if constexpr (std::is_same_v<T, uint32_t>) return "u32";
  if constexpr (std::is_same_v<T, int32_t>) return "i32";
  if constexpr (std::is_same_v<T, uint64_t>) return "u64";
  if constexpr (std::is_same_v<T, int64_t>) return "i64";
  if constexpr (std::is_same_v<T, float>) return "f32";
  if constexpr (std::is_same_v<T, double>) return "f64";
  if constexpr (std::is_same_v<T, bool>) return "bool";
  if constexpr (std::is_same_v<T, std::string>) return "string";
}

template <typename T>
constexpr bool kIsInteger = std::is_integral_v<T> && !std::is_same_v<T, bool>;

absl::Status WrongType(const ModelFile& file, std::string_view key, std::string_view expected,
                       const MetadataValue& value) {
  return InvalidArgument(file.path() + ": key " + Quoted(key) + ": expected " +
                         std::string(expected) + ", got " + TypeName(value) + file.At(key));
}

// The array of T under `key`; null when absent.
template <typename T>
absl::StatusOr<const std::vector<T>*> GetArray(const ModelFile& file, std::string_view key) {
  const MetadataValue* value = file.Find(key);
  if (value == nullptr) return nullptr;
  const auto* array = std::get_if<MetadataArray>(value);
  const auto* elements = array == nullptr ? nullptr : std::get_if<std::vector<T>>(array);
  if (elements == nullptr) {
    return WrongType(file, key, "array of " + std::string(ScalarName<T>()), *value);
  }
  return elements;
}

// The path of the one GGUF file in a directory; nothing when there is none, or config.json says
// that the directory is the model.
absl::StatusOr<std::optional<std::string>> OnlyGgufFile(const std::string& directory) {
  std::error_code error;
  std::vector<std::string> paths;
  std::filesystem::directory_iterator entry(directory, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (entry->path().filename() == "config.json") return std::nullopt;
    if (entry->path().extension() == ".gguf") paths.push_back(entry->path().string());
  }
  if (error || paths.empty()) return std::nullopt;
  if (paths.size() == 1) return paths.front();
  std::sort(paths.begin(), paths.end());
  return InvalidArgument(directory + ": expected one GGUF file, got " +
                         std::to_string(paths.size()) + ", " + Quoted(paths[0]) + " and " +
                         Quoted(paths[1]) + " among them: name one");
}

}  // namespace

std::string TypeName(const MetadataValue& value) {
  return std::visit(
      [](const auto& held) -> std::string {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<T, MetadataArray>) {
          return std::visit(
              [](const auto& elements) {
                using Element = typename std::decay_t<decltype(elements)>::value_type;
                return "array of " + std::string(ScalarName<Element>());
              },
              held);
        } else {
          return std::string(ScalarName<T>());
        }
      },
      value);
}

uint64_t FileTensor::rows() const {
  uint64_t rows = 1;
  for (size_t i = 1; i < dims.size(); ++i) rows *= dims[i];
  return rows;
}

std::string FileTensor::ShapeString() const {
  return DimsString(dims) + " " + std::string(kernels::Name(type));
}

std::string FileTensor::At() const {
  return source.empty() ? " (at byte " + std::to_string(record_offset) + ")" : " (" + source + ")";
}

absl::StatusOr<std::shared_ptr<const ModelFile>> ModelFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(const std::optional<std::string> gguf, GgufPath(path));
  return gguf ? GgufParser::Open(*gguf) : SafetensorsModel::Open(path);
}

absl::StatusOr<std::optional<std::string>> ModelFile::GgufPath(const std::string& path) {
  struct stat facts {};
  if (stat(path.c_str(), &facts) != 0 || !S_ISDIR(facts.st_mode)) return path;
  return OnlyGgufFile(path);
}

std::vector<std::string> ModelFile::FileNames() const {
  std::vector<std::string> names;
  for (const Part& part : parts_) {
    names.push_back(part.file.path().substr(part.file.path().rfind('/') + 1));
  }
  return names;
}

absl::Status ModelFile::CheckUnchanged() const {
  for (const Part& part : parts_) RETURN_IF_ERROR(part.file.CheckUnchanged());
  return absl::OkStatus();
}

void ModelFile::AddPart(OpenFile file, uint64_t file_begin) {
  const uint64_t bytes = file.bytes() - file_begin;
  parts_.push_back({file_bytes_, file_begin, bytes, std::move(file)});
  file_bytes_ += bytes;
}

absl::Status ModelFile::Read(uint64_t offset, std::span<std::byte> out) const {
  if (offset < memory_.size()) {
    const size_t count = std::min<uint64_t>(out.size(), memory_.size() - offset);
    std::memcpy(out.data(), memory_.data() + offset, count);
    offset += count;
    out = out.subspan(count);
  }
  for (const Part& part : parts_) {
    if (out.empty()) break;
    const bool is_last = &part == &parts_.back();  // which reports a read beyond the end
    if (offset >= part.begin + part.bytes && !is_last) continue;
    const uint64_t left = part.begin + part.bytes - offset;
    const size_t count = is_last ? out.size() : std::min<uint64_t>(out.size(), left);
    RETURN_IF_ERROR(part.file.Read(part.file_begin + (offset - part.begin), out.subspan(0, count)));
    offset += count;
    out = out.subspan(count);
  }
  if (out.empty()) return absl::OkStatus();
  return DataLoss(path_ + ": cannot read " + std::to_string(out.size()) + " bytes at byte " +
                  std::to_string(offset) + ": there are none");
}

const MetadataValue* ModelFile::Find(std::string_view key) const {
  const auto found = entry_index_.find(key);
  return found == entry_index_.end() ? nullptr : &entries_[found->second].value;
}

std::string ModelFile::At(std::string_view key) const {
  const auto found = entry_index_.find(key);
  if (found == entry_index_.end()) return "";
  const Entry& entry = entries_[found->second];
  return entry.source.empty() ? " (at byte " + std::to_string(entry.offset) + ")"
                              : " (" + entry.source + ")";
}

const FileTensor* ModelFile::FindTensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

absl::StatusOr<std::optional<uint64_t>> ModelFile::GetUint(std::string_view key) const {
  using Result = absl::StatusOr<std::optional<uint64_t>>;
  const MetadataValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  return std::visit(
      [&](const auto& held) -> Result {
        using T = std::decay_t<decltype(held)>;
        if constexpr (kIsInteger<T>) {
          if (std::is_signed_v<T> && held < T{0}) {
            return InvalidArgument(path_ + ": key " + Quoted(key) + ": expected 0 or more, got " +
                                   std::to_string(held) + At(key));
          }
          return static_cast<uint64_t>(held);
        } else {
          return WrongType(*this, key, "an integer", *value);
        }
      },
      *value);
}

absl::StatusOr<std::optional<double>> ModelFile::GetFloat(std::string_view key) const {
  const MetadataValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* held = std::get_if<float>(value)) return static_cast<double>(*held);
  if (const auto* held = std::get_if<double>(value)) return *held;
  return WrongType(*this, key, "f32 or f64", *value);
}

absl::StatusOr<std::optional<bool>> ModelFile::GetBool(std::string_view key) const {
  const MetadataValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* held = std::get_if<bool>(value)) return *held;
  return WrongType(*this, key, "bool", *value);
}

absl::StatusOr<std::optional<std::string_view>> ModelFile::GetString(std::string_view key) const {
  const MetadataValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* held = std::get_if<std::string>(value)) return std::string_view(*held);
  return WrongType(*this, key, "string", *value);
}

absl::StatusOr<const std::vector<std::string>*> ModelFile::GetStrings(std::string_view key) const {
  return GetArray<std::string>(*this, key);
}

absl::StatusOr<const std::vector<float>*> ModelFile::GetFloats(std::string_view key) const {
  return GetArray<float>(*this, key);
}

absl::StatusOr<std::optional<std::vector<int64_t>>> ModelFile::GetInts(std::string_view key) const {
  using Result = absl::StatusOr<std::optional<std::vector<int64_t>>>;
  const MetadataValue* value = Find(key);
  if (value == nullptr) return std::nullopt;
  const auto* array = std::get_if<MetadataArray>(value);
  if (array == nullptr) return WrongType(*this, key, "an array of integers", *value);
  return std::visit(
      [&](const auto& elements) -> Result {
        using T = typename std::decay_t<decltype(elements)>::value_type;
        if constexpr (kIsInteger<T>) {
          std::vector<int64_t> wide;
          wide.reserve(elements.size());
          for (const T element : elements) {
            if constexpr (std::is_same_v<T, uint64_t>) {
              if (element > static_cast<uint64_t>(INT64_MAX)) {
                return InvalidArgument(
                    path_ + ": key " + Quoted(key) + ": element " + std::to_string(wide.size()) +
                    ": " + std::to_string(element) + " does not fit in 63 bits" + At(key));
              }
            }
            wide.push_back(static_cast<int64_t>(element));
          }
          return wide;
        } else {
          return WrongType(*this, key, "an array of integers", *value);
        }
      },
      *array);
}

}  // namespace sluice::engine
