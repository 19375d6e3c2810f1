#include "engine/file_diff.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "engine/gguf/gguf_text.h"
#include "engine/gguf/gguf_writer.h"
#include "engine/model/sha256.h"
#include "engine/model_file/model_file.h"
#include "kernels/ops.h"

namespace sluice::engine {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kValuesAtATime = uint64_t{1} << 18;  // whole blocks of every type
constexpr size_t kShownBytes = 64;                      // of a string
constexpr size_t kShownElements = 8;                    // of an array

struct KeyDifference {
  std::string key;
  std::string a, b;  // as shown; empty: there is none
};
struct TensorDifference {
  std::string name;
  std::string a, b;  // shape and type; empty: there is none
  bool compared = false;
  double largest = 0;       // of two values' difference
  double relative_rms = 0;  // of all
};
struct Differences {
  std::vector<KeyDifference> keys;
  std::vector<TensorDifference> tensors;
  size_t equal_keys = 0;
  size_t equal_tensors = 0;
};

std::string LongValue(const MetadataValue& value, size_t count, const char* unit) {
  const std::string bytes = EncodedValue(value);
  Sha256 sha256;
  sha256.Add(std::as_bytes(std::span(bytes)));
  return TypeName(value) + ", " + std::to_string(count) + " " + unit + ", sha256 " +
         Sha256::Hex(sha256.Finish()).substr(0, 16);
}

template <typename T>
std::string ShownElement(const T& element) {
  if constexpr (std::is_same_v<T, std::string>) {
    return Quoted(element);
  } else if constexpr (std::is_same_v<T, bool>) {
    return element ? "true" : "false";
  } else if constexpr (std::is_floating_point_v<T>) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.*g", sizeof(T) == 4 ? 9 : 17, double{element});
    return text;
  } else {
    return std::to_string(element);
  }
}

// Short values as they are, long ones by size and digest.
std::string Shown(const MetadataValue& value) {
  return std::visit(
      [&value](const auto& held) -> std::string {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<T, std::string>) {
          return held.size() <= kShownBytes ? Quoted(held) : LongValue(value, held.size(), "bytes");
        } else if constexpr (std::is_same_v<T, MetadataArray>) {
          return std::visit(
              [&value](const auto& elements) {
                using Element = typename std::decay_t<decltype(elements)>::value_type;
                if (elements.size() > kShownElements) {
                  return LongValue(value, elements.size(), "elements");
                }
                std::string text = TypeName(value) + " [";
                for (size_t i = 0; i < elements.size(); ++i) {
                  text += (i == 0 ? "" : ", ") + ShownElement<Element>(elements[i]);
                }
                return text + "]";
              },
              held);
        } else {
          return ShownElement(held) + " (" + TypeName(value) + ")";
        }
      },
      value);
}

// By their bytes: NaN equals itself.
bool SameValue(const MetadataValue& a, const MetadataValue& b) {
  return a.index() == b.index() && EncodedValue(a) == EncodedValue(b);
}

void DiffKeys(const ModelFile& a, const ModelFile& b, Differences& out) {
  for (const ModelFile::Entry& entry : a.entries()) {
    const MetadataValue* const other = b.Find(entry.key);
    if (other != nullptr && SameValue(entry.value, *other)) {
      ++out.equal_keys;
    } else {
      out.keys.push_back({entry.key, Shown(entry.value), other != nullptr ? Shown(*other) : ""});
    }
  }
  for (const ModelFile::Entry& entry : b.entries()) {
    if (a.Find(entry.key) == nullptr) out.keys.push_back({entry.key, "", Shown(entry.value)});
  }
}

// Reads tensors piece by piece.
class TensorReader {
 public:
  TensorReader(const ModelFile& file, const FileTensor& tensor) : file_(file), tensor_(tensor) {}

  absl::Status Read(uint64_t first, uint64_t count) {
    const auto bytes_of = [this](uint64_t values) {
      return static_cast<uint64_t>(kernels::RowBytes(tensor_.type, static_cast<int64_t>(values)));
    };
    stored_.resize(bytes_of(count));
    return file_.Read(tensor_.offset + bytes_of(first), stored_);
  }
  const std::vector<std::byte>& stored() const { return stored_; }
  const std::vector<float>& Values(uint64_t count) {
    values_.resize(count);
    kernels::DequantizeStored(tensor_.type, stored_.data(), static_cast<int64_t>(count),
                              values_.data());
    if (tensor_.added != 0.0f) {
      for (float& value : values_) value += tensor_.added;
    }
    return values_;
  }

 private:
  const ModelFile& file_;
  const FileTensor& tensor_;
  std::vector<std::byte> stored_;
  std::vector<float> values_;
};

