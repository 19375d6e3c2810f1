#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/hash.h"
#include "engine/model_file/open_file.h"
#include "kernels/core/dtype.h"

namespace sluice::engine {

// One array of a file's metadata; nesting is one level at most.
using MetadataArray =
    std::variant<std::vector<uint8_t>, std::vector<int8_t>, std::vector<uint16_t>,
                 std::vector<int16_t>, std::vector<uint32_t>, std::vector<int32_t>,
                 std::vector<uint64_t>, std::vector<int64_t>, std::vector<float>,
                 std::vector<double>, std::vector<bool>, std::vector<std::string>>;
using MetadataValue = std::variant<uint8_t, int8_t, uint16_t, int16_t, uint32_t, int32_t, uint64_t,
                                   int64_t, float, double, bool, std::string, MetadataArray>;

// "u32", "string", "array of f32": for messages.
std::string TypeName(const MetadataValue& value);

struct FileTensor {
  std::string name;
  kernels::DType type = kernels::DType::kF32;
  std::vector<uint64_t>
      dims;             // as in the file: dims[0] is the row length K, dims[1] the number of rows N
  uint64_t offset = 0;  // of the first byte, as ModelFile::Read counts
  uint64_t bytes = 0;
  uint64_t record_offset = 0;  // of what the file says about it, from the start of the file
  std::string source;          // instead: "'lm_head.weight' in model.safetensors"
  float added = 0.0f;  // to each value where it is read as a vector: Hugging Face stores Gemma's
                       // norms less 1

  uint64_t cols() const { return dims[0]; }
  uint64_t rows() const;            // product of the other dims
  std::string ShapeString() const;  // "[576, 49152] Q8_0"
  std::string At() const;           // " (at byte N)", N its record's, or " (SOURCE)": for messages
};

// A model as it lies on disk, opened and checked: a GGUF file, versions 2 and 3
// (ggml/docs/gguf.md), or a directory of safetensors files as Hugging Face saves it
// (SafetensorsModel), which is then described in GGUF's terms: its keys, its names of tensors.
// Every count, length, offset and size has been compared with the files and with the caps below
// before it was used. Nothing of a tensor's data is read at open. Immutable; thread-safe (reads are
// pread).
//
// Errors name file, key or tensor, and byte offset: INVALID_ARGUMENT for a malformed file,
// NOT_FOUND, PERMISSION_DENIED or FAILED_PRECONDITION for one that cannot be opened or is no
// regular file, UNIMPLEMENTED for valid things not supported.
class ModelFile {
 public:
  enum class Format : uint8_t { kGguf, kSafetensors };

  struct Caps {
    uint64_t file_bytes = uint64_t{1} << 40;
    uint64_t metadata_bytes = uint64_t{256} << 20;
    uint64_t keys = 65'536;
    uint64_t key_bytes = 65'535;
    uint64_t string_bytes = uint64_t{16} << 20;
    uint64_t array_elements = uint64_t{64} << 20;
    uint64_t array_strings = uint64_t{4} << 20;  // each costs its own memory, however short
    uint64_t tensors = 65'536;
    uint64_t name_bytes = 63;
    uint64_t dims = 4;
    uint64_t dim = uint64_t{1} << 40;
    uint32_t smallest_alignment = 8;
    uint32_t largest_alignment = 65'536;
  };

  // A file is taken for GGUF, a directory for safetensors, or, without config.json, for the one
  // GGUF file in it.
  static absl::StatusOr<std::shared_ptr<const ModelFile>> Open(const std::string& path);
  // The file that Open takes for GGUF: `path` itself, or the one in that directory. Nothing when it
  // is taken for a directory of safetensors; INVALID_ARGUMENT when there are several.
  static absl::StatusOr<std::optional<std::string>> GgufPath(const std::string& path);

  ~ModelFile() = default;
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;

  const std::string& path() const { return path_; }
  Format format() const { return format_; }
  std::vector<std::string> FileNames() const;        // that tensors lie in, without their directory
  uint32_t version() const { return version_; }      // GGUF's; 0 for safetensors
  uint32_t alignment() const { return alignment_; }  // GGUF's
  // One past the largest offset: all bytes that describe the model.
  uint64_t file_bytes() const { return file_bytes_; }
  // The first bytes: header, keys and tensor records, padding included. For safetensors the JSON
  // files and headers, each with its name before it.
  uint64_t metadata_bytes() const { return data_offset_; }

  struct Entry {
    std::string key;
    MetadataValue value;
    uint64_t offset = 0;  // of the key, from the start of the file
    std::string source;   // instead: what it follows from, "config.json key 'hidden_size'"
  };
  const std::vector<Entry>& entries() const { return entries_; }  // in file order
  const std::vector<FileTensor>& tensors() const { return tensors_; }

  const MetadataValue* Find(std::string_view key) const;
  const FileTensor* FindTensor(std::string_view name) const;
  // " (at byte N)", N the key's, or " (SOURCE)"; empty when it is absent: for messages.
  std::string At(std::string_view key) const;

  // Typed access. nullopt when the key is absent; INVALID_ARGUMENT naming file, key and byte when
  // the type is wrong or a number does not fit. Any integer type is taken for integers, f32 and f64
  // for floats.
  absl::StatusOr<std::optional<uint64_t>> GetUint(std::string_view key) const;
  absl::StatusOr<std::optional<double>> GetFloat(std::string_view key) const;
  absl::StatusOr<std::optional<bool>> GetBool(std::string_view key) const;
  absl::StatusOr<std::optional<std::string_view>> GetString(std::string_view key) const;
  // Null when absent; wrong element type is an error.
  absl::StatusOr<const std::vector<std::string>*> GetStrings(std::string_view key) const;
  absl::StatusOr<const std::vector<float>*> GetFloats(std::string_view key) const;
  // Any integer element type, widened. nullopt when absent.
  absl::StatusOr<std::optional<std::vector<int64_t>>> GetInts(std::string_view key) const;

  // Reads [offset, offset + out.size()). Offsets count from the start of a GGUF file; those of a
  // directory go through its metadata and then through the data of one file after the other.
  // DATA_LOSS when a file has become shorter or cannot be read.
  absl::Status Read(uint64_t offset, std::span<std::byte> out) const;
  // DATA_LOSS when a file's size or time of modification is not what it was at open: bytes read
  // since then may belong to another model.
  absl::Status CheckUnchanged() const;

 private:
  friend class GgufParser;
  friend class SafetensorsModel;
  struct Part {
    uint64_t begin;  // where in the ModelFile's offsets
    uint64_t file_begin;
    uint64_t bytes;
    OpenFile file;
  };

  ModelFile() = default;
  // The bytes of `file` from `file_begin` on come next.
  void AddPart(OpenFile file, uint64_t file_begin);

  std::string path_;
  Format format_ = Format::kGguf;
  std::string memory_;       // the first bytes, where they are not read from a file
  std::vector<Part> parts_;  // the others
  uint32_t version_ = 0;
  uint32_t alignment_ = 32;
  uint64_t file_bytes_ = 0;
  uint64_t data_offset_ = 0;
  std::vector<Entry> entries_;
  std::vector<FileTensor> tensors_;
  std::unordered_map<std::string, size_t, StringHash, StringEqual> entry_index_;
  std::unordered_map<std::string, size_t, StringHash, StringEqual> tensor_index_;
};

}  // namespace sluice::engine
