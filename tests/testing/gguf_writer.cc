#include "tests/testing/gguf_writer.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <type_traits>
#include <utility>
#include <variant>

namespace sluice::testing {
namespace {

[[noreturn]] void Die(std::string_view what, std::string_view name) {
  std::fprintf(stderr, "gguf_writer: %.*s %.*s\n", static_cast<int>(what.size()), what.data(),
               static_cast<int>(name.size()), name.data());
  std::abort();
}

template <typename T>
void Append(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

void AppendString(std::string& out, std::string_view text) {
  Append<uint64_t>(out, text.size());
  out.append(text);
}

// The format's numbers (ggml/docs/gguf.md, enum gguf_metadata_value_type).
constexpr uint32_t kBool = 7, kString = 8, kArray = 9;
template <typename T>
constexpr uint32_t TypeNumber() {
  if constexpr (std::is_same_v<T, uint8_t>) return 0;
  if constexpr (std::is_same_v<T, int8_t>) return 1;
  if constexpr (std::is_same_v<T, uint16_t>) return 2;
  if constexpr (std::is_same_v<T, int16_t>) return 3;
  if constexpr (std::is_same_v<T, uint32_t>) return 4;
  if constexpr (std::is_same_v<T, int32_t>) return 5;
  if constexpr (std::is_same_v<T, float>) return 6;
  if constexpr (std::is_same_v<T, bool>) return kBool;
  if constexpr (std::is_same_v<T, std::string>) return kString;
  if constexpr (std::is_same_v<T, engine::MetadataArray>) return kArray;
  if constexpr (std::is_same_v<T, uint64_t>) return 10;
  if constexpr (std::is_same_v<T, int64_t>) return 11;
  if constexpr (std::is_same_v<T, double>) return 12;
}

template <typename T>
void AppendElement(std::string& out, const T& value) {
  if constexpr (std::is_same_v<T, std::string>) {
    AppendString(out, value);
  } else if constexpr (std::is_same_v<T, bool>) {
    Append<uint8_t>(out, value ? 1 : 0);
  } else {
    Append<T>(out, value);
  }
}

uint64_t RoundUp(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }

// A draft's bytes and where its fields came to lie.
struct Layout {
  std::string bytes;
  std::vector<uint64_t> keys, records, data;  // offsets in `bytes`
  uint64_t data_begin = 0;
};

Layout LayOut(const GgufDraft& draft) {
  Layout out;
  std::string& bytes = out.bytes;
  bytes = draft.magic;
  Append<uint32_t>(bytes, draft.version);
  Append<uint64_t>(bytes, draft.num_tensors.value_or(draft.tensors.size()));
  Append<uint64_t>(bytes, draft.num_keys.value_or(draft.keys.size()));
  for (const GgufDraft::Key& key : draft.keys) {
    out.keys.push_back(bytes.size());
    Append<uint64_t>(bytes, key.name_length.value_or(key.name.size()));
    bytes += key.name;
    Append<uint32_t>(bytes, key.type);
    bytes += key.payload;
  }
  uint64_t next = 0;
  for (const GgufDraft::Tensor& tensor : draft.tensors) {
    out.records.push_back(bytes.size());
    Append<uint64_t>(bytes, tensor.name_length.value_or(tensor.name.size()));
    bytes += tensor.name;
    Append<uint32_t>(bytes, tensor.num_dims.value_or(static_cast<uint32_t>(tensor.dims.size())));
    for (const uint64_t dim : tensor.dims) Append<uint64_t>(bytes, dim);
    Append<uint32_t>(bytes, tensor.type);
    Append<uint64_t>(bytes, tensor.offset.value_or(next));
    next += RoundUp(tensor.bytes.size(), draft.alignment);
  }
  bytes.resize(RoundUp(bytes.size(), draft.alignment), '\0');
  out.data_begin = bytes.size();
  for (const GgufDraft::Tensor& tensor : draft.tensors) {
    out.data.push_back(bytes.size());
    bytes += tensor.bytes;
    bytes.resize(RoundUp(bytes.size(), draft.alignment), '\0');
  }
  return out;
}

}  // namespace

std::string Word32(uint32_t bits) {
  std::string out;
  Append(out, bits);
  return out;
}

std::string Word64(uint64_t bits) {
  std::string out;
  Append(out, bits);
  return out;
}

uint32_t ValueTypeNumber(const engine::MetadataValue& value) {
  return std::visit([](const auto& held) { return TypeNumber<std::decay_t<decltype(held)>>(); },
                    value);
}

std::string EncodeValue(const engine::MetadataValue& value) {
  std::string out;
  if (const auto* array = std::get_if<engine::MetadataArray>(&value)) {
    std::visit(
        [&out](const auto& elements) {
          using T = typename std::decay_t<decltype(elements)>::value_type;
          Append<uint32_t>(out, TypeNumber<T>());
          Append<uint64_t>(out, elements.size());
          for (const T& element : elements) AppendElement<T>(out, element);
        },
        *array);
    return out;
  }
  std::visit(
      [&out](const auto& held) {
        using T = std::decay_t<decltype(held)>;
        if constexpr (!std::is_same_v<T, engine::MetadataArray>) AppendElement<T>(out, held);
      },
      value);
  return out;
}

void GgufDraft::Set(std::string_view key, const engine::MetadataValue& value) {
  for (Key& entry : keys) {
    if (entry.name != key) continue;
    entry.type = ValueTypeNumber(value);
    entry.payload = EncodeValue(value);
    return;
  }
  keys.push_back({std::string(key), ValueTypeNumber(value), EncodeValue(value), std::nullopt});
}

void GgufDraft::SetString(std::string_view key, std::string_view text) {
  Set(key, engine::MetadataValue(std::string(text)));
}

void GgufDraft::SetStrings(std::string_view key, std::vector<std::string> texts) {
  Set(key, engine::MetadataValue(engine::MetadataArray(std::move(texts))));
}

void GgufDraft::Remove(std::string_view key) {
  if (std::erase_if(keys, [key](const Key& entry) { return entry.name == key; }) == 0) {
    Die("no key", key);
  }
}

void GgufDraft::RemoveTensor(std::string_view name) {
  if (std::erase_if(tensors, [name](const Tensor& entry) { return entry.name == name; }) == 0) {
    Die("no tensor", name);
  }
}

GgufDraft::Key& GgufDraft::KeyAt(std::string_view key) {
  for (Key& entry : keys) {
    if (entry.name == key) return entry;
  }
  Die("no key", key);
}

GgufDraft::Tensor& GgufDraft::TensorAt(std::string_view name) {
  for (Tensor& entry : tensors) {
    if (entry.name == name) return entry;
  }
  Die("no tensor", name);
}

void GgufDraft::AddTensor(std::string_view name, std::vector<uint64_t> dims, kernels::DType type,
                          std::string bytes) {
  Tensor tensor;
  tensor.name = name;
  tensor.dims = std::move(dims);
  tensor.type = kernels::Traits(type).ggml_type;
  tensor.bytes = std::move(bytes);
  tensors.push_back(std::move(tensor));
}

std::string GgufDraft::Bytes() const { return LayOut(*this).bytes; }

uint64_t GgufDraft::OffsetOf(std::string_view field) const {
  if (field == "version") return 4;
  if (field == "num_tensors") return 8;
  if (field == "num_keys") return 16;
  const Layout layout = LayOut(*this);
  if (field == "data") return layout.data_begin;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (field == "key " + keys[i].name) return layout.keys[i];
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (field == "tensor " + tensors[i].name) return layout.records[i];
    if (field == "bytes " + tensors[i].name) return layout.data[i];
  }
  Die("no field", field);
}

TempFile::TempFile(std::string_view bytes) {
  std::string pattern = (std::filesystem::temp_directory_path() / "sluice_test_XXXXXX").string();
  const int fd = mkstemp(pattern.data());
  if (fd < 0) Die("cannot create", pattern);
  path_ = pattern;
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = write(fd, bytes.data() + done, bytes.size() - done);
    if (n <= 0) Die("cannot write", path_);
    done += static_cast<size_t>(n);
  }
  close(fd);
}

TempFile::~TempFile() { unlink(path_.c_str()); }

}  // namespace sluice::testing
