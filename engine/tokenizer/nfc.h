#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace sluice::engine {

// Unicode normalisation form C (UAX #15) of valid UTF-8, in time linear in the text but for the
// sorting of each run of combining marks.
absl::StatusOr<std::string> ToNfc(std::string_view text);

// True for text that ToNfc leaves alone, decided in one cheap pass; false means "look closer".
bool IsSurelyNfc(std::string_view text);

}  // namespace sluice::engine
