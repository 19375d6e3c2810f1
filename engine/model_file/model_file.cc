#include "engine/model_file/model_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <type_traits>
#include <utility>

#include "engine/base/status.h"
#include "engine/gguf/gguf_parser.h"
#include "engine/gguf/gguf_text.h"

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

int64_t Nanoseconds(const timespec& time) {
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
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

std::string FileTensor::At() const { return " (at byte " + std::to_string(record_offset) + ")"; }

absl::StatusOr<std::shared_ptr<const ModelFile>> ModelFile::Open(const std::string& path) {
  return GgufParser::Open(path);
}

ModelFile::~ModelFile() {
  if (fd_ >= 0) close(fd_);
}

absl::Status ModelFile::OpenDescriptor() {
  // O_NONBLOCK: opening a FIFO must fail below, not wait for a writer.
  do {
    fd_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0) {
    const int error = errno;
    const std::string message = path_ + ": cannot open: " + std::strerror(error);
    if (error == ENOENT || error == ENOTDIR) return NotFound(message);
    if (error == EACCES || error == EPERM) {
      return MakeStatus(absl::StatusCode::kPermissionDenied, message);
    }
    return FailedPrecondition(message);
  }
  struct stat facts {};
  if (fstat(fd_, &facts) != 0) {
    return FailedPrecondition(path_ + ": cannot read its size: " + std::strerror(errno));
  }
  if (!S_ISREG(facts.st_mode)) {
    return FailedPrecondition(path_ + ": expected a regular file, got " +
                              (S_ISDIR(facts.st_mode)    ? "a directory"
                               : S_ISFIFO(facts.st_mode) ? "a FIFO"
                               : S_ISCHR(facts.st_mode) || S_ISBLK(facts.st_mode)
                                   ? "a device"
                                   : "something else"));
  }
  file_bytes_ = static_cast<uint64_t>(facts.st_size);
  modified_ns_ = Nanoseconds(facts.st_mtim);
  return absl::OkStatus();
}

absl::Status ModelFile::CheckUnchanged() const {
  struct stat facts {};
  if (fstat(fd_, &facts) != 0) {
    return DataLoss(path_ + ": cannot read its size: " + std::strerror(errno));
  }
  if (static_cast<uint64_t>(facts.st_size) != file_bytes_) {
    return DataLoss(path_ + ": expected " + std::to_string(file_bytes_) +
                    " bytes as when it was opened, got " + std::to_string(facts.st_size));
  }
  if (Nanoseconds(facts.st_mtim) != modified_ns_) {
    return DataLoss(path_ + ": was modified while it was being read");
  }
  return absl::OkStatus();
}

absl::Status ModelFile::Read(uint64_t offset, std::span<std::byte> out) const {
  size_t done = 0;
  while (done < out.size()) {
    // Linux moves at most 2 GiB a call; a smaller step keeps the count within ssize_t anywhere.
    const size_t part = std::min(out.size() - done, size_t{1} << 30);
    const ssize_t n = pread(fd_, out.data() + done, part, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const std::string why =
          n < 0 ? std::strerror(errno) : "the file ends there; it was longer when it was opened";
      return DataLoss(path_ + ": cannot read " + std::to_string(out.size() - done) +
                      " bytes at byte " + std::to_string(offset + done) + ": " + why);
    }
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

const MetadataValue* ModelFile::Find(std::string_view key) const {
  const auto found = entry_index_.find(key);
  return found == entry_index_.end() ? nullptr : &entries_[found->second].value;
}

std::string ModelFile::At(std::string_view key) const {
  const auto found = entry_index_.find(key);
  if (found == entry_index_.end()) return "";
  return " (at byte " + std::to_string(entries_[found->second].offset) + ")";
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
