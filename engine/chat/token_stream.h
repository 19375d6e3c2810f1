#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"

#include "engine/base/status.h"
#include "engine/chat/lexer.h"
#include "engine/chat/limits.h"

namespace sluice::engine::chat {

// The tokens of a template, read from the front by the two parsers, and what they must not exceed.
class TokenStream {
 public:
  TokenStream(std::vector<Token> tokens, const Limits& limits)
      : limits(limits), tokens_(std::move(tokens)) {}

  const Token& current() const { return tokens_[at_]; }
  // The one after the current.
  const Token& next() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  int line() const { return current().line; }
  // Goes on; at the end stays there.
  Token Take() {
    Token token = current();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool SkipOperator(std::string_view text) { return Skip(current().IsOperator(text)); }
  bool SkipName(std::string_view text) { return Skip(current().IsName(text)); }
  absl::Status ExpectOperator(std::string_view text) {
    return SkipOperator(text) ? absl::OkStatus() : Unexpected("'" + std::string(text) + "'");
  }
  absl::Status Expect(Token::Kind kind, std::string_view what) {
    return Skip(current().kind == kind) ? absl::OkStatus() : Unexpected(what);
  }

  absl::Status Error(std::string_view what) const { return ErrorAt(line(), what); }
  static absl::Status ErrorAt(int line, std::string_view what) {
    return InvalidArgument("line " + std::to_string(line) + ": " + std::string(what));
  }
  // "expected WHAT, got ..." the current token.
  absl::Status Unexpected(std::string_view what) const {
    return Error("expected " + std::string(what) + ", got " + Describe(current()));
  }

  const Limits& limits;
  int nesting = 0;       // of what is being parsed
  int conditionals = 0;  // ifs around it
  // Names that macros treat in a way of their own, as far as they were read.
  int num_varargs = 0, num_kwargs = 0, num_caller = 0;

 private:
  bool Skip(bool is_there) {
    if (is_there && at_ + 1 < tokens_.size()) ++at_;
    return is_there;
  }
  static std::string Describe(const Token& token) {
    switch (token.kind) {
      case Token::Kind::kData:
        return "text";
      case Token::Kind::kVariableBegin:
        return "'{{'";
      case Token::Kind::kVariableEnd:
        return "'}}'";
      case Token::Kind::kBlockBegin:
        return "'{%'";
      case Token::Kind::kBlockEnd:
        return "'%}'";
      case Token::Kind::kString:
        return "a string";
      case Token::Kind::kEnd:
        return "the end of the template";
      default:
        return "'" + token.text.substr(0, 64) + "'";
    }
  }

  const std::vector<Token> tokens_;
  size_t at_ = 0;
};

// Holds one level of nesting while it lives.
class Nesting {
 public:
  explicit Nesting(TokenStream& tokens) : tokens_(tokens) { ++tokens_.nesting; }
  ~Nesting() { --tokens_.nesting; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;

  absl::Status Check() const {
    if (tokens_.nesting <= tokens_.limits.max_nesting) return absl::OkStatus();
    return tokens_.Error("nested deeper than " + std::to_string(tokens_.limits.max_nesting));
  }

 private:
  TokenStream& tokens_;
};

}  // namespace sluice::engine::chat
