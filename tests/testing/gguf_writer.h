#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model_file/model_file.h"
#include "kernels/core/dtype.h"

namespace sluice::testing {

// A GGUF file about to be written, every field open to edits: what is not set by hand is what a
// well-formed file has. Value.
//
//   GgufDraft draft = MakeTinyModelDraft({});
//   draft.Set("llama.block_count", uint32_t{3});     // one layer more than there is
//   draft.TensorAt("output_norm.weight").offset = 7;  // or a record's field
//   TempFile file(draft.Bytes());
struct GgufDraft {
  struct Key {
    std::string name;
    uint32_t type = 0;                    // the format's number of the value's type
    std::string payload;                  // the value as stored
    std::optional<uint64_t> name_length;  // instead of the name's own
  };
  struct Tensor {
    std::string name;
    std::vector<uint64_t> dims;  // dims[0] is the row length
    uint32_t type = 0;           // the format's number
    std::string bytes;           // as stored, rows one after the other
    std::optional<uint64_t> name_length;
    std::optional<uint32_t> num_dims;
    std::optional<uint64_t> offset;  // from the start of the data
  };

  std::string magic = "GGUF";
  uint32_t version = 3;
  std::optional<uint64_t> num_tensors;
  std::optional<uint64_t> num_keys;
  uint32_t alignment = 32;  // of the layout; the key is not written unless Set
  std::vector<Key> keys;
  std::vector<Tensor> tensors;

  // Replaces the key's value, or appends the key.
  void Set(std::string_view key, const engine::MetadataValue& value);
  void SetString(std::string_view key, std::string_view text);
  void SetStrings(std::string_view key, std::vector<std::string> texts);
  void Remove(std::string_view key);
  void RemoveTensor(std::string_view name);
  // Abort when there is none of that name.
  Key& KeyAt(std::string_view key);
  Tensor& TensorAt(std::string_view name);
  void AddTensor(std::string_view name, std::vector<uint64_t> dims, kernels::DType type,
                 std::string bytes);

  std::string Bytes() const;
  // Of `field` in Bytes(): "version", "num_tensors", "num_keys", "data", "key NAME" (its length
  // word), "tensor NAME" (its record), "bytes NAME" (its data).
  uint64_t OffsetOf(std::string_view field) const;
};

// Number and stored form of a value, as GgufDraft::Key has them.
uint32_t ValueTypeNumber(const engine::MetadataValue& value);
std::string EncodeValue(const engine::MetadataValue& value);
// `bits` little-endian, for payloads written by hand.
std::string Word32(uint32_t bits);
std::string Word64(uint64_t bits);

// Values as stored in a file of type F32, F16, BF16, Q8_0 or Q4_1 (nearest even, absolute maximum /
// 127, minimum and (maximum - minimum) / 15). `values.size()` is a multiple of the block.
std::string EncodeTensor(kernels::DType type, const std::vector<float>& values);

// A small model of random weights. Shapes and types are free; defaults give about 300 KB.
struct TinyModelSpec {
  std::string architecture = "llama";  // any that Sluice knows, with its tensors and keys
  int layers = 2;
  int width = 64;
  int heads = 4;
  int kv_heads = 2;
  int head_size = 0;  // 0: width / heads, no key written; else attention.key_length
  int ffn_width = 160;
  int vocab_size = 320;
  int context_length = 512;
  float norm_epsilon = 1e-5f;
  float rope_base = 10000.0f;
  int rotary_size = 0;              // 0: the head size
  std::vector<float> rope_factors;  // [rotary / 2], or empty: no rope_freqs.weight
  bool qkv_bias = false;            // always for qwen2 and starcoder2
  bool tied_head = false;           // always for the gemmas
  bool vocabulary = true;  // byte-level BPE of 256 bytes, some merges, control tokens; needs
                           // vocab_size >= 264
  kernels::DType matrix_type = kernels::DType::kF32;
  std::optional<kernels::DType> embedding_type;  // token_embd and output; else matrix_type
  std::optional<kernels::DType> key_type;        // attn_k; else matrix_type
  std::optional<kernels::DType> value_type;      // attn_v; else matrix_type
  kernels::DType norm_type = kernels::DType::kF32;
  uint64_t seed = 1;
};
GgufDraft MakeTinyModelDraft(const TinyModelSpec& spec);
std::string MakeTinyModel(const TinyModelSpec& spec);

// A file of its own name in the test's temporary folder; removed by the destructor.
class TempFile {
 public:
  explicit TempFile(std::string_view bytes);
  ~TempFile();
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace sluice::testing
