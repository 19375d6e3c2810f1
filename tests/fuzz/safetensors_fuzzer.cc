// Headers of safetensors files. An input is one byte, a header, and nothing else: the byte says how
// many times 8 zeros follow as data (its low seven bits), and whether the header begins with its
// own length or is given the right one (its highest bit), so that most inputs get as far as JSON.

#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "engine/model_file/open_file.h"
#include "engine/safetensors/safetensors_header.h"
#include "tests/fuzz/memory_file.h"
#include "tests/fuzz/text_checks.h"

namespace {

using sluice::engine::OpenFile;
using sluice::engine::SafetensorsHeader;
using sluice::engine::StoredTensor;
using sluice::fuzz::Check;

uint64_t ValueBytes(const StoredTensor& tensor) {
  if (tensor.dtype == "F32") return 4;
  if (tensor.dtype == "F16" || tensor.dtype == "BF16") return 2;
  return 0;  // not said here
}

// Data of tensors lie side by side from the header's end to the file's.
void CheckHeader(const SafetensorsHeader& header, uint64_t file_bytes) {
  Check(header.data_begin == 8 + header.json.size() && header.data_begin <= file_bytes);
  uint64_t end = header.data_begin;
  for (const StoredTensor& tensor : header.tensors) {
    Check(tensor.begin == end && tensor.bytes <= file_bytes - end);
    end += tensor.bytes;
    Check(tensor.type.has_value() == (ValueBytes(tensor) != 0));
    if (!tensor.type.has_value()) continue;
    uint64_t values = 1;
    for (const uint64_t dim : tensor.shape) {
      Check(dim == 0 || values <= std::numeric_limits<uint64_t>::max() / dim);
      values *= dim;
    }
    Check(tensor.bytes == values * ValueBytes(tensor));
  }
  Check(header.tensors.empty() || end == file_bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  static sluice::fuzz::MemoryFile memory;
  const size_t zeros = size_t{data[0]} % 128 * 8;
  if (data[0] >= 128) {
    memory.Fill(data + 1, size - 1, zeros);
  } else {
    const uint64_t length = size - 1;
    std::vector<uint8_t> bytes(8 + size - 1);
    std::memcpy(bytes.data(), &length, 8);
    std::memcpy(bytes.data() + 8, data + 1, size - 1);
    memory.Fill(bytes.data(), bytes.size(), zeros);
  }
  const auto file = OpenFile::Open(memory.path());
  Check(file.ok());
  const auto header = SafetensorsHeader::Read(*file);
  if (header.ok()) {
    CheckHeader(*header, file->bytes());
  } else {
    Check(!header.status().message().empty());
  }
  return 0;
}
