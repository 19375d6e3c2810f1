#include "engine/gguf/gguf_parser.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <type_traits>
#include <utility>

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"

namespace sluice::engine {
namespace {

static_assert(std::endian::native == std::endian::little,
              "values are copied from little-endian files as they are");

// The format's numbers of value types that need words of their own below.
constexpr uint32_t kTypeU32 = 4;
constexpr uint32_t kTypeArray = 9;

// Fewest bytes that a key (length, one character, type, one byte of value) and a tensor record
// (length, one character, dimension count, one dimension, type, offset) can take.
constexpr uint64_t kSmallestKey = 8 + 1 + 4 + 1;
constexpr uint64_t kSmallestTensor = 8 + 1 + 4 + 8 + 4 + 8;

std::string Number(uint64_t n) { return std::to_string(n); }

// Names are ASCII without spaces and control characters, so that they can stand in messages and
// logs.
bool IsPrintable(std::string_view name) {
  return std::all_of(name.begin(), name.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

}  // namespace

GgufParser::GgufParser(ModelFile& file)
    : file_(file), cursor_(file, std::min(file.file_bytes(), kCaps.metadata_bytes)) {}

std::string GgufParser::Where(uint64_t at, std::string_view text) const {
  std::string out = file_.path() + ": " + std::string(subject_.kind);
  if (subject_.kind != "header") {
    out += " " + (subject_.name.empty() ? Number(subject_.index) : Quoted(subject_.name));
  }
  out += ": ";
  out.append(text);
  return out + " (at byte " + Number(at) + ")";
}

absl::Status GgufParser::Bad(uint64_t at, std::string_view text) const {
  return InvalidArgument(Where(at, text));
}

absl::Status GgufParser::Unsupported(uint64_t at, std::string_view text) const {
  return Unimplemented(Where(at, text));
}

template <typename T>
absl::StatusOr<T> GgufParser::Take(std::string_view what) {
  if (cursor_.left() < sizeof(T)) {
    return Bad(cursor_.offset(), std::string(what) + ": expected " + Number(sizeof(T)) +
                                     " bytes, got the end of the " +
                                     (cursor_.left() + cursor_.offset() == file_.file_bytes()
                                          ? "file"
                                          : "metadata that may be read") +
                                     " after " + Number(cursor_.left()));
  }
  T value;
  RETURN_IF_ERROR(cursor_.Take(&value, sizeof(T)));
  return value;
}

absl::StatusOr<std::string> GgufParser::TakeString(std::string_view what, uint64_t shortest,
                                                   uint64_t longest) {
  const uint64_t at = cursor_.offset();
  ASSIGN_OR_RETURN(const uint64_t length, Take<uint64_t>(what));
  if (length < shortest || length > longest) {
    return Bad(at, std::string(what) + ": expected a length of " + Number(shortest) + " to " +
                       Number(longest) + " bytes, got " + Number(length));
  }
  if (length > cursor_.left()) {
    return Bad(at, std::string(what) + ": expected a length within the " + Number(cursor_.left()) +
                       " bytes left, got " + Number(length));
  }
  std::string text(length, '\0');
  RETURN_IF_ERROR(cursor_.Take(text.data(), length));
  return text;
}

absl::Status GgufParser::ParseHeader() {
  const uint64_t size = file_.file_bytes();
  char magic[4];
  if (size < sizeof(magic)) {
    return Bad(0, "expected the magic word \"GGUF\", got a file of " + Number(size) + " bytes");
  }
  RETURN_IF_ERROR(cursor_.Take(magic, sizeof(magic)));
  if (std::memcmp(magic, "GGUF", sizeof(magic)) != 0) {
    return Bad(0, "expected the magic word \"GGUF\", got " + Quoted({magic, sizeof(magic)}));
  }
  uint64_t at = cursor_.offset();
  ASSIGN_OR_RETURN(file_.version_, Take<uint32_t>("version"));
  if (const uint32_t swapped = __builtin_bswap32(file_.version_); swapped >= 1 && swapped <= 3) {
    return Unsupported(at, "expected a little-endian file, got a big-endian one (version " +
                               Number(swapped) + " with its bytes reversed)");
  }
  if (file_.version_ == 0) return Bad(at, "version: expected 2 or 3, got 0");
  if (file_.version_ != 2 && file_.version_ != 3) {
    return Unsupported(at, "version: expected 2 or 3, got " + Number(file_.version_));
  }
  const auto check = [&](const char* what, uint64_t count, uint64_t cap, uint64_t smallest) {
    if (count > cap) {
      return Bad(
          at, std::string(what) + ": expected at most " + Number(cap) + ", got " + Number(count));
    }
    if (!(CheckedU64(count) * smallest).AtMost(size - at)) {
      return Bad(at, std::string(what) + ": " + Number(count) + " do not fit in the " +
                         Number(size - at) + " bytes left of the file");
    }
    return absl::OkStatus();
  };
  at = cursor_.offset();
  ASSIGN_OR_RETURN(num_tensors_, Take<uint64_t>("number of tensors"));
  RETURN_IF_ERROR(check("number of tensors", num_tensors_, kCaps.tensors, kSmallestTensor));
  at = cursor_.offset();
  ASSIGN_OR_RETURN(num_keys_, Take<uint64_t>("number of keys"));
  return check("number of keys", num_keys_, kCaps.keys, kSmallestKey);
}

absl::Status GgufParser::ParseEntry() {
  ModelFile::Entry entry;
  entry.offset = cursor_.offset();
  subject_ = {"key", file_.entries_.size(), ""};
  ASSIGN_OR_RETURN(entry.key, TakeString("name", 1, kCaps.key_bytes));
  if (!IsPrintable(entry.key)) {
    return Bad(entry.offset, "name: expected printable ASCII, got " + Quoted(entry.key));
  }
  subject_.name = entry.key;
  if (const auto [other, added] = file_.entry_index_.emplace(entry.key, file_.entries_.size());
      !added) {
    return Bad(entry.offset, "expected each key once, got it again after byte " +
                                 Number(file_.entries_[other->second].offset));
  }
  const uint64_t at = cursor_.offset();
  ASSIGN_OR_RETURN(const uint32_t type, Take<uint32_t>("type"));
  if (type > 12) return Bad(at, "type: expected 0 to 12, got " + Number(type));
  ASSIGN_OR_RETURN(entry.value, ParseValue(type));
  file_.entries_.push_back(std::move(entry));
  return absl::OkStatus();
}

absl::StatusOr<MetadataValue> GgufParser::ParseValue(uint32_t type) {
  const auto scalar = [this]<typename T>(T) -> absl::StatusOr<MetadataValue> {
    ASSIGN_OR_RETURN(const T value, Take<T>("value"));
    return MetadataValue(value);
  };
  const uint64_t at = cursor_.offset();
  switch (type) {
    case 0:
      return scalar(uint8_t{});
    case 1:
      return scalar(int8_t{});
    case 2:
      return scalar(uint16_t{});
    case 3:
      return scalar(int16_t{});
    case kTypeU32:
      return scalar(uint32_t{});
    case 5:
      return scalar(int32_t{});
    case 6:
      return scalar(float{});
    case 7: {
      ASSIGN_OR_RETURN(const uint8_t value, Take<uint8_t>("value"));
      if (value > 1) return Bad(at, "value: expected a bool of 0 or 1, got " + Number(value));
      return MetadataValue(value == 1);
    }
    case 8: {
      ASSIGN_OR_RETURN(std::string text, TakeString("value", 0, kCaps.string_bytes));
      return MetadataValue(std::move(text));
    }
    case kTypeArray:
      return ParseArray();
    case 10:
      return scalar(uint64_t{});
    case 11:
      return scalar(int64_t{});
    default:
      return scalar(double{});
  }
}

absl::StatusOr<MetadataValue> GgufParser::ParseArray() {
  const uint64_t type_at = cursor_.offset();
  ASSIGN_OR_RETURN(const uint32_t type, Take<uint32_t>("element type"));
  if (type > 12) return Bad(type_at, "element type: expected 0 to 12, got " + Number(type));
  if (type == kTypeArray) return Unsupported(type_at, "arrays of arrays are not supported");
  const uint64_t at = cursor_.offset();
  ASSIGN_OR_RETURN(const uint64_t count, Take<uint64_t>("array length"));
  if (count > kCaps.array_elements) {
    return Bad(at, "array length: expected at most " + Number(kCaps.array_elements) + ", got " +
                       Number(count));
  }
  absl::StatusOr<MetadataArray> array = MetadataArray();
  switch (type) {
    case 0:
      array = ParseElements<uint8_t>(count, at);
      break;
    case 1:
      array = ParseElements<int8_t>(count, at);
      break;
    case 2:
      array = ParseElements<uint16_t>(count, at);
      break;
    case 3:
      array = ParseElements<int16_t>(count, at);
      break;
    case kTypeU32:
      array = ParseElements<uint32_t>(count, at);
      break;
    case 5:
      array = ParseElements<int32_t>(count, at);
      break;
    case 6:
      array = ParseElements<float>(count, at);
      break;
    case 7:
      array = ParseElements<bool>(count, at);
      break;
    case 8:
      array = ParseElements<std::string>(count, at);
      break;
    case 10:
      array = ParseElements<uint64_t>(count, at);
      break;
    case 11:
      array = ParseElements<int64_t>(count, at);
      break;
    default:
      array = ParseElements<double>(count, at);
      break;
  }
  if (!array.ok()) return array.status();
  return MetadataValue(std::move(*array));
}

template <typename T>
absl::StatusOr<MetadataArray> GgufParser::ParseElements(uint64_t count, uint64_t at) {
  constexpr bool kIsString = std::is_same_v<T, std::string>;
  constexpr bool kIsBool = std::is_same_v<T, bool>;
  constexpr uint64_t kElementBytes = kIsString ? sizeof(uint64_t) : kIsBool ? 1 : sizeof(T);
  if (!(CheckedU64(count) * kElementBytes).AtMost(cursor_.left())) {
    return Bad(at, "array length: " + Number(count) + " elements do not fit in the " +
                       Number(cursor_.left()) + " bytes left");
  }
  if (kIsString && count > kCaps.array_strings) {
    return Bad(at, "array length: expected at most " + Number(kCaps.array_strings) +
                       " strings, got " + Number(count));
  }
  std::vector<T> elements;
  if constexpr (kIsString) {
    for (uint64_t i = 0; i < count; ++i) {
      ASSIGN_OR_RETURN(std::string text, TakeString("element", 0, kCaps.string_bytes));
      elements.push_back(std::move(text));
    }
  } else if constexpr (kIsBool) {
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t element_at = cursor_.offset();
      ASSIGN_OR_RETURN(const uint8_t value, Take<uint8_t>("element"));
      if (value > 1) {
        return Bad(element_at, "element: expected a bool of 0 or 1, got " + Number(value));
      }
      elements.push_back(value == 1);
    }
  } else {
    // Grows by pieces: a count that the file does not live up to has cost one piece.
    constexpr uint64_t kPiece = (uint64_t{1} << 20) / kElementBytes;
    while (elements.size() < count) {
      const uint64_t have = elements.size();
      const uint64_t part = std::min(kPiece, count - have);
      elements.resize(have + part);
      RETURN_IF_ERROR(cursor_.Take(elements.data() + have, part * kElementBytes));
    }
  }
  return MetadataArray(std::move(elements));
}

absl::Status GgufParser::TakeAlignment() {
  const MetadataValue* value = file_.Find("general.alignment");
  if (value == nullptr) return absl::OkStatus();
  subject_ = {"key", 0, "general.alignment"};
  const uint64_t at = file_.entries_[file_.entry_index_.find("general.alignment")->second].offset;
  const auto* alignment = std::get_if<uint32_t>(value);
  if (alignment == nullptr) return Bad(at, "expected a u32, got " + TypeName(*value));
  if (!std::has_single_bit(*alignment) || *alignment < kCaps.smallest_alignment ||
      *alignment > kCaps.largest_alignment) {
    return Bad(at, "expected a power of two from " + Number(kCaps.smallest_alignment) + " to " +
                       Number(kCaps.largest_alignment) + ", got " + Number(*alignment));
  }
  file_.alignment_ = *alignment;
  return absl::OkStatus();
}

absl::Status GgufParser::ParseDims(FileTensor& tensor) {
  const uint64_t at = cursor_.offset();
  ASSIGN_OR_RETURN(const uint32_t num_dims, Take<uint32_t>("number of dimensions"));
  if (num_dims < 1 || num_dims > kCaps.dims) {
    return Bad(at, "number of dimensions: expected 1 to " + Number(kCaps.dims) + ", got " +
                       Number(num_dims));
  }
  CheckedU64 elements = 1;
  for (uint32_t i = 0; i < num_dims; ++i) {
    const uint64_t dim_at = cursor_.offset();
    const std::string what = "dimension " + Number(i);
    ASSIGN_OR_RETURN(const uint64_t dim, Take<uint64_t>(what));
    if (dim < 1 || dim > kCaps.dim) {
      return Bad(dim_at, what + ": expected 1 to " + Number(kCaps.dim) + ", got " + Number(dim));
    }
    elements = elements * dim;
    tensor.dims.push_back(dim);
  }
  // Beyond 2^63 elements even one bit each would not fit in a file.
  if (!elements.AtMost(uint64_t{1} << 62)) {
    return Bad(at, "shape " + DimsString(tensor.dims) + ": the number of elements overflows");
  }
  return absl::OkStatus();
}

absl::Status GgufParser::SetTypeAndSize(FileTensor& tensor, uint32_t type, uint64_t at) {
  const std::optional<kernels::DType> known = kernels::DTypeFromGgml(type);
  if (!known.has_value()) {
    const TensorTypeName described = DescribeTensorType(type);
    switch (described.standing) {
      case TensorTypeStanding::kKnown:
        return Unsupported(at, "type " + described.name + " is not supported");
      case TensorTypeStanding::kRemoved:
        return Bad(at, "type " + described.name + " was removed from the format");
      case TensorTypeStanding::kUnknown:
        return Bad(at, "type: expected one of the format's, got " + Number(type));
    }
  }
  tensor.type = *known;
  const kernels::DTypeTraits& traits = kernels::Traits(tensor.type);
  const auto block_values = static_cast<uint64_t>(traits.block_values);
  if (tensor.cols() % block_values != 0) {
    return Bad(at, "expected rows of a multiple of " + Number(block_values) + " values for type " +
                       std::string(traits.name) + ", got " + Number(tensor.cols()));
  }
  const CheckedU64 bytes = CheckedU64(tensor.cols() / block_values) *
                           static_cast<uint64_t>(traits.block_bytes) * tensor.rows();
  if (!bytes.AtMost(file_.file_bytes())) {
    return Bad(at, "expected data within the file's " + Number(file_.file_bytes()) +
                       " bytes, got shape " + tensor.ShapeString() +
                       (bytes.valid() ? " of " + Number(bytes.value()) + " bytes"
                                      : ", whose size overflows"));
  }
  tensor.bytes = bytes.value();
  return absl::OkStatus();
}

absl::Status GgufParser::ParseTensor(size_t index) {
  FileTensor tensor;
  const uint64_t at = cursor_.offset();
  tensor.record_offset = at;
  subject_ = {"tensor", index, ""};
  ASSIGN_OR_RETURN(tensor.name, TakeString("name", 1, kCaps.name_bytes));
  if (!IsPrintable(tensor.name)) {
    return Bad(at, "name: expected printable ASCII, got " + Quoted(tensor.name));
  }
  subject_.name = tensor.name;
  if (const auto [other, added] = file_.tensor_index_.emplace(tensor.name, index); !added) {
    return Bad(at, "expected each tensor once, got it again after tensor " + Number(other->second));
  }
  RETURN_IF_ERROR(ParseDims(tensor));
  const uint64_t type_at = cursor_.offset();
  ASSIGN_OR_RETURN(const uint32_t type, Take<uint32_t>("type"));
  RETURN_IF_ERROR(SetTypeAndSize(tensor, type, type_at));
  record_offsets_.push_back(cursor_.offset());
  ASSIGN_OR_RETURN(tensor.offset, Take<uint64_t>("offset"));
  file_.tensors_.push_back(std::move(tensor));
  return absl::OkStatus();
}

// The format packs tensors in the order of their records, each padded to the alignment: that leaves
// exactly one right offset for each, which rules out overlaps, gaps and other orders at once.
absl::Status GgufParser::PlaceTensors() {
  const CheckedU64 data_begin = CheckedU64(cursor_.offset()).RoundedUp(file_.alignment_);
  if (file_.tensors_.empty()) {
    file_.data_offset_ = std::min(data_begin.value(), file_.file_bytes());
    return absl::OkStatus();
  }
  file_.data_offset_ = data_begin.value();
  CheckedU64 next = 0;
  for (size_t i = 0; i < file_.tensors_.size(); ++i) {
    FileTensor& tensor = file_.tensors_[i];
    const uint64_t at = record_offsets_[i];
    subject_ = {"tensor", i, tensor.name};
    if (tensor.offset % file_.alignment_ != 0) {
      return Bad(at, "offset: expected a multiple of the alignment " + Number(file_.alignment_) +
                         ", got " + Number(tensor.offset));
    }
    if (!next.valid() || tensor.offset != next.value()) {
      return Bad(at, "offset: expected " + Number(next.value()) +
                         ", the end of the tensor before"
                         ", got " +
                         Number(tensor.offset) +
                         (tensor.offset < next.value() ? " (overlap or other order)" : " (gap)"));
    }
    const CheckedU64 begin = data_begin + tensor.offset;
    if (!(begin + tensor.bytes).AtMost(file_.file_bytes())) {
      return Bad(at, "expected data within the file's " + Number(file_.file_bytes()) +
                         " bytes, got " + Number(tensor.bytes) + " bytes from byte " +
                         Number(begin.value()) + " on");
    }
    next = (next + tensor.bytes).RoundedUp(file_.alignment_);
    tensor.offset = begin.value();
  }
  return absl::OkStatus();
}

absl::Status GgufParser::Parse() {
  if (file_.file_bytes() > kCaps.file_bytes) {
    return Bad(0, "expected a file of at most " + Number(kCaps.file_bytes) + " bytes, got " +
                      Number(file_.file_bytes()));
  }
  RETURN_IF_ERROR(ParseHeader());
  for (uint64_t i = 0; i < num_keys_; ++i) RETURN_IF_ERROR(ParseEntry());
  RETURN_IF_ERROR(TakeAlignment());
  for (uint64_t i = 0; i < num_tensors_; ++i) RETURN_IF_ERROR(ParseTensor(i));
  return PlaceTensors();
}

absl::StatusOr<std::shared_ptr<const ModelFile>> GgufParser::Open(const std::string& path) {
  std::shared_ptr<ModelFile> file(new ModelFile());
  file->path_ = path;
  ASSIGN_OR_RETURN(OpenFile opened, OpenFile::Open(path));
  file->AddPart(std::move(opened), 0);
  GgufParser parser(*file);
  RETURN_IF_ERROR(parser.Parse());
  return std::shared_ptr<const ModelFile>(std::move(file));
}

}  // namespace sluice::engine
