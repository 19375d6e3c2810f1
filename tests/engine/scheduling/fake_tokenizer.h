#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/tokenizer/tokenizer.h"

namespace sluice::engine {

// A vocabulary of short byte strings: id 0 ends a generation (a control token), parts of code
// points stand alone. Token i is `pieces[i]`.
class FakeTokenizer final : public Tokenizer {
 public:
  static constexpr TokenId kEos = 0;

  explicit FakeTokenizer(std::vector<std::string> pieces) : pieces_(std::move(pieces)) {
    vocab_size_ = static_cast<int32_t>(pieces_.size());
    model_ = "fake";
    eos_ = kEos;
    end_of_generation_ = {kEos};
  }

  // 64 tokens over a small alphabet, so that stop strings happen, with code points in pieces.
  static std::shared_ptr<const FakeTokenizer> Make() {
    std::vector<std::string> pieces = {"<eos>"};
    const std::vector<std::string> some = {
        "a",    "b",        "ab",       "ba",       "abc",      " ",   "c a", "\xC3",
        "\xA9", "\xE2\x82", "\xF0\x9F", "\x98\x80", "\xC3\xA9", "cab", "bb",  "\xFF"};
    while (pieces.size() < 64) pieces.push_back(some[pieces.size() % some.size()]);
    return std::make_shared<const FakeTokenizer>(std::move(pieces));
  }

  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view,
                                              const EncodeOptions&) const override {
    return Unimplemented("the fake tokenizer only decodes");
  }
  absl::StatusOr<std::vector<TokenId>> EncodeChat(const MarkedText&,
                                                  const EncodeOptions&) const override {
    return Unimplemented("the fake tokenizer only decodes");
  }
  std::string_view TokenBytes(TokenId id) const override {
    return pieces_.at(static_cast<size_t>(id));
  }
  TokenType Type(TokenId id) const override {
    return id == kEos ? TokenType::kControl : TokenType::kNormal;
  }

 private:
  std::vector<std::string> pieces_;
};

}  // namespace sluice::engine
