#include "engine/chat/expression_parser.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "engine/chat/filter_table.h"

namespace sluice::engine::chat {
namespace {

std::optional<Operator> CompareOperator(const Token& token) {
  static constexpr std::pair<std::string_view, Operator> kOperators[] = {
      {"==", Operator::kEqual},     {"!=", Operator::kNotEqual}, {"<", Operator::kLess},
      {"<=", Operator::kLessEqual}, {">", Operator::kGreater},   {">=", Operator::kGreaterEqual}};
  if (token.kind != Token::Kind::kOperator) return std::nullopt;
  for (const auto& [text, op] : kOperators) {
    if (token.text == text) return op;
  }
  return std::nullopt;
}

}  // namespace

ExpressionPtr ExpressionParser::Make(Kind kind, int line) const {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->line = line;
  return node;
}

ExpressionParser::Parsed ExpressionParser::Finish(ExpressionPtr node) const {
  const auto add = [&node](const ExpressionPtr& part) {
    if (part) node->depth = std::max(node->depth, part->depth + 1);
  };
  for (const ExpressionPtr& part : node->parts) add(part);
  for (const auto& [name, part] : node->named) add(part);
  add(node->spread);
  add(node->named_spread);
  if (node->depth <= tokens_.limits.max_chain) return node;
  return TokenStream::ErrorAt(node->line, "an expression of more than " +
                                              std::to_string(tokens_.limits.max_chain) + " links");
}

ExpressionParser::Parsed ExpressionParser::Binary(Kind kind, Operator op, int line,
                                                  ExpressionPtr left, ExpressionPtr right) const {
  ExpressionPtr node = Make(kind, line);
  node->operators.push_back(op);
  node->parts.push_back(std::move(left));
  node->parts.push_back(std::move(right));
  return Finish(std::move(node));
}

ExpressionParser::Parsed ExpressionParser::Tuple(bool takes_conditional,
                                                 std::string_view end_name) {
  const int line = tokens_.line();
  std::vector<ExpressionPtr> parts;
  bool is_tuple = false;
  while (true) {
    if (!parts.empty()) {
      if (!tokens_.SkipOperator(",")) break;
      is_tuple = true;
    }
    const Token& token = tokens_.current();
    const bool ends = token.kind == Token::Kind::kVariableEnd ||
                      token.kind == Token::Kind::kBlockEnd || token.IsOperator(")") ||
                      (!end_name.empty() && token.IsName(end_name));
    if (ends) break;
    ASSIGN_OR_RETURN(ExpressionPtr part, Parse(takes_conditional));
    parts.push_back(std::move(part));
  }
  if (parts.empty()) return tokens_.Unexpected("an expression");
  if (!is_tuple) return std::move(parts.front());
  ExpressionPtr node = Make(Kind::kTuple, line);
  node->parts = std::move(parts);
  return Finish(std::move(node));
}

ExpressionParser::Parsed ExpressionParser::Parse(bool takes_conditional) {
  const Nesting nesting(tokens_);
  RETURN_IF_ERROR(nesting.Check());
  return takes_conditional ? Conditional() : Or();
}

ExpressionParser::Parsed ExpressionParser::Conditional() {
  int line = tokens_.line();
  ASSIGN_OR_RETURN(ExpressionPtr node, Or());
  while (tokens_.SkipName("if")) {
    ++tokens_.conditionals;
    ASSIGN_OR_RETURN(ExpressionPtr condition, Or());
    ExpressionPtr otherwise;
    if (tokens_.SkipName("else")) {
      ASSIGN_OR_RETURN(otherwise, Parse());
    }
    --tokens_.conditionals;
    ExpressionPtr conditional = Make(Kind::kConditional, line);
    conditional->parts.push_back(std::move(node));
    conditional->parts.push_back(std::move(condition));
    conditional->parts.push_back(std::move(otherwise));
    ASSIGN_OR_RETURN(node, Finish(std::move(conditional)));
    line = tokens_.line();
  }
  return node;
}

ExpressionParser::Parsed ExpressionParser::Or() {
  ASSIGN_OR_RETURN(ExpressionPtr node, And());
  for (int line = tokens_.line(); tokens_.SkipName("or"); line = tokens_.line()) {
    ASSIGN_OR_RETURN(ExpressionPtr right, And());
    ASSIGN_OR_RETURN(node, Binary(Kind::kOr, {}, line, std::move(node), std::move(right)));
  }
  return node;
}

ExpressionParser::Parsed ExpressionParser::And() {
  ASSIGN_OR_RETURN(ExpressionPtr node, Not());
  for (int line = tokens_.line(); tokens_.SkipName("and"); line = tokens_.line()) {
    ASSIGN_OR_RETURN(ExpressionPtr right, Not());
    ASSIGN_OR_RETURN(node, Binary(Kind::kAnd, {}, line, std::move(node), std::move(right)));
  }
  return node;
}

ExpressionParser::Parsed ExpressionParser::Not() {
  const int line = tokens_.line();
  if (!tokens_.SkipName("not")) return Compare();
  const Nesting nesting(tokens_);
  RETURN_IF_ERROR(nesting.Check());
  ASSIGN_OR_RETURN(ExpressionPtr operand, Not());
  ExpressionPtr node = Make(Kind::kNot, line);
  node->parts.push_back(std::move(operand));
  return Finish(std::move(node));
}

ExpressionParser::Parsed ExpressionParser::Compare() {
  const int line = tokens_.line();
  ASSIGN_OR_RETURN(ExpressionPtr first, Sum());
  ExpressionPtr node;
  while (true) {
    std::optional<Operator> op = CompareOperator(tokens_.current());
    if (op) {
      tokens_.Take();
    } else if (tokens_.SkipName("in")) {
      op = Operator::kIn;
    } else if (tokens_.current().IsName("not") && tokens_.next().IsName("in")) {
      tokens_.Take();
      tokens_.Take();
      op = Operator::kNotIn;
    } else {
      break;
    }
    if (!node) {
      node = Make(Kind::kCompare, line);
      node->parts.push_back(std::move(first));
    }
    ASSIGN_OR_RETURN(ExpressionPtr right, Sum());
    node->operators.push_back(*op);
    node->parts.push_back(std::move(right));
  }
  return node ? Finish(std::move(node)) : Parsed(std::move(first));
}

ExpressionParser::Parsed ExpressionParser::Sum() {
  ASSIGN_OR_RETURN(ExpressionPtr node, Concat());
  while (tokens_.current().IsOperator("+") || tokens_.current().IsOperator("-")) {
    const Token token = tokens_.Take();
    const Operator op = token.text == "+" ? Operator::kAdd : Operator::kSubtract;
    ASSIGN_OR_RETURN(ExpressionPtr right, Concat());
    ASSIGN_OR_RETURN(node,
                     Binary(Kind::kArithmetic, op, token.line, std::move(node), std::move(right)));
  }
  return node;
}

ExpressionParser::Parsed ExpressionParser::Concat() {
  const int line = tokens_.line();
  ASSIGN_OR_RETURN(ExpressionPtr first, Product());
  if (!tokens_.current().IsOperator("~")) return first;
  ExpressionPtr node = Make(Kind::kConcat, line);
  node->parts.push_back(std::move(first));
  while (tokens_.SkipOperator("~")) {
    ASSIGN_OR_RETURN(ExpressionPtr right, Product());
    node->parts.push_back(std::move(right));
  }
  return Finish(std::move(node));
}

ExpressionParser::Parsed ExpressionParser::Product() {
  static constexpr std::pair<std::string_view, Operator> kOperators[] = {
      {"*", Operator::kMultiply},
      {"/", Operator::kDivide},
      {"//", Operator::kFloorDivide},
      {"%", Operator::kModulo}};
  ASSIGN_OR_RETURN(ExpressionPtr node, Power());
  while (true) {
    const auto op = std::find_if(std::begin(kOperators), std::end(kOperators), [&](const auto& o) {
      return tokens_.current().IsOperator(o.first);
    });
    if (op == std::end(kOperators)) return node;
    const int line = tokens_.Take().line;
    ASSIGN_OR_RETURN(ExpressionPtr right, Power());
    ASSIGN_OR_RETURN(
        node, Binary(Kind::kArithmetic, op->second, line, std::move(node), std::move(right)));
  }
}

ExpressionParser::Parsed ExpressionParser::Power() {
  ASSIGN_OR_RETURN(ExpressionPtr node, Unary(true));
  for (int line = tokens_.line(); tokens_.SkipOperator("**"); line = tokens_.line()) {
    ASSIGN_OR_RETURN(ExpressionPtr right, Unary(true));
    ASSIGN_OR_RETURN(
        node, Binary(Kind::kArithmetic, Operator::kPower, line, std::move(node), std::move(right)));
  }
  return node;
}

ExpressionParser::Parsed ExpressionParser::Unary(bool takes_filters) {
  const int line = tokens_.line();
  ExpressionPtr node;
  if (tokens_.current().IsOperator("-") || tokens_.current().IsOperator("+")) {
    const Nesting nesting(tokens_);
    RETURN_IF_ERROR(nesting.Check());
    node = Make(tokens_.Take().text == "-" ? Kind::kNegate : Kind::kPlus, line);
    ASSIGN_OR_RETURN(ExpressionPtr operand, Unary(false));
    node->parts.push_back(std::move(operand));
    ASSIGN_OR_RETURN(node, Finish(std::move(node)));
  } else {
    ASSIGN_OR_RETURN(node, Primary());
  }
  ASSIGN_OR_RETURN(node, Postfix(std::move(node)));
  return takes_filters ? FiltersAndTests(std::move(node)) : Parsed(std::move(node));
}

ExpressionParser::Parsed ExpressionParser::Postfix(ExpressionPtr node) {
  while (true) {
    if (tokens_.current().IsOperator(".")) {
      ASSIGN_OR_RETURN(node, Attribute(std::move(node)));
    } else if (tokens_.current().IsOperator("[")) {
      ASSIGN_OR_RETURN(node, Item(std::move(node)));
    } else if (tokens_.current().IsOperator("(")) {
      ASSIGN_OR_RETURN(node, Call(std::move(node)));
    } else {
      return node;
    }
  }
}

ExpressionParser::Parsed ExpressionParser::Attribute(ExpressionPtr node) {
  const int line = tokens_.Take().line;
  if (tokens_.current().kind == Token::Kind::kInteger) {
    ASSIGN_OR_RETURN(ExpressionPtr index, Number());
    return Binary(Kind::kItem, {}, line, std::move(node), std::move(index));
  }
  if (tokens_.current().kind != Token::Kind::kName) return tokens_.Unexpected("a name after '.'");
  ExpressionPtr attribute = Make(Kind::kAttribute, line);
  attribute->name = tokens_.Take().text;
  attribute->parts.push_back(std::move(node));
  return Finish(std::move(attribute));
}

ExpressionParser::Parsed ExpressionParser::Item(ExpressionPtr node) {
  const int line = tokens_.Take().line;
  std::vector<ExpressionPtr> bounds(1);
  bool is_slice = false;
  while (!tokens_.current().IsOperator("]")) {
    if (tokens_.SkipOperator(":")) {
      is_slice = true;
      bounds.emplace_back();
      continue;
    }
    if (bounds.back()) return tokens_.Unexpected("']'");
    ASSIGN_OR_RETURN(bounds.back(), Parse());
    if (tokens_.current().IsOperator(",")) {
      return tokens_.Error("several indices in one pair of brackets are not supported");
    }
  }
  if (bounds.size() > 3 || (!is_slice && !bounds[0])) return tokens_.Unexpected("an index");
  tokens_.Take();
  if (!is_slice) return Binary(Kind::kItem, {}, line, std::move(node), std::move(bounds[0]));
  bounds.resize(3);
  ExpressionPtr slice = Make(Kind::kSlice, line);
  slice->parts.push_back(std::move(node));
  for (ExpressionPtr& bound : bounds) slice->parts.push_back(std::move(bound));
  return Finish(std::move(slice));
}

ExpressionParser::Parsed ExpressionParser::Call(ExpressionPtr node) {
  ExpressionPtr call = Make(Kind::kCall, tokens_.line());
  call->parts.push_back(std::move(node));
  RETURN_IF_ERROR(TakeArguments(*call));
  return Finish(std::move(call));
}

absl::Status ExpressionParser::TakeArguments(Expression& node) {
  RETURN_IF_ERROR(tokens_.ExpectOperator("("));
  bool is_first = true;
  while (!tokens_.SkipOperator(")")) {
    if (!is_first) {
      RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      if (tokens_.SkipOperator(")")) break;
    }
    is_first = false;
    const bool is_named =
        tokens_.current().kind == Token::Kind::kName && tokens_.next().IsOperator("=");
    ExpressionPtr* place = nullptr;
    if (tokens_.current().IsOperator("*") || tokens_.current().IsOperator("**")) {
      place = tokens_.Take().text == "*" ? &node.spread : &node.named_spread;
      if (*place || (place == &node.spread && node.named_spread)) {
        return tokens_.Error("invalid order of arguments");
      }
    } else if (is_named) {
      if (node.named_spread) return tokens_.Error("invalid order of arguments");
      std::string name = tokens_.Take().text;
      tokens_.Take();
      place = &node.named.emplace_back(std::move(name), nullptr).second;
    } else {
      if (!node.named.empty() || node.spread || node.named_spread) {
        return tokens_.Error("invalid order of arguments");
      }
      place = &node.parts.emplace_back();
    }
    ASSIGN_OR_RETURN(*place, Parse());
  }
  return absl::OkStatus();
}

ExpressionParser::Parsed ExpressionParser::FiltersAndTests(ExpressionPtr node) {
  while (true) {
    if (tokens_.current().IsOperator("|")) {
      ASSIGN_OR_RETURN(node, FiltersOf(std::move(node)));
    } else if (tokens_.current().IsName("is")) {
      ASSIGN_OR_RETURN(node, Test(std::move(node)));
    } else if (tokens_.current().IsOperator("(")) {
      ASSIGN_OR_RETURN(node, Call(std::move(node)));
    } else {
      return node;
    }
  }
}

ExpressionParser::Parsed ExpressionParser::Filters() {
  ASSIGN_OR_RETURN(ExpressionPtr node, Filter(nullptr));
  return FiltersOf(std::move(node));
}

ExpressionParser::Parsed ExpressionParser::FiltersOf(ExpressionPtr subject) {
  while (tokens_.SkipOperator("|")) {
    ASSIGN_OR_RETURN(subject, Filter(std::move(subject)));
  }
  return subject;
}

absl::StatusOr<std::string> ExpressionParser::DottedName(std::string_view what) {
  if (tokens_.current().kind != Token::Kind::kName) return tokens_.Unexpected(what);
  std::string name = tokens_.Take().text;
  while (tokens_.SkipOperator(".")) {
    if (tokens_.current().kind != Token::Kind::kName) return tokens_.Unexpected(what);
    name += "." + tokens_.Take().text;
  }
  return name;
}

ExpressionParser::Parsed ExpressionParser::Filter(ExpressionPtr subject) {
  ExpressionPtr node = Make(Kind::kFilter, tokens_.line());
  ASSIGN_OR_RETURN(node->name, DottedName("the name of a filter"));
  // Behind a condition it may stand for another version of Jinja: an error only if it is reached.
  if (tokens_.conditionals == 0 && FindFilter(node->name) == nullptr) {
    return TokenStream::ErrorAt(node->line, "no filter named '" + node->name.substr(0, 64) + "'");
  }
  node->parts.push_back(std::move(subject));
  if (tokens_.current().IsOperator("(")) RETURN_IF_ERROR(TakeArguments(*node));
  return Finish(std::move(node));
}

ExpressionParser::Parsed ExpressionParser::Test(ExpressionPtr subject) {
  ExpressionPtr node = Make(Kind::kTest, tokens_.Take().line);
  const bool is_negated = tokens_.SkipName("not");
  ASSIGN_OR_RETURN(node->name, DottedName("the name of a test"));
  if (tokens_.conditionals == 0 && FindTest(node->name) == nullptr) {
    return TokenStream::ErrorAt(node->line, "no test named '" + node->name.substr(0, 64) + "'");
  }
  node->parts.push_back(std::move(subject));
  const Token& token = tokens_.current();
  const bool has_operand = token.kind == Token::Kind::kName || token.kind == Token::Kind::kString ||
                           token.kind == Token::Kind::kInteger ||
                           token.kind == Token::Kind::kFloat || token.IsOperator("[") ||
                           token.IsOperator("{");
  const bool goes_on = token.IsName("else") || token.IsName("or") || token.IsName("and");
  if (token.IsOperator("(")) {
    RETURN_IF_ERROR(TakeArguments(*node));
  } else if (has_operand && !goes_on) {
    if (token.IsName("is")) return tokens_.Error("tests with 'is' cannot be chained");
    ASSIGN_OR_RETURN(ExpressionPtr operand, Primary());
    ASSIGN_OR_RETURN(operand, Postfix(std::move(operand)));
    node->parts.push_back(std::move(operand));
  }
  const int line = node->line;
  ASSIGN_OR_RETURN(node, Finish(std::move(node)));
  if (!is_negated) return node;
  ExpressionPtr negation = Make(Kind::kNot, line);
  negation->parts.push_back(std::move(node));
  return Finish(std::move(negation));
}

}  // namespace sluice::engine::chat
