#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::fuzz {

// The fields of a GGUF file as far as they can be told apart, to be changed one at a time and put
// together again: counts and offsets then fit, so that what is behind them is reached. Value.
class GgufFields {
 public:
  // False when the header or a record cannot be followed: such bytes are mutated as bytes.
  bool Parse(std::string_view bytes);
  // One change. `mutate` changes bytes in place, and may make them longer up to its last argument.
  using MutateBytes = size_t (*)(uint8_t* data, size_t size, size_t max_size);
  void Change(std::minstd_rand& random, MutateBytes mutate);
  std::string Bytes() const;

 private:
  struct Key {
    std::string name;
    uint32_t type;
    std::string value;
  };
  struct Tensor {
    std::string name;
    std::vector<uint64_t> dims;
    uint32_t type;
    uint64_t offset;
  };

  void ChangeKey(std::minstd_rand& random, MutateBytes mutate);
  void ChangeTensor(std::minstd_rand& random, MutateBytes mutate);
  void PlaceTensors();

  uint32_t version_ = 3;
  std::vector<Key> keys_;
  std::vector<Tensor> tensors_;
  std::string rest_;  // alignment, data, and the byte that says how many zeros follow
};

}  // namespace sluice::fuzz
