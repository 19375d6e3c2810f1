#include "tests/fuzz/gguf_mutator.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

namespace sluice::fuzz {
namespace {

constexpr uint32_t kString = 8, kArray = 9;
// Of the format's value types; 0: string and array, which say it themselves.
constexpr std::array<uint8_t, 13> kValueBytes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

constexpr std::array<std::string_view, 26> kKeyNames = {"general.architecture",
                                                        "general.alignment",
                                                        "general.type",
                                                        "general.name",
                                                        "split.count",
                                                        "split.no",
                                                        "llama.block_count",
                                                        "llama.context_length",
                                                        "llama.embedding_length",
                                                        "llama.feed_forward_length",
                                                        "llama.attention.head_count",
                                                        "llama.attention.head_count_kv",
                                                        "llama.attention.key_length",
                                                        "llama.attention.value_length",
                                                        "llama.attention.layer_norm_rms_epsilon",
                                                        "llama.rope.freq_base",
                                                        "llama.rope.dimension_count",
                                                        "llama.rope.scaling.type",
                                                        "llama.rope.scaling.factor",
                                                        "llama.rope.scale_linear",
                                                        "llama.vocab_size",
                                                        "llama.expert_count",
                                                        "llama.attention.sliding_window",
                                                        "tokenizer.ggml.model",
                                                        "tokenizer.ggml.tokens",
                                                        "general.quantization_version"};
constexpr std::array<std::string_view, 12> kTensorNames = {
    "token_embd.weight",        "output.weight",          "output_norm.weight",
    "rope_freqs.weight",        "blk.0.attn_q.weight",    "blk.0.attn_k.bias",
    "blk.0.attn_q_norm.weight", "blk.1.attn_norm.weight", "blk.0.ffn_gate.weight",
    "blk.1023.ffn_up.weight",   "blk.0.attn_rot_embd",    "blk.99999999999.x"};
constexpr std::array<std::string_view, 8> kTexts = {
    "llama", "qwen2", "model", "linear", "none", "yarn", "", "Meta AI original pth"};
constexpr std::array<uint64_t, 24> kNumbers = {0,
                                               1,
                                               2,
                                               3,
                                               4,
                                               5,
                                               7,
                                               8,
                                               16,
                                               31,
                                               32,
                                               33,
                                               64,
                                               255,
                                               256,
                                               1024,
                                               1025,
                                               65'535,
                                               65'536,
                                               uint64_t{1} << 31,
                                               (uint64_t{1} << 32) - 1,
                                               uint64_t{1} << 40,
                                               uint64_t{1} << 63,
                                               UINT64_MAX};

template <typename T>
bool Take(std::string_view& from, T& value) {
  if (from.size() < sizeof(T)) return false;
  std::memcpy(&value, from.data(), sizeof(T));
  from.remove_prefix(sizeof(T));
  return true;
}

bool TakeBytes(std::string_view& from, uint64_t size, std::string& out) {
  if (size > from.size()) return false;
  out = from.substr(0, size);
  from.remove_prefix(size);
  return true;
}

bool TakeString(std::string_view& from, std::string& out) {
  uint64_t size = 0;
  return Take(from, size) && TakeBytes(from, size, out);
}

template <typename T>
void Append(std::string& to, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  to.append(bytes, sizeof(T));
}

void AppendString(std::string& to, std::string_view text) {
  Append<uint64_t>(to, text.size());
  to += text;
}

// The value of a key, as stored.
bool TakeValue(std::string_view& from, uint32_t type, std::string& out) {
  const std::string_view begin = from;
  std::string skipped;
  if (type == kString) {
    if (!TakeString(from, skipped)) return false;
  } else if (type == kArray) {
    uint32_t element = 0;
    uint64_t count = 0;
    if (!Take(from, element) || !Take(from, count) || element >= kValueBytes.size() ||
        element == kArray || count > from.size()) {
      return false;
    }
    for (uint64_t i = 0; element == kString && i < count; ++i) {
      if (!TakeString(from, skipped)) return false;
    }
    if (element != kString && !TakeBytes(from, count * kValueBytes[element], skipped)) return false;
  } else if (type >= kValueBytes.size() || !TakeBytes(from, kValueBytes[type], skipped)) {
    return false;
  }
  out = begin.substr(0, begin.size() - from.size());
  return true;
}

template <typename Container>
auto& Pick(Container& from, std::minstd_rand& random) {
  return from[random() % from.size()];
}

// `text` changed by `mutate`, at most `growth` bytes longer.
void MutateString(std::string& text, size_t growth, GgufFields::MutateBytes mutate) {
  const size_t size = text.size();
  if (size + growth == 0) return;
  text.resize(size + growth);
  text.resize(mutate(reinterpret_cast<uint8_t*>(text.data()), size, text.size()));
}

// Bytes of a tensor's data where its type is known; nothing to be exact about elsewhere.
uint64_t DataBytes(uint32_t type, const std::vector<uint64_t>& dims) {
  uint64_t values = 1;
  for (const uint64_t dim : dims) values *= dim;
  switch (type) {
    case 0:
      return values * 4;
    case 1:
    case 30:
      return values * 2;
    case 2:
      return values / 32 * 18;
    case 3:
      return values / 32 * 20;
    case 8:
      return values / 32 * 34;
    default:
      return values;
  }
}

}  // namespace

bool GgufFields::Parse(std::string_view bytes) {
  uint32_t magic = 0;
  uint64_t num_tensors = 0, num_keys = 0;
  if (!Take(bytes, magic) || magic != 0x46554747 || !Take(bytes, version_) ||
      !Take(bytes, num_tensors) || !Take(bytes, num_keys) || num_tensors > bytes.size() ||
      num_keys > bytes.size()) {
    return false;
  }
  for (uint64_t i = 0; i < num_keys; ++i) {
    Key key{};
    if (!TakeString(bytes, key.name) || !Take(bytes, key.type) ||
        !TakeValue(bytes, key.type, key.value)) {
      return false;
    }
    keys_.push_back(std::move(key));
  }
  for (uint64_t i = 0; i < num_tensors; ++i) {
    Tensor tensor{};
    uint32_t num_dims = 0;
    if (!TakeString(bytes, tensor.name) || !Take(bytes, num_dims) || num_dims > 8) return false;
    tensor.dims.resize(num_dims);
    for (uint64_t& dim : tensor.dims) {
      if (!Take(bytes, dim)) return false;
    }
    if (!Take(bytes, tensor.type) || !Take(bytes, tensor.offset)) return false;
    tensors_.push_back(std::move(tensor));
  }
  rest_ = bytes;
  return !keys_.empty();
}

void GgufFields::ChangeKey(std::minstd_rand& random, MutateBytes mutate) {
  Key& key = Pick(keys_, random);
  switch (random() % 9) {
    case 0:
      key.name = Pick(kKeyNames, random);
      break;
    case 1:
      MutateString(key.name, 8, mutate);
      break;
    case 2:
      MutateString(key.value, key.type == kString || key.type == kArray ? 16 : 0, mutate);
      break;
    case 3:
      key.type = kString;
      key.value.clear();
      AppendString(key.value, Pick(kTexts, random));
      break;
    case 4:
      key.type = random() % 2 == 0 ? 4 : 10;
      key.value.clear();
      Append<uint64_t>(key.value, Pick(kNumbers, random));
      key.value.resize(kValueBytes[key.type]);
      break;
    case 5: {
      constexpr std::array<float, 8> kFloats = {0.0f,   1.0f,  -1.0f, 2.0f,
                                                1e-45f, 3e38f, 1e4f,  1e-5f};
      key.type = 6;
      key.value.clear();
      Append<float>(key.value, Pick(kFloats, random));
      break;
    }
    case 6:
      keys_.push_back(key);
      break;
    case 7:
      std::swap(key, Pick(keys_, random));
      break;
    default:
      keys_.erase(keys_.begin() + (&key - keys_.data()));
      break;
  }
}

void GgufFields::ChangeTensor(std::minstd_rand& random, MutateBytes mutate) {
  Tensor& tensor = Pick(tensors_, random);
  switch (random() % 9) {
    case 0:
      tensor.name = Pick(kTensorNames, random);
      break;
    case 1:
      MutateString(tensor.name, 4, mutate);
      break;
    case 2:
      if (!tensor.dims.empty()) Pick(tensor.dims, random) = Pick(kNumbers, random);
      break;
    case 3:
      if (tensor.dims.size() < 6) tensor.dims.push_back(random() % 3 == 0 ? 2 : 1);
      break;
    case 4:
      if (!tensor.dims.empty()) tensor.dims.pop_back();
      break;
    case 5:
      tensor.type = static_cast<uint32_t>(random() % 42);
      break;
    case 6:
      tensors_.push_back(tensor);
      break;
    case 7:
      tensor.offset = Pick(kNumbers, random);
      return;  // stays wrong
    default:
      tensors_.erase(tensors_.begin() + (&tensor - tensors_.data()));
      break;
  }
  PlaceTensors();
}

void GgufFields::PlaceTensors() {
  uint64_t next = 0;
  for (Tensor& tensor : tensors_) {
    tensor.offset = next;
    next += (DataBytes(tensor.type, tensor.dims) + 31) / 32 * 32;
  }
}

void GgufFields::Change(std::minstd_rand& random, MutateBytes mutate) {
  const auto kind = random() % 16;
  if (kind == 0) {
    MutateString(rest_, 64, mutate);
  } else if (kind == 1) {
    version_ = static_cast<uint32_t>(random() % 5);
  } else if (kind < 6 && !tensors_.empty()) {
    ChangeTensor(random, mutate);
  } else if (!keys_.empty()) {
    ChangeKey(random, mutate);
  }
}

std::string GgufFields::Bytes() const {
  std::string out;
  Append<uint32_t>(out, 0x46554747);
  Append<uint32_t>(out, version_);
  Append<uint64_t>(out, tensors_.size());
  Append<uint64_t>(out, keys_.size());
  for (const Key& key : keys_) {
    AppendString(out, key.name);
    Append<uint32_t>(out, key.type);
    out += key.value;
  }
  for (const Tensor& tensor : tensors_) {
    AppendString(out, tensor.name);
    Append<uint32_t>(out, static_cast<uint32_t>(tensor.dims.size()));
    for (const uint64_t dim : tensor.dims) Append<uint64_t>(out, dim);
    Append<uint32_t>(out, tensor.type);
    Append<uint64_t>(out, tensor.offset);
  }
  return out + rest_;
}

}  // namespace sluice::fuzz

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

// Half of the changes are to fields, half to bytes.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
  std::minstd_rand random(seed);
  sluice::fuzz::GgufFields fields;
  if (random() % 2 == 0 || !fields.Parse({reinterpret_cast<const char*>(data), size})) {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  for (auto changes = 1 + random() % 3; changes > 0; --changes) {
    fields.Change(random, &LLVMFuzzerMutate);
  }
  const std::string bytes = fields.Bytes();
  if (bytes.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::memcpy(data, bytes.data(), bytes.size());
  return bytes.size();
}
