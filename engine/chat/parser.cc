#include "engine/chat/parser.h"

#include <algorithm>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "engine/chat/expression_parser.h"
#include "engine/chat/token_stream.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::engine::chat {
namespace {

class Parser {
 public:
  explicit Parser(TokenStream& tokens) : tokens_(tokens), expressions_(tokens) {}

  absl::StatusOr<Block> Template() {
    ASSIGN_OR_RETURN(Block block, Body({}));
    if (tokens_.current().kind == Token::Kind::kEnd) return block;
    return tokens_.Error("unexpected '" + tokens_.current().text.substr(0, 64) + "'");
  }

 private:
  using Kind = Statement::Kind;
  using Ends = std::initializer_list<std::string_view>;

  static Statement Make(Kind kind, int line) {
    Statement statement;
    statement.kind = kind;
    statement.line = line;
    return statement;
  }
  absl::Status ExpectBlockEnd() { return tokens_.Expect(Token::Kind::kBlockEnd, "'%}'"); }

  // Statements up to a block that begins with one of `ends`, whose name is then the current token;
  // none: up to the end of the template.
  absl::StatusOr<Block> Body(Ends ends) {
    const Nesting nesting(tokens_);
    RETURN_IF_ERROR(nesting.Check());
    Block block;
    while (true) {
      const Token token = tokens_.current();
      switch (token.kind) {
        case Token::Kind::kEnd:
          if (ends.size() == 0) return block;
          return tokens_.Unexpected("'{% " + std::string(*(ends.end() - 1)) + " %}'");
        case Token::Kind::kData:
          block.push_back(Make(Kind::kText, token.line));
          block.back().constant = Value::Template(tokens_.Take().text);
          break;
        case Token::Kind::kVariableBegin: {
          tokens_.Take();
          Statement output = Make(Kind::kOutput, token.line);
          ASSIGN_OR_RETURN(output.value, expressions_.Tuple(true));
          RETURN_IF_ERROR(tokens_.Expect(Token::Kind::kVariableEnd, "'}}'"));
          block.push_back(std::move(output));
          break;
        }
        default: {
          RETURN_IF_ERROR(tokens_.Expect(Token::Kind::kBlockBegin, "text or a tag"));
          const std::string& name = tokens_.current().text;
          if (tokens_.current().kind != Token::Kind::kName) {
            return tokens_.Unexpected("the name of a block");
          }
          if (std::find(ends.begin(), ends.end(), name) != ends.end()) return block;
          ASSIGN_OR_RETURN(Statement statement, BlockStatement());
          RETURN_IF_ERROR(ExpectBlockEnd());
          block.push_back(std::move(statement));
        }
      }
    }
  }
  // `%}`, the body, and the block `end`.
  absl::StatusOr<Block> BodyTo(std::string_view end) {
    RETURN_IF_ERROR(ExpectBlockEnd());
    ASSIGN_OR_RETURN(Block block, Body({end}));
    tokens_.Take();
    return block;
  }

  absl::StatusOr<Statement> BlockStatement() {
    const Token name = tokens_.Take();
    if (name.text == "if") return If(name.line);
    if (name.text == "for") return For(name.line);
    if (name.text == "set") return Set(name.line);
    if (name.text == "macro") return Macro(name.line);
    if (name.text == "call") return CallBlock(name.line);
    if (name.text == "filter") return FilterBlock(name.line);
    if (name.text == "with") return With(name.line);
    if (name.text == "generation") {
      Statement statement = Make(Kind::kScope, name.line);
      ASSIGN_OR_RETURN(statement.body, BodyTo("endgeneration"));
      return statement;
    }
    if (name.text == "break" || name.text == "continue") {
      if (loops_ == 0) {
        return TokenStream::ErrorAt(name.line, "'" + name.text + "' outside of a loop");
      }
      return Make(name.text == "break" ? Kind::kBreak : Kind::kContinue, name.line);
    }
    return TokenStream::ErrorAt(name.line, "unknown block '" + name.text.substr(0, 64) + "'");
  }

