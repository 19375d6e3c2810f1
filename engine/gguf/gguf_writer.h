#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/model_file/model_file.h"
#include "kernels/core/dtype.h"

namespace sluice::engine {

// A value as a GGUF file stores it, without the number of its type.
std::string EncodedValue(const MetadataValue& value);

// What a GGUF file says of a tensor: dims[0] is the row length.
struct TensorRecord {
  std::string name;
  std::vector<uint64_t> dims;
  kernels::DType type = kernels::DType::kF32;

  uint64_t values() const;
  uint64_t bytes() const;  // values() is a multiple of the type's block
};

struct MetadataKey {
  std::string key;
  MetadataValue value;
};

// Writes a GGUF file, version 3 (ggml/docs/gguf.md), in one pass: the metadata at Create, then the
// tensors' bytes in the order of their records. The file has no name until Publish gives it `path`:
// without Publish it is gone with the writer, or with the process however that ends. (On a file
// system without files without a name it has one beside `path`, which the writer removes.)
// One thread.
//
// Errors name file and byte, and the system's reason (a full disk is RESOURCE_EXHAUSTED).
class GgufWriter {
 public:
  // `alignment` as the keys say ("general.alignment"), 32 where they say nothing. ALREADY_EXISTS
  // when `path` is there and is not to be replaced; FAILED_PRECONDITION when it is no regular file.
  static absl::StatusOr<GgufWriter> Create(const std::string& path, bool replace,
                                           uint32_t alignment, const std::vector<MetadataKey>& keys,
                                           const std::vector<TensorRecord>& tensors);
  GgufWriter(GgufWriter&& other) noexcept;
  GgufWriter& operator=(GgufWriter&&) = delete;
  ~GgufWriter();

  // The next bytes of tensor `index`; a tensor begins when the one before is complete.
  absl::Status Append(size_t index, std::span<const std::byte> bytes);
  // Everything is on the disk and the file reads back as it was meant; then it takes its name.
  absl::Status Publish();

  uint64_t file_bytes() const { return file_bytes_; }

 private:
  GgufWriter(std::string path, bool replace) : path_(std::move(path)), replace_(replace) {}
  absl::Status Open();
  std::string PartialName() const;
  std::string ReadPath() const;  // while the file is open
  absl::Status Reserve();
  absl::Status Write(const void* bytes, size_t size);
  absl::Status CheckRead() const;
  absl::Status GiveName();
  absl::Status Failed(std::string_view what, int error) const;

  std::string path_;
  bool replace_;
  std::string partial_;  // the name until Publish; empty: it has none
  int fd_ = -1;
  size_t num_keys_ = 0;
  std::vector<TensorRecord> tensors_;
  std::vector<uint64_t> offsets_;  // of each tensor, from the start of the file
  uint64_t file_bytes_ = 0;
  uint64_t written_ = 0;
};

}  // namespace sluice::engine
