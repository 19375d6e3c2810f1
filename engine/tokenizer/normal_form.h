#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace sluice::engine {

// What a family does to text before it is cut into pre-tokens (UAX #15).
enum class NormalForm : uint8_t {
  kNone,
  kNfc,  // characters composed
  kNfkc  // and compatibility characters replaced: "²" becomes "2"
};

// Valid UTF-8 in normal form, in time linear in the text but for the sorting of each run of
// combining marks. Characters younger than the reference's Unicode tables, but not than utf8proc's,
// are brought to normal form here and left alone there.
absl::StatusOr<std::string> Normalize(std::string_view text, NormalForm form);

// True for text that Normalize leaves alone, decided in one cheap pass; false means "look closer".
bool IsSurelyNormal(std::string_view text, NormalForm form);

}  // namespace sluice::engine
