#include "tests/fuzz/text_checks.h"

#include <cstdlib>

#include "engine/tokenizer/detokenizer.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::fuzz {
namespace {

using engine::TokenId;
using engine::Tokenizer;
using engine::TokenType;

// `bytes` with U+FFFD for every maximal subpart of what is no UTF-8.
std::string Repaired(std::string_view bytes) {
  std::string out;
  while (!bytes.empty()) {
    const engine::Utf8Step step = engine::NextUtf8(bytes);
    out += step.state == engine::Utf8State::kValid ? bytes.substr(0, step.length)
                                                   : std::string_view("\xEF\xBF\xBD");
    bytes.remove_prefix(step.length);
  }
  return out;
}

}  // namespace

void Check(bool holds) {
  if (!holds) std::abort();
}

std::vector<TokenId> CheckEncoding(const Tokenizer& tokenizer, std::string_view text) {
  const bool is_utf8 = engine::FindInvalidUtf8(text) == std::string_view::npos;
  std::vector<TokenId> plain;
  for (const bool parse_special : {false, true}) {
    for (const bool add_special : {true, false}) {
      const auto ids =
          tokenizer.Encode(text, {.add_special = add_special, .parse_special = parse_special});
      Check(ids.ok() == is_utf8);
      if (!ids.ok()) return {};
      for (const TokenId id : *ids) Check(id >= 0 && id < tokenizer.vocab_size());
      if (add_special && tokenizer.adds_bos()) Check(ids->front() == *tokenizer.bos());
      if (add_special && tokenizer.adds_eos()) Check(ids->back() == *tokenizer.eos());
      if (!parse_special && !add_special) plain = *ids;
    }
  }
  return plain;
}

std::string CheckDecoding(const std::shared_ptr<const Tokenizer>& tokenizer,
                          const std::vector<TokenId>& ids, bool skip_special, bool continues_text) {
  engine::Detokenizer detokenizer(tokenizer, skip_special, continues_text);
  std::string text, bytes;
  for (const TokenId id : ids) {
    const size_t before = text.size();
    detokenizer.Append(id, text);
    Check(engine::FindInvalidUtf8(std::string_view(text).substr(before)) == std::string_view::npos);
    const TokenType type = tokenizer->Type(id);
    if (skip_special && (type == TokenType::kControl || type == TokenType::kUnknown)) continue;
    bytes += tokenizer->TokenBytes(id);
  }
  detokenizer.Finish(text);
  std::string_view expected = bytes;
  if (!continues_text && tokenizer->RemovesLeadingSpace() && expected.starts_with(' ')) {
    expected.remove_prefix(1);
  }
  Check(text == Repaired(expected));
  return text;
}

}  // namespace sluice::fuzz