// Whether two tensors of one shape are the same bytes of the same type; if not, how far apart.
absl::StatusOr<bool> CompareValues(const ModelFile& a, const FileTensor& in_a, const ModelFile& b,
                                   const FileTensor& in_b, TensorDifference& out) {
  TensorReader reader_a(a, in_a), reader_b(b, in_b);
  const uint64_t total = in_a.cols() * in_a.rows();
  bool same = in_a.type == in_b.type && in_a.added == in_b.added;
  double squares = 0, squares_a = 0;
  for (uint64_t first = 0; first < total; first += kValuesAtATime) {
    const uint64_t count = std::min(kValuesAtATime, total - first);
    RETURN_IF_ERROR(reader_a.Read(first, count));
    RETURN_IF_ERROR(reader_b.Read(first, count));
    same = same && reader_a.stored() == reader_b.stored();
    const std::vector<float>& values_a = reader_a.Values(count);
    const std::vector<float>& values_b = reader_b.Values(count);
    for (uint64_t i = 0; i < count; ++i) {
      const double x = values_a[i], y = values_b[i];
      if (x == y || (std::isnan(x) && std::isnan(y))) {
        if (std::isfinite(x)) squares_a += x * x;
        continue;
      }
      double difference = std::abs(x - y);
      if (std::isnan(difference)) difference = INFINITY;  // a number against none
      out.largest = std::max(out.largest, difference);
      squares += difference * difference;
      if (std::isfinite(x)) squares_a += x * x;
    }
  }
  out.compared = true;
  out.relative_rms = squares == 0 ? 0 : std::sqrt(squares / squares_a);
  return same;
}

absl::Status DiffTensors(const ModelFile& a, const ModelFile& b, Differences& out) {
  for (const FileTensor& tensor : a.tensors()) {
    const FileTensor* const other = b.FindTensor(tensor.name);
    TensorDifference difference{tensor.name, tensor.ShapeString(),
                                other != nullptr ? other->ShapeString() : ""};
    if (other != nullptr && other->dims == tensor.dims) {
      ASSIGN_OR_RETURN(const bool same, CompareValues(a, tensor, b, *other, difference));
      if (same) {
        ++out.equal_tensors;
        continue;
      }
    }
    out.tensors.push_back(std::move(difference));
  }
  for (const FileTensor& tensor : b.tensors()) {
    if (a.FindTensor(tensor.name) == nullptr) {
      out.tensors.push_back({tensor.name, "", tensor.ShapeString()});
    }
  }
  return absl::OkStatus();
}

std::string InText(const Differences& differences) {
  std::string text;
  const auto add = [&text](const std::string& what, const std::string& name, const std::string& a,
                           const std::string& b) {
    if (b.empty()) {
      text += what + " " + name + " only in A: " + a;
    } else if (a.empty()) {
      text += what + " " + name + " only in B: " + b;
    } else {
      text += what + " " + name + ": " + (a == b ? a : a + " | " + b);
    }
  };
  for (const KeyDifference& key : differences.keys) {
    add("key", key.key, key.a, key.b);
    text += "\n";
  }
  for (const TensorDifference& tensor : differences.tensors) {
    add("tensor", tensor.name, tensor.a, tensor.b);
    if (tensor.compared) {
      char numbers[96];
      std::snprintf(numbers, sizeof(numbers), ", largest difference %.3e, relative RMS %.3e",
                    tensor.largest, tensor.relative_rms);
      text += numbers;
    }
    text += "\n";
  }
  const auto counts = [](size_t equal, size_t different, const char* what) {
    return std::to_string(equal) + " " + what + " equal, " + std::to_string(different) +
           " different";
  };
  return text + counts(differences.equal_keys, differences.keys.size(), "keys") + "; " +
         counts(differences.equal_tensors, differences.tensors.size(), "tensors") + "\n";
}

Json Number(double value) { return std::isfinite(value) ? Json(value) : Json(); }

std::string InJson(const std::string& path_a, const std::string& path_b, bool equal,
                   const Differences& differences) {
  Json keys = {{"only_a", Json::array()}, {"only_b", Json::array()}, {"different", Json::array()}};
  Json tensors = keys;
  const auto list = [](const std::string& a, const std::string& b) {
    return b.empty() ? "only_a" : a.empty() ? "only_b" : "different";
  };
  for (const KeyDifference& key : differences.keys) {
    Json entry = {{"key", key.key}};
    if (!key.a.empty()) entry["a"] = key.a;
    if (!key.b.empty()) entry["b"] = key.b;
    keys[list(key.a, key.b)].push_back(std::move(entry));
  }
  for (const TensorDifference& tensor : differences.tensors) {
    Json entry = {{"name", tensor.name}};
    if (!tensor.a.empty()) entry["a"] = tensor.a;
    if (!tensor.b.empty()) entry["b"] = tensor.b;
    if (tensor.compared) {
      entry["largest_difference"] = Number(tensor.largest);
      entry["relative_rms"] = Number(tensor.relative_rms);
    }
    tensors[list(tensor.a, tensor.b)].push_back(std::move(entry));
  }
  const Json out = {{"a", path_a},
                    {"b", path_b},
                    {"equal", equal},
                    {"metadata", std::move(keys)},
                    {"tensors", std::move(tensors)},
                    {"equal_keys", differences.equal_keys},
                    {"equal_tensors", differences.equal_tensors}};
  return out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

absl::StatusOr<FileDiff> DiffFiles(const std::string& a, const std::string& b, bool json) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const ModelFile> file_a, ModelFile::Open(a));
  ASSIGN_OR_RETURN(const std::shared_ptr<const ModelFile> file_b, ModelFile::Open(b));
  Differences differences;
  DiffKeys(*file_a, *file_b, differences);
  RETURN_IF_ERROR(DiffTensors(*file_a, *file_b, differences));
  FileDiff diff;
  diff.equal = differences.keys.empty() && differences.tensors.empty();
  diff.text = json ? InJson(a, b, diff.equal, differences) : InText(differences);
  return diff;
}

}  // namespace sluice::engine
