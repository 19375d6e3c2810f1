#include "engine/safetensors/safetensors_header.h"

#include <algorithm>
#include <array>
#include <span>
#include <string_view>
#include <utility>

#include "engine/base/status.h"
#include "engine/gguf/checked_u64.h"
#include "engine/gguf/gguf_text.h"
#include "engine/safetensors/json_document.h"

namespace sluice::engine {
namespace {

using kernels::DType;

constexpr size_t kMaxDims = 8;
constexpr size_t kMaxNameBytes = 1024;
constexpr uint64_t kMaxDim = uint64_t{1} << 40;

struct StoredType {
  std::string_view name;
  uint64_t bytes;
  std::optional<DType> type;
};
constexpr std::array<StoredType, 17> kTypes = {{{"F32", 4, DType::kF32},
                                                {"F16", 2, DType::kF16},
                                                {"BF16", 2, DType::kBF16},
                                                {"F64", 8, std::nullopt},
                                                {"I64", 8, std::nullopt},
                                                {"I32", 4, std::nullopt},
                                                {"I16", 2, std::nullopt},
                                                {"I8", 1, std::nullopt},
                                                {"U64", 8, std::nullopt},
                                                {"U32", 4, std::nullopt},
                                                {"U16", 2, std::nullopt},
                                                {"U8", 1, std::nullopt},
                                                {"BOOL", 1, std::nullopt},
                                                {"F8_E4M3", 1, std::nullopt},
                                                {"F8_E5M2", 1, std::nullopt},
                                                {"F8_E8M0", 1, std::nullopt},
                                                {"C64", 8, std::nullopt}}};

std::string Decimal(uint64_t n) { return std::to_string(n); }

// Reads one file's header; used once.
class HeaderReader {
 public:
  HeaderReader(const OpenFile& file, SafetensorsHeader& header) : file_(file), header_(header) {}

  absl::Status Read() {
    RETURN_IF_ERROR(ReadJson());
    absl::StatusOr<JsonDocument> document = JsonDocument::Parse(header_.json);
    if (!document.ok()) return Prefix(file_.path() + ": header", document.status());
    const JsonValue root = document->root();
    if (!root.is_object()) {
      return Bad("header", "expected a JSON object, got " + std::string(KindName(root.kind())));
    }
    for (const JsonValue member : root) {
      if (member.key() == "__metadata__") continue;
      if (header_.tensors.size() == SafetensorsHeader::kMaxTensors) {
        return Bad("header", "expected at most " + Decimal(SafetensorsHeader::kMaxTensors) +
                                 " tensors, got more");
      }
      RETURN_IF_ERROR(ReadTensor(member));
    }
    return PlaceTensors();
  }

 private:
  absl::Status Bad(std::string_view subject, std::string_view text) const {
    return InvalidArgument(file_.path() + ": " + std::string(subject) + ": " + std::string(text));
  }

  absl::Status ReadJson() {
    uint64_t length = 0;
    if (file_.bytes() < sizeof(length)) {
      return Bad("header",
                 "expected its length in 8 bytes, got a file of " + Decimal(file_.bytes()));
    }
    RETURN_IF_ERROR(file_.Read(0, std::as_writable_bytes(std::span(&length, 1))));
    const uint64_t left = file_.bytes() - sizeof(length);
    const uint64_t most = std::min(left, SafetensorsHeader::kMaxHeaderBytes);
    if (length < 2 || length > most) {
      return Bad("header", "expected a length of 2 to " + Decimal(most) + " bytes" +
                               (most == left ? ", which the file has left" : "") + ", got " +
                               Decimal(length) + " (at byte 0)");
    }
    header_.json.resize(length);
    header_.data_begin = sizeof(length) + length;
    RETURN_IF_ERROR(file_.Read(sizeof(length), std::as_writable_bytes(std::span(header_.json))));
    if (header_.json[0] == '{') return absl::OkStatus();
    return Bad("header", "expected a JSON object from byte 8 on, got " +
                             Quoted(std::string_view(header_.json).substr(0, 8)));
  }

