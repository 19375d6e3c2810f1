#pragma once

#include <cstdint>

namespace sluice::kernels {

// Bugs that the post-mortem project had, planted on purpose so that tests and `sluice verify` prove
// that they would be noticed. Possible only in programs that link planted_bugs.cc, as those of
// tests do: libraries are the same for both, and the released program cannot be made to misbehave.
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

extern const bool kPlantedBugsBuilt;

inline bool IsPlanted(PlantedBug planted, PlantedBug bug) {
  return planted == bug && kPlantedBugsBuilt;
}

}  // namespace sluice::kernels
