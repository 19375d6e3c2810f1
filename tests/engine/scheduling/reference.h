#pragma once

#include <string>
#include <vector>

#include "engine/request.h"
#include "engine/tokenizer/tokenizer.h"

namespace sluice::engine {

// What one sequence of a request must come to, worked out without scheduler, pages or steps.
struct ReferenceSequence {
  std::vector<TokenId> tokens;
  std::string text;
  SequenceEnd end;
};

// With FakeSample over `vocab_size` tokens. Naive: the whole text is searched for every stop string
// after every token.
ReferenceSequence MakeReference(const Request& request, int index,
                                const std::shared_ptr<const Tokenizer>& tokenizer, int vocab_size,
                                int max_context);

}  // namespace sluice::engine