  absl::StatusOr<Statement> If(int line) {
    Statement statement = Make(Kind::kIf, line);
    Statement* last = &statement;
    ++tokens_.conditionals;
    // In a loop, so that thousands of elifs do not nest.
    for (int num_branches = 1;; ++num_branches) {
      if (num_branches > tokens_.limits.max_chain) return tokens_.Error("too many elifs");
      ASSIGN_OR_RETURN(last->value, expressions_.Tuple(false));
      RETURN_IF_ERROR(ExpectBlockEnd());
      ASSIGN_OR_RETURN(last->body, Body({"elif", "else", "endif"}));
      const Token end = tokens_.Take();
      if (end.text == "elif") {
        last->otherwise.push_back(Make(Kind::kIf, end.line));
        last = &last->otherwise.back();
        continue;
      }
      if (end.text == "else") {
        ASSIGN_OR_RETURN(last->otherwise, BodyTo("endif"));
      }
      break;
    }
    --tokens_.conditionals;
    return statement;
  }

  absl::StatusOr<Statement> For(int line) {
    Statement statement = Make(Kind::kFor, line);
    ASSIGN_OR_RETURN(statement.target, TakeTarget());
    if (!tokens_.SkipName("in")) return tokens_.Unexpected("'in'");
    ASSIGN_OR_RETURN(statement.value, expressions_.Tuple(false, "recursive"));
    if (tokens_.SkipName("if")) {
      ASSIGN_OR_RETURN(statement.condition, expressions_.Parse());
    }
    if (tokens_.current().IsName("recursive")) {
      return tokens_.Error("recursive loops are not supported");
    }
    RETURN_IF_ERROR(ExpectBlockEnd());
    ++loops_;
    ASSIGN_OR_RETURN(statement.body, Body({"else", "endfor"}));
    --loops_;
    if (tokens_.Take().text == "else") {
      ASSIGN_OR_RETURN(statement.otherwise, BodyTo("endfor"));
    }
    return statement;
  }

