#include "engine/model/sha256.h"

#include <span>
#include <string>

#include "gtest/gtest.h"

namespace sluice::engine {
namespace {

std::string HashInPieces(const std::string& text, size_t piece) {
  Sha256 hash;
  for (size_t at = 0; at < text.size(); at += piece) {
    const std::string part = text.substr(at, piece);
    hash.Add(std::as_bytes(std::span(part)));
  }
  return Sha256::Hex(hash.Finish());
}

// Test vectors of FIPS 180-4's examples.
TEST(Sha256Test, KnownDigestsWhateverThePieces) {
  Sha256 empty;
  EXPECT_EQ(Sha256::Hex(empty.Finish()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  const std::string text = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  for (const size_t piece : {1u, 7u, 56u}) {
    EXPECT_EQ(HashInPieces(text, piece),
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  }
}

TEST(Sha256Test, FinishStartsAnew) {
  Sha256 hash;
  const std::string text = "abc";
  hash.Add(std::as_bytes(std::span(text)));
  const auto first = hash.Finish();
  hash.Add(std::as_bytes(std::span(text)));
  EXPECT_EQ(hash.Finish(), first);
  EXPECT_EQ(Sha256::Hex(first), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

}  // namespace
}  // namespace sluice::engine
