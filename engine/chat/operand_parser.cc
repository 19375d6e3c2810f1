#include <charconv>
#include <string>
#include <utility>

#include "engine/chat/expression_parser.h"

// Names, literals and what stands in brackets.
namespace sluice::engine::chat {

ExpressionParser::Parsed ExpressionParser::Primary() {
  const Token& token = tokens_.current();
  switch (token.kind) {
    case Token::Kind::kName:
      return NameOrLiteral();
    case Token::Kind::kInteger:
    case Token::Kind::kFloat:
      return Number();
    case Token::Kind::kString: {
      ExpressionPtr node = Make(Kind::kConstant, token.line);
      std::string text;
      while (tokens_.current().kind == Token::Kind::kString) text += tokens_.Take().text;
      node->constant = Value::Template(std::move(text));
      return node;
    }
    default:
      break;
  }
  if (token.IsOperator("(")) return InParentheses();
  if (token.IsOperator("[")) return ListLiteral();
  if (token.IsOperator("{")) return DictLiteral();
  return tokens_.Unexpected("an expression");
}

ExpressionParser::Parsed ExpressionParser::NameOrLiteral() {
  const Token token = tokens_.Take();
  ExpressionPtr node = Make(Kind::kConstant, token.line);
  if (token.text == "true" || token.text == "True") {
    node->constant = Value(true);
  } else if (token.text == "false" || token.text == "False") {
    node->constant = Value(false);
  } else if (token.text == "none" || token.text == "None") {
    node->constant = Value(None());
  } else {
    node->kind = Kind::kName;
    node->name = token.text;
    tokens_.num_varargs += token.text == "varargs";
    tokens_.num_kwargs += token.text == "kwargs";
    tokens_.num_caller += token.text == "caller";
  }
  return node;
}

ExpressionParser::Parsed ExpressionParser::Number() {
  const Token token = tokens_.Take();
  ExpressionPtr node = Make(Kind::kConstant, token.line);
  const char* begin = token.text.data();
  const char* const end = begin + token.text.size();
  if (token.kind == Token::Kind::kFloat) {
    double value = 0;
    std::from_chars(begin, end, value);  // what is too large is infinite, as in Python
    if (std::from_chars(begin, end, value).ec == std::errc::result_out_of_range) {
      return TokenStream::ErrorAt(token.line, "a number out of the range of 64 bits");
    }
    node->constant = Value(value);
    return node;
  }
  int base = 10;
  if (token.text.size() > 2 && token.text[0] == '0') {
    const auto letter = static_cast<char>(token.text[1] | 0x20);
    base = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 10;
    if (base != 10) begin += 2;
  }
  int64_t value = 0;
  if (std::from_chars(begin, end, value, base).ec != std::errc()) {
    return TokenStream::ErrorAt(token.line, "a number out of the range of 64 bits");
  }
  node->constant = Value(value);
  return node;
}

ExpressionParser::Parsed ExpressionParser::InParentheses() {
  const int line = tokens_.Take().line;
  if (tokens_.SkipOperator(")")) return Make(Kind::kTuple, line);
  ASSIGN_OR_RETURN(ExpressionPtr node, Tuple(true));
  RETURN_IF_ERROR(tokens_.ExpectOperator(")"));
  return node;
}

ExpressionParser::Parsed ExpressionParser::ListLiteral() {
  ExpressionPtr node = Make(Kind::kList, tokens_.Take().line);
  while (!tokens_.SkipOperator("]")) {
    if (!node->parts.empty()) {
      RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      if (tokens_.SkipOperator("]")) break;
    }
    ASSIGN_OR_RETURN(ExpressionPtr item, Parse());
    node->parts.push_back(std::move(item));
  }
  return Finish(std::move(node));
}

ExpressionParser::Parsed ExpressionParser::DictLiteral() {
  ExpressionPtr node = Make(Kind::kDict, tokens_.Take().line);
  while (!tokens_.SkipOperator("}")) {
    if (!node->parts.empty()) {
      RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      if (tokens_.SkipOperator("}")) break;
    }
    ASSIGN_OR_RETURN(ExpressionPtr key, Parse());
    RETURN_IF_ERROR(tokens_.ExpectOperator(":"));
    ASSIGN_OR_RETURN(ExpressionPtr value, Parse());
    node->parts.push_back(std::move(key));
    node->parts.push_back(std::move(value));
  }
  return Finish(std::move(node));
}

}  // namespace sluice::engine::chat
