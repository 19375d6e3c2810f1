#pragma once

#include <cstddef>
#include <memory>
#include <optional>

#include "engine/request.h"
#include "engine/tokenizer/tokenizer.h"

namespace sluice::engine {

// Works out where the output of `request` stands after `request.resume.token_ids`, which came from
// an equal request: what text is held back, and whether the last token has ended the sequence.
// Stopping and output are resolved. `tokenizer` may be null, as an engine's. Returns the index of
// the first token that comes after the end of the sequence, if one does: then such a stream has
// never been. Time linear in the tokens; to be called before the request is given to an engine.
std::optional<size_t> ReplayOutput(const std::shared_ptr<const Tokenizer>& tokenizer,
                                   Request& request);

}  // namespace sluice::engine
