#include "engine/tokenizer/normal_form.h"

#include <utf8proc.h>

#include <algorithm>
#include <span>
#include <vector>

#include "engine/base/status.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::engine {
namespace {

constexpr int kMaxDecomposition = 32;  // Unicode's longest, of U+FDFA, has 18 code points

// U+11A7, the code point before the first trailing consonant of Hangul. utf8proc 2.8 swallows it
// after a syllable, as if it were a consonant. It composes with nothing, so text may be cut at it.
constexpr utf8proc_int32_t kBeforeTrailingConsonants = 0x11A7;

int CombiningClass(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

absl::StatusOr<std::vector<utf8proc_int32_t>> Decompose(std::string_view text, NormalForm form) {
  const int compatibility = form == NormalForm::kNfkc ? UTF8PROC_COMPAT : 0;
  std::vector<utf8proc_int32_t> decomposed;
  decomposed.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    const Utf8Step step = NextUtf8(text.substr(offset));
    offset += step.length;
    utf8proc_int32_t parts[kMaxDecomposition];
    int boundary_class = 0;
    const utf8proc_ssize_t num_parts = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(step.code_point), parts, kMaxDecomposition,
        static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE | compatibility),
        &boundary_class);
    if (num_parts < 0 || num_parts > kMaxDecomposition) {
      return Internal("utf8proc cannot decompose code point " +
                      std::to_string(static_cast<uint32_t>(step.code_point)));
    }
    decomposed.insert(decomposed.end(), parts, parts + num_parts);
  }
  return decomposed;
}

// Canonical ordering, D109. utf8proc's own is an insertion sort: quadratic in a run of marks, and a
// megabyte of marks would hold the caller for hours.
void SortMarks(std::vector<utf8proc_int32_t>& code_points) {
  auto run = code_points.begin();
  while (run != code_points.end()) {
    if (CombiningClass(*run) == 0) {
      ++run;
      continue;
    }
    const auto end = std::find_if(run, code_points.end(), [](utf8proc_int32_t code_point) {
      return CombiningClass(code_point) == 0;
    });
    std::stable_sort(run, end, [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return CombiningClass(a) < CombiningClass(b);
    });
    run = end;
  }
}

// Composes in place, then appends.
absl::Status AppendComposed(std::span<utf8proc_int32_t> code_points, std::string& out) {
  const utf8proc_ssize_t length = utf8proc_normalize_utf32(
      code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()),
      static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  if (length < 0) return Internal("utf8proc cannot compose: " + std::to_string(length));
  for (utf8proc_ssize_t i = 0; i < length; ++i) {
    AppendUtf8(static_cast<char32_t>(code_points[i]), out);
  }
  return absl::OkStatus();
}

}  // namespace

bool IsSurelyNormal(std::string_view text, NormalForm form) {
  if (form == NormalForm::kNone) return true;
  // Below U+0300 nothing combines and nothing decomposes to itself anew: lead bytes up to 0xCB.
  // Compatibility characters begin right after ASCII.
  const uint8_t limit = form == NormalForm::kNfc ? 0xCC : 0x80;
  return std::all_of(text.begin(), text.end(),
                     [limit](char c) { return static_cast<uint8_t>(c) < limit; });
}

absl::StatusOr<std::string> Normalize(std::string_view text, NormalForm form) {
  if (IsSurelyNormal(text, form)) return std::string(text);
  ASSIGN_OR_RETURN(std::vector<utf8proc_int32_t> code_points, Decompose(text, form));
  SortMarks(code_points);
  std::string composed;
  composed.reserve(text.size());
  auto begin = code_points.begin();
  while (begin != code_points.end()) {
    const auto end = std::find(begin, code_points.end(), kBeforeTrailingConsonants);
    RETURN_IF_ERROR(AppendComposed({begin, end}, composed));
    if (end == code_points.end()) break;
    AppendUtf8(kBeforeTrailingConsonants, composed);
    begin = end + 1;
  }
  return composed;
}

}  // namespace sluice::engine
