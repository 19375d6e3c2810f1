#include "engine/model/sha256.h"

#include <openssl/evp.h>

#include <cstdio>
#include <cstdlib>

namespace sluice::engine {
namespace {

// These calls fail only without memory, or in a library built without SHA-256.
void CheckDone(bool done, const char* call) {
  if (done) return;
  std::fprintf(stderr, "Sha256: %s failed\n", call);
  std::abort();
}

}  // namespace

void Sha256::Free::operator()(evp_md_ctx_st* context) const { EVP_MD_CTX_free(context); }

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  CheckDone(context_ != nullptr, "EVP_MD_CTX_new");
  CheckDone(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1, "EVP_DigestInit_ex");
}

void Sha256::Add(std::span<const std::byte> bytes) {
  CheckDone(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1, "EVP_DigestUpdate");
}

Sha256::Digest Sha256::Finish() {
  Digest digest;
  CheckDone(EVP_DigestFinal_ex(context_.get(), reinterpret_cast<unsigned char*>(digest.data()),
                               nullptr) == 1,
            "EVP_DigestFinal_ex");
  CheckDone(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1, "EVP_DigestInit_ex");
  return digest;
}

std::string Sha256::Hex(const Digest& digest) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (const std::byte byte : digest) {
    hex += kDigits[std::to_integer<int>(byte) >> 4];
    hex += kDigits[std::to_integer<int>(byte) & 15];
  }
  return hex;
}

}  // namespace sluice::engine
