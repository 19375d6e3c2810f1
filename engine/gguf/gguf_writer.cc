#include "engine/gguf/gguf_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#include "engine/base/status.h"

namespace sluice::engine {
namespace {

// The format's numbers of value types, in the order of MetadataValue's and MetadataArray's.
constexpr uint32_t kNumbersOfTypes[] = {0, 1, 2, 3, 4, 5, 10, 11, 6, 12, 7, 8, 9};

template <typename T>
void AppendRaw(T value, std::string& out) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void AppendText(std::string_view text, std::string& out) {
  AppendRaw<uint64_t>(text.size(), out);
  out.append(text);
}

template <typename T>
void AppendElement(const T& element, std::string& out) {
  if constexpr (std::is_same_v<T, std::string>) {
    AppendText(element, out);
  } else if constexpr (std::is_same_v<T, bool>) {
    AppendRaw<uint8_t>(element ? 1 : 0, out);
  } else {
    AppendRaw(element, out);
  }
}

uint64_t PaddedTo(uint64_t alignment, uint64_t size) {
  return (size + alignment - 1) / alignment * alignment;
}

// Header, keys and records; where the tensors begin, counted from the end of it all.
std::string EncodedMetadata(uint32_t alignment, const std::vector<MetadataKey>& keys,
                            const std::vector<TensorRecord>& tensors,
                            std::vector<uint64_t>& offsets) {
  std::string out = "GGUF";
  AppendRaw<uint32_t>(3, out);
  AppendRaw<uint64_t>(tensors.size(), out);
  AppendRaw<uint64_t>(keys.size(), out);
  for (const MetadataKey& key : keys) {
    AppendText(key.key, out);
    AppendRaw<uint32_t>(kNumbersOfTypes[key.value.index()], out);
    out += EncodedValue(key.value);
  }
  uint64_t offset = 0;
  for (const TensorRecord& tensor : tensors) {
    AppendText(tensor.name, out);
    AppendRaw<uint32_t>(static_cast<uint32_t>(tensor.dims.size()), out);
    for (const uint64_t dim : tensor.dims) AppendRaw(dim, out);
    AppendRaw<uint32_t>(kernels::Traits(tensor.type).ggml_type, out);
    AppendRaw(offset, out);
    offsets.push_back(offset);
    offset += PaddedTo(alignment, tensor.bytes());
  }
  out.resize(PaddedTo(alignment, out.size()));
  return out;
}

}  // namespace

std::string EncodedValue(const MetadataValue& value) {
  std::string out;
  std::visit(
      [&out](const auto& held) {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<T, MetadataArray>) {
          AppendRaw<uint32_t>(kNumbersOfTypes[held.index()], out);
          std::visit(
              [&out](const auto& elements) {
                using Element = typename std::decay_t<decltype(elements)>::value_type;
                AppendRaw<uint64_t>(elements.size(), out);
                for (size_t i = 0; i < elements.size(); ++i) {
                  AppendElement<Element>(elements[i], out);
                }
              },
              held);
        } else {
          AppendElement<T>(held, out);
        }
      },
      value);
  return out;
}

uint64_t TensorRecord::values() const {
  uint64_t values = 1;
  for (const uint64_t dim : dims) values *= dim;
  return values;
}

uint64_t TensorRecord::bytes() const {
  return static_cast<uint64_t>(kernels::RowBytes(type, static_cast<int64_t>(values())));
}

absl::StatusOr<GgufWriter> GgufWriter::Create(const std::string& path, bool replace,
                                              uint32_t alignment,
                                              const std::vector<MetadataKey>& keys,
                                              const std::vector<TensorRecord>& tensors) {
  GgufWriter writer(path, replace);
  writer.num_keys_ = keys.size();
  writer.tensors_ = tensors;
  const std::string metadata = EncodedMetadata(alignment, keys, tensors, writer.offsets_);
  for (uint64_t& offset : writer.offsets_) offset += metadata.size();
  writer.file_bytes_ = tensors.empty()
                           ? metadata.size()
                           : writer.offsets_.back() + PaddedTo(alignment, tensors.back().bytes());
  RETURN_IF_ERROR(writer.Open());
  RETURN_IF_ERROR(writer.Reserve());
  RETURN_IF_ERROR(writer.Write(metadata.data(), metadata.size()));
  return writer;
}

GgufWriter::GgufWriter(GgufWriter&& other) noexcept
    : path_(std::move(other.path_)),
      replace_(other.replace_),
      partial_(std::exchange(other.partial_, "")),
      fd_(std::exchange(other.fd_, -1)),
      num_keys_(other.num_keys_),
      tensors_(std::move(other.tensors_)),
      offsets_(std::move(other.offsets_)),
      file_bytes_(other.file_bytes_),
      written_(other.written_) {}

GgufWriter::~GgufWriter() {
  if (fd_ >= 0) close(fd_);
  if (!partial_.empty()) unlink(partial_.c_str());
}

absl::Status GgufWriter::Failed(std::string_view what, int error) const {
  const std::string message = path_ + ": " + std::string(what) + ": " + std::strerror(error);
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) return ResourceExhausted(message);
  if (error == EEXIST) return MakeStatus(absl::StatusCode::kAlreadyExists, message);
  if (error == ENOENT) return NotFound(message);
  return FailedPrecondition(message);
}