  absl::Status ReadTensor(const JsonValue& member) {
    StoredTensor tensor;
    tensor.name = member.key();
    const std::string subject = "tensor " + Quoted(tensor.name);
    if (tensor.name.empty() || tensor.name.size() > kMaxNameBytes) {
      return Bad(subject, "expected a name of 1 to " + Decimal(kMaxNameBytes) + " bytes");
    }
    if (!member.is_object()) {
      return Bad(subject, "expected an object, got " + std::string(KindName(member.kind())));
    }
    for (const JsonValue field : member) {
      if (field.key() != "dtype" && field.key() != "shape" && field.key() != "data_offsets") {
        return Bad(subject,
                   "expected 'dtype', 'shape' and 'data_offsets', got " + Quoted(field.key()));
      }
    }
    ASSIGN_OR_RETURN(const uint64_t item_bytes, ReadType(subject, member, tensor));
    ASSIGN_OR_RETURN(tensor.shape, ReadNumbers(subject, member, "shape", 0, kMaxDims));
    CheckedU64 bytes = item_bytes;
    for (const uint64_t dim : tensor.shape) {
      if (dim < 1 || dim > kMaxDim) {
        return Bad(subject, "shape " + DimsString(tensor.shape) + ": expected dimensions of 1 to " +
                                Decimal(kMaxDim) + ", got " + Decimal(dim));
      }
      bytes = bytes * dim;
    }
    ASSIGN_OR_RETURN(const std::vector<uint64_t> range,
                     ReadNumbers(subject, member, "data_offsets", 2, 2));
    const uint64_t data_bytes = file_.bytes() - header_.data_begin;
    if (range[0] > range[1] || range[1] > data_bytes) {
      return Bad(subject, "data_offsets: expected a begin and an end of at most " +
                              Decimal(data_bytes) + ", the file's data, got " + DimsString(range));
    }
    if (!bytes.AtMost(data_bytes) || bytes.value() != range[1] - range[0]) {
      return Bad(subject, "data_offsets " + DimsString(range) + ": expected " +
                              (bytes.valid() ? Decimal(bytes.value()) : "more than 2^64") +
                              " bytes for shape " + DimsString(tensor.shape) + " of " +
                              tensor.dtype + ", got " + Decimal(range[1] - range[0]));
    }
    tensor.begin = range[0];
    tensor.bytes = bytes.value();
    header_.tensors.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  // Bytes of one value.
  absl::StatusOr<uint64_t> ReadType(const std::string& subject, const JsonValue& member,
                                    StoredTensor& tensor) const {
    const std::optional<JsonValue> field = member.Find("dtype");
    const std::optional<std::string_view> name =
        field.has_value() ? field->AsString() : std::nullopt;
    if (!name.has_value()) return Bad(subject, "dtype: expected a string, got none");
    for (const StoredType& type : kTypes) {
      if (type.name != *name) continue;
      tensor.dtype = *name;
      tensor.type = type.type;
      return type.bytes;
    }
    return Unimplemented(file_.path() + ": " + subject +
                         ": dtype: expected F32, F16 or BF16, got " + Quoted(*name));
  }

  absl::StatusOr<std::vector<uint64_t>> ReadNumbers(const std::string& subject,
                                                    const JsonValue& member, std::string_view key,
                                                    size_t least, size_t most) const {
    const std::string what = std::string(key) + ": ";
    const std::optional<JsonValue> field = member.Find(key);
    if (!field.has_value() || !field->is_array()) {
      return Bad(subject, what + "expected an array of numbers, got " +
                              (field.has_value() ? std::string(KindName(field->kind())) : "none"));
    }
    std::vector<uint64_t> numbers;
    for (const JsonValue element : *field) {
      const std::optional<int64_t> number = element.AsInteger();
      if (!number.has_value() || *number < 0) {
        return Bad(subject, what + "expected whole numbers below 2^63, got " + element.Dump(64));
      }
      if (numbers.size() == most) break;
      numbers.push_back(static_cast<uint64_t>(*number));
    }
    if (field->size() < least || field->size() > most) {
      return Bad(subject, what + "expected " +
                              (least == most ? Decimal(most) : "at most " + Decimal(most)) +
                              " numbers, got " + Decimal(field->size()));
    }
    return numbers;
  }

  // The format fills the data without gaps: with no overlap either, each tensor has one right
  // place.
  absl::Status PlaceTensors() {
    std::vector<StoredTensor>& tensors = header_.tensors;
    std::sort(tensors.begin(), tensors.end(),
              [](const StoredTensor& a, const StoredTensor& b) { return a.begin < b.begin; });
    uint64_t next = 0;
    for (StoredTensor& tensor : tensors) {
      if (tensor.begin != next) {
        return Bad("tensor " + Quoted(tensor.name),
                   "data_offsets: expected " + Decimal(next) +
                       ", the end of the tensor before, got " + Decimal(tensor.begin) +
                       (tensor.begin < next ? " (overlap)" : " (gap)"));
      }
      next += tensor.bytes;
      tensor.begin += header_.data_begin;
    }
    const uint64_t data_bytes = file_.bytes() - header_.data_begin;
    if (next != data_bytes) {
      return Bad("header", "expected tensors of " + Decimal(data_bytes) +
                               " bytes, the rest of the file, got " + Decimal(next));
    }
    return absl::OkStatus();
  }

  const OpenFile& file_;
  SafetensorsHeader& header_;
};

}  // namespace

absl::StatusOr<SafetensorsHeader> SafetensorsHeader::Read(const OpenFile& file) {
  SafetensorsHeader header;
  RETURN_IF_ERROR(HeaderReader(file, header).Read());
  return header;
}

}  // namespace sluice::engine
