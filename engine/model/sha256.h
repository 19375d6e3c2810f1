#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

struct evp_md_ctx_st;

namespace sluice::engine {

// SHA-256 (FIPS 180-4) of bytes that come in pieces, computed by OpenSSL. One thread.
class Sha256 {
 public:
  using Digest = std::array<std::byte, 32>;

  Sha256();
  void Add(std::span<const std::byte> bytes);
  // Of everything added since construction or the last Finish; starts anew.
  Digest Finish();

  static std::string Hex(const Digest& digest);

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const;
  };
  std::unique_ptr<evp_md_ctx_st, Free> context_;
};

}  // namespace sluice::engine
