#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/chat/syntax_tree.h"
#include "engine/chat/token_stream.h"

namespace sluice::engine::chat {

// Parses expressions, with the precedence and the forms that Jinja 3 has. One for each template.
class ExpressionParser {
 public:
  explicit ExpressionParser(TokenStream& tokens) : tokens_(tokens) {}

  // An expression; with commas, a tuple of them. `end_name`: a name that ends it, such as
  // `recursive`.
  absl::StatusOr<ExpressionPtr> Tuple(bool takes_conditional, std::string_view end_name = "");
  absl::StatusOr<ExpressionPtr> Parse(bool takes_conditional = true);
  // A chain of filters that nothing stands before: filter blocks. The current token is a name.
  absl::StatusOr<ExpressionPtr> Filters();
  // `|name(...)`s after `subject`, which may be null.
  absl::StatusOr<ExpressionPtr> FiltersOf(ExpressionPtr subject);

 private:
  using Kind = Expression::Kind;
  using Parsed = absl::StatusOr<ExpressionPtr>;

  ExpressionPtr Make(Kind kind, int line) const;
  // Checks how deep the tree has become.
  Parsed Finish(ExpressionPtr node) const;
  Parsed Binary(Kind kind, Operator op, int line, ExpressionPtr left, ExpressionPtr right) const;

  Parsed Conditional();
  Parsed Or();
  Parsed And();
  Parsed Not();
  Parsed Compare();
  Parsed Sum();
  Parsed Concat();
  Parsed Product();
  Parsed Power();
  Parsed Unary(bool takes_filters);
  Parsed Primary();
  Parsed NameOrLiteral();
  Parsed Number();
  Parsed InParentheses();
  Parsed ListLiteral();
  Parsed DictLiteral();
  // Attributes, items and calls after `node`.
  Parsed Postfix(ExpressionPtr node);
  Parsed Attribute(ExpressionPtr node);
  Parsed Item(ExpressionPtr node);
  Parsed Call(ExpressionPtr node);
  Parsed FiltersAndTests(ExpressionPtr node);
  Parsed Filter(ExpressionPtr subject);
  Parsed Test(ExpressionPtr subject);
  // `(a, b=c, *d, **e)` into `node`.
  absl::Status TakeArguments(Expression& node);
  absl::StatusOr<std::string> DottedName(std::string_view what);

  TokenStream& tokens_;
};

}  // namespace sluice::engine::chat
