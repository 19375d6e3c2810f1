#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/gguf/byte_cursor.h"
#include "engine/gguf/checked_u64.h"
#include "engine/model_file/model_file.h"

namespace sluice::engine {

// Reads the header, the keys and the tensor records of an open file into it, checking each field
// before it is used. No recursion, and no count reserves memory: elements append as their bytes are
// seen. Used once, by ModelFile::Open.
class GgufParser {
 public:
  static absl::StatusOr<std::shared_ptr<const ModelFile>> Open(const std::string& path);

 private:
  explicit GgufParser(ModelFile& file);

  absl::Status Parse();
  absl::Status ParseHeader();
  absl::Status ParseEntry();
  absl::StatusOr<MetadataValue> ParseValue(uint32_t type);
  absl::StatusOr<MetadataValue> ParseArray();
  template <typename T>
  absl::StatusOr<MetadataArray> ParseElements(uint64_t count, uint64_t at);
  absl::Status TakeAlignment();
  absl::Status ParseTensor(size_t index);
  absl::Status ParseDims(FileTensor& tensor);
  absl::Status SetTypeAndSize(FileTensor& tensor, uint32_t type, uint64_t at);
  absl::Status PlaceTensors();

  // The next field: `what` names it in the error when the metadata ends before it does.
  template <typename T>
  absl::StatusOr<T> Take(std::string_view what);
  // A string whose length must be in [shortest, longest].
  absl::StatusOr<std::string> TakeString(std::string_view what, uint64_t shortest,
                                         uint64_t longest);

  // INVALID_ARGUMENT "FILE: SUBJECT: TEXT at byte AT".
  absl::Status Bad(uint64_t at, std::string_view text) const;
  absl::Status Unsupported(uint64_t at, std::string_view text) const;
  std::string Where(uint64_t at, std::string_view text) const;

  static constexpr ModelFile::Caps kCaps = {};

  ModelFile& file_;
  ByteCursor cursor_;
  // What is being read, "key 'general.name'" or "tensor 3": made into words only for an error.
  struct Subject {
    std::string_view kind;
    uint64_t index;
    std::string_view name;  // empty while it is not known
  };
  Subject subject_ = {"header", 0, ""};
  uint64_t num_tensors_ = 0;
  uint64_t num_keys_ = 0;
  std::vector<uint64_t> record_offsets_;  // where each tensor's offset field lies in the file
};

}  // namespace sluice::engine