  // Names with commas, parentheses around some of them.
  absl::StatusOr<Target> TakeTarget() {
    const Nesting nesting(tokens_);
    RETURN_IF_ERROR(nesting.Check());
    Target target;
    target.line = tokens_.line();
    bool has_comma = false;
    while (true) {
      Target part;
      part.line = tokens_.line();
      if (tokens_.SkipOperator("(")) {
        ASSIGN_OR_RETURN(part, TakeTarget());
        RETURN_IF_ERROR(tokens_.ExpectOperator(")"));
      } else if (tokens_.current().kind == Token::Kind::kName && !tokens_.current().IsName("in")) {
        RETURN_IF_ERROR(CheckAssignable(tokens_.current().text));
        part.name = tokens_.Take().text;
        if (tokens_.SkipOperator(".")) {
          if (tokens_.current().kind != Token::Kind::kName) return tokens_.Unexpected("a name");
          part.attribute = tokens_.Take().text;
        }
      } else if (has_comma) {
        break;
      } else {
        return tokens_.Unexpected("the name of a variable");
      }
      target.parts.push_back(std::move(part));
      if (!tokens_.SkipOperator(",")) break;
      has_comma = true;
    }
    if (has_comma) return target;
    Target only = std::move(target.parts.front());
    return only;
  }
  absl::Status CheckAssignable(const std::string& name) const {
    for (const std::string_view constant : {"true", "false", "none", "True", "False", "None"}) {
      if (name == constant) return tokens_.Error("cannot assign to '" + name + "'");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Statement> Set(int line) {
    Statement statement = Make(Kind::kSet, line);
    ASSIGN_OR_RETURN(statement.target, TakeTarget());
    if (tokens_.SkipOperator("=")) {
      ASSIGN_OR_RETURN(statement.value, expressions_.Tuple(true));
      return statement;
    }
    statement.kind = Kind::kSetBlock;
    if (tokens_.SkipOperator("|")) {
      ASSIGN_OR_RETURN(statement.value, expressions_.Filters());
    }
    ASSIGN_OR_RETURN(statement.body, BodyTo("endset"));
    return statement;
  }

  absl::Status TakeParameters(std::vector<Parameter>& parameters) {
    RETURN_IF_ERROR(tokens_.ExpectOperator("("));
    while (!tokens_.SkipOperator(")")) {
      if (!parameters.empty()) RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      if (tokens_.current().kind != Token::Kind::kName) return tokens_.Unexpected("a parameter");
      Parameter parameter;
      parameter.name = tokens_.Take().text;
      if (tokens_.SkipOperator("=")) {
        ASSIGN_OR_RETURN(parameter.default_value, expressions_.Parse());
      } else if (!parameters.empty() && parameters.back().default_value) {
        return tokens_.Error("a parameter without a default follows one that has one");
      }
      parameters.push_back(std::move(parameter));
    }
    return absl::OkStatus();
  }

  // The body of a macro or call block, and what it speaks of.
  absl::Status MacroBody(Statement& statement, std::string_view end) {
    const int varargs = tokens_.num_varargs, kwargs = tokens_.num_kwargs;
    const int caller = tokens_.num_caller;
    const int loops = std::exchange(loops_, 0);
    ASSIGN_OR_RETURN(statement.body, BodyTo(end));
    loops_ = loops;
    statement.takes_positional = tokens_.num_varargs > varargs;
    statement.takes_named = tokens_.num_kwargs > kwargs;
    statement.takes_caller = tokens_.num_caller > caller;
    return absl::OkStatus();
  }

  absl::StatusOr<Statement> Macro(int line) {
    Statement statement = Make(Kind::kMacro, line);
    if (tokens_.current().kind != Token::Kind::kName) return tokens_.Unexpected("a macro's name");
    RETURN_IF_ERROR(CheckAssignable(tokens_.current().text));
    statement.name = tokens_.Take().text;
    RETURN_IF_ERROR(TakeParameters(statement.parameters));
    RETURN_IF_ERROR(MacroBody(statement, "endmacro"));
    return statement;
  }

  absl::StatusOr<Statement> CallBlock(int line) {
    Statement statement = Make(Kind::kCallBlock, line);
    statement.name = "caller";
    if (tokens_.current().IsOperator("(")) RETURN_IF_ERROR(TakeParameters(statement.parameters));
    ASSIGN_OR_RETURN(statement.value, expressions_.Parse());
    if (statement.value->kind != Expression::Kind::kCall) {
      return TokenStream::ErrorAt(line, "expected a call in the call block");
    }
    RETURN_IF_ERROR(MacroBody(statement, "endcall"));
    return statement;
  }

  absl::StatusOr<Statement> FilterBlock(int line) {
    Statement statement = Make(Kind::kFilterBlock, line);
    ASSIGN_OR_RETURN(statement.value, expressions_.Filters());
    ASSIGN_OR_RETURN(statement.body, BodyTo("endfilter"));
    return statement;
  }

  absl::StatusOr<Statement> With(int line) {
    Statement statement = Make(Kind::kWith, line);
    while (tokens_.current().kind != Token::Kind::kBlockEnd) {
      if (!statement.assignments.empty()) RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      auto& [target, value] = statement.assignments.emplace_back();
      ASSIGN_OR_RETURN(target, TakeTarget());
      RETURN_IF_ERROR(tokens_.ExpectOperator("="));
      ASSIGN_OR_RETURN(value, expressions_.Parse());
    }
    ASSIGN_OR_RETURN(statement.body, BodyTo("endwith"));
    return statement;
  }

  TokenStream& tokens_;
  ExpressionParser expressions_;
  int loops_ = 0;  // around what is being parsed, within the macro
};

}  // namespace

absl::StatusOr<Block> ParseTemplate(std::string_view source, const Limits& limits) {
  if (source.size() > limits.max_template_bytes) {
    return InvalidArgument("expected a template of at most " +
                           std::to_string(limits.max_template_bytes) + " bytes, got " +
                           std::to_string(source.size()));
  }
  if (const size_t at = FindInvalidUtf8(source); at != std::string_view::npos) {
    const auto line = 1 + std::count(source.begin(), source.begin() + at, '\n');
    return TokenStream::ErrorAt(static_cast<int>(line), "not valid UTF-8");
  }
  ASSIGN_OR_RETURN(std::vector<Token> token_list, CutIntoTokens(source));
  TokenStream tokens(std::move(token_list), limits);
  return Parser(tokens).Template();
}

}  // namespace sluice::engine::chat
