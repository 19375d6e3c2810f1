#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string_view>

namespace sluice::engine {

// Hashes under a secret key, so that no file and no client can make things that all collide. Value.
class KeyedHash {
 public:
  using Key = std::array<uint64_t, 3>;

  KeyedHash() {  // a key of its own
    std::random_device random;
    for (uint64_t& word : key_) word = static_cast<uint64_t>(random()) << 32 | random();
  }
  explicit KeyedHash(const Key& key) : key_(key) {}

  // SipHash-1-3 (Aumasson and Bernstein, https://eprint.iacr.org/2012/351).
  uint64_t OfBytes(std::string_view bytes) const {
    std::array<uint64_t, 4> v = {key_[0] ^ 0x736F6D6570736575, key_[1] ^ 0x646F72616E646F6D,
                                 key_[0] ^ 0x6C7967656E657261, key_[1] ^ 0x7465646279746573};
    size_t at = 0;
    for (; at + 8 <= bytes.size(); at += 8) Absorb(v, Word(bytes.substr(at, 8)));
    Absorb(v, Word(bytes.substr(at)) | static_cast<uint64_t>(bytes.size()) << 56);
    v[2] ^= 0xFF;
    for (int i = 0; i < 3; ++i) Round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
  }

  // Of two numbers of 32 bits; the high bits are the good ones. Strongly universal (Thorup,
  // https://arxiv.org/abs/1504.06804).
  uint64_t OfPair(uint64_t pair) const {
    return key_[0] + key_[1] * (pair >> 32) + key_[2] * (pair & UINT32_MAX);
  }

 private:
  static uint64_t Word(std::string_view bytes) {  // little-endian
    uint64_t word = 0;
    for (size_t i = 0; i < bytes.size(); ++i) {
      word |= static_cast<uint64_t>(static_cast<uint8_t>(bytes[i])) << (8 * i);
    }
    return word;
  }
  static void Absorb(std::array<uint64_t, 4>& v, uint64_t word) {
    v[3] ^= word;
    Round(v);
    v[0] ^= word;
  }
  static void Round(std::array<uint64_t, 4>& v) {
    v[0] += v[1];
    v[1] = std::rotl(v[1], 13) ^ v[0];
    v[0] = std::rotl(v[0], 32);
    v[2] += v[3];
    v[3] = std::rotl(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = std::rotl(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = std::rotl(v[1], 17) ^ v[2];
    v[2] = std::rotl(v[2], 32);
  }

  Key key_;
};

}  // namespace sluice::engine
