#pragma once

#include <cstdint>

namespace sluice::kernels {

// Bugs that the post-mortem project had, planted on purpose so that tests and `sluice verify` prove
// that they would be noticed. Compiled in only with SLUICE_PLANTED_BUGS; a release build cannot be
// made to misbehave.
enum class PlantedBug : uint8_t {
  kNone,
  kKvHeadZeroOnly,     // K and V written for head 0 only
  kPrefillStride,      // rows of several tokens read their activations with a stride one too large
  kFfnFourTimesWidth,  // FFN width taken as 4 E instead of the file's
  kKeyBiasDropped,     // K bias not added
  kRopeBaseTenThousand,  // rope base 10000 instead of the file's
  kVocabularyUnpadded,  // vocabulary shorter by its padding (rounded down to a multiple of 64, less
                        // 64 when even)
  kDeviceFault,  // the device fails for good when an engine samples for the twentieth time
};

#ifdef SLUICE_PLANTED_BUGS
inline constexpr bool kPlantedBugsBuilt = true;
#else
inline constexpr bool kPlantedBugsBuilt = false;
#endif

constexpr bool IsPlanted(PlantedBug planted, PlantedBug bug) {
  return kPlantedBugsBuilt && planted == bug;
}

}  // namespace sluice::kernels