absl::Status GgufWriter::Open() {
  struct stat facts {};
  if (lstat(path_.c_str(), &facts) == 0) {
    if (!S_ISREG(facts.st_mode)) {
      return FailedPrecondition(path_ + ": expected a regular file or none, got something else");
    }
    if (!replace_) {
      return MakeStatus(absl::StatusCode::kAlreadyExists, path_ + ": is there already");
    }
  }
  // A file without a name is gone with its descriptor, however the process ends.
  const std::string directory = path_.substr(0, path_.rfind('/') + 1);
  fd_ = open(directory.empty() ? "." : directory.c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
  if (fd_ >= 0 && access(ReadPath().c_str(), R_OK) == 0) return absl::OkStatus();
  if (fd_ >= 0) close(std::exchange(fd_, -1));  // no /proc to find it by
  const std::string name = PartialName();
  fd_ = open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) return Failed("cannot create " + name, errno);
  partial_ = name;
  return absl::OkStatus();
}

std::string GgufWriter::PartialName() const {
  return path_ + ".partial-" + std::to_string(getpid());
}

std::string GgufWriter::ReadPath() const {
  return partial_.empty() ? "/proc/self/fd/" + std::to_string(fd_) : partial_;
}

// A disk that is too full says so now, not after minutes. Where blocks cannot be reserved, writing
// will tell.
absl::Status GgufWriter::Reserve() {
  if (fallocate(fd_, 0, 0, static_cast<off_t>(file_bytes_)) == 0) return absl::OkStatus();
  if (errno != ENOSPC && errno != EDQUOT && errno != EFBIG) return absl::OkStatus();
  return Failed("cannot hold " + std::to_string(file_bytes_) + " bytes", errno);
}

absl::Status GgufWriter::Write(const void* bytes, size_t size) {
  const char* from = static_cast<const char*>(bytes);
  while (size > 0) {
    const ssize_t count = write(fd_, from, size);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return Failed("cannot be written at byte " + std::to_string(written_) + " of " +
                        std::to_string(file_bytes_),
                    errno);
    }
    from += count;
    size -= static_cast<size_t>(count);
    written_ += static_cast<uint64_t>(count);
  }
  return absl::OkStatus();
}

absl::Status GgufWriter::Append(size_t index, std::span<const std::byte> bytes) {
  const uint64_t end = offsets_[index] + tensors_[index].bytes();
  if (written_ < offsets_[index]) {
    if (index > 0 && written_ < offsets_[index - 1] + tensors_[index - 1].bytes()) {
      return Internal(path_ + ": " + tensors_[index - 1].name + ": is not complete");
    }
    const std::string padding(offsets_[index] - written_, '\0');
    RETURN_IF_ERROR(Write(padding.data(), padding.size()));
  }
  if (written_ > end || bytes.size() > end - written_) {
    return Internal(path_ + ": " + tensors_[index].name + ": more bytes than its shape has");
  }
  return Write(bytes.data(), bytes.size());
}

// What our own reader finds must be what was to be written.
absl::Status GgufWriter::CheckRead() const {
  const auto wrong = [this](const std::string& what) {
    return Internal(path_ + ": what was written does not read back: " + what);
  };
  const absl::StatusOr<std::shared_ptr<const ModelFile>> file = ModelFile::Open(ReadPath());
  if (!file.ok()) return wrong(Message(file.status()));
  if ((*file)->file_bytes() != file_bytes_) return wrong("its size");
  if ((*file)->entries().size() != num_keys_) return wrong("the number of keys");
  if ((*file)->tensors().size() != tensors_.size()) return wrong("the number of tensors");
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const FileTensor& read = (*file)->tensors()[i];
    const TensorRecord& meant = tensors_[i];
    if (read.name != meant.name || read.dims != meant.dims || read.type != meant.type ||
        read.offset != offsets_[i] || read.bytes != meant.bytes()) {
      return wrong("tensor " + meant.name);
    }
  }
  return absl::OkStatus();
}

absl::Status GgufWriter::GiveName() {
  if (partial_.empty()) {
    const std::string name = replace_ ? PartialName() : path_;
    if (linkat(AT_FDCWD, ReadPath().c_str(), AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW) != 0) {
      return Failed("cannot be named", errno);
    }
    if (!replace_) return absl::OkStatus();
    partial_ = name;
  }
  if (replace_) {
    if (rename(partial_.c_str(), path_.c_str()) != 0) return Failed("cannot be named", errno);
    partial_.clear();
    return absl::OkStatus();
  }
  // Unlike rename, link never replaces a file that has come meanwhile.
  if (link(partial_.c_str(), path_.c_str()) == 0) return absl::OkStatus();
  if (errno == EEXIST) return Failed("cannot be named", EEXIST);
  if (renameat2(AT_FDCWD, partial_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE) != 0) {
    return Failed("cannot be named", errno);
  }
  partial_.clear();
  return absl::OkStatus();
}

absl::Status GgufWriter::Publish() {
  if (!tensors_.empty() && written_ < offsets_.back() + tensors_.back().bytes()) {
    return Internal(path_ + ": " + tensors_.back().name + ": is not complete");
  }
  const std::string padding(file_bytes_ - written_, '\0');
  RETURN_IF_ERROR(Write(padding.data(), padding.size()));
  if (fsync(fd_) != 0) return Failed("cannot be written to the disk", errno);
  RETURN_IF_ERROR(CheckRead());
  return GiveName();
}

}  // namespace sluice::engine
