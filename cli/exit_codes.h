#pragma once

namespace sluice::cli {

// What the program's exit says. The numbers above 63 are those of BSD's sysexits.h.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;        // the command could not do it, or verify found errors
inline constexpr int kExitUsage = 2;         // unknown flag, bad value
inline constexpr int kExitUnavailable = 69;  // serve: an address cannot be bound
inline constexpr int kExitEnginesDown = 70;  // serve: every engine died of a fault
inline constexpr int kExitRequestsCut = 75;  // serve: the drain timed out with requests running
inline constexpr int kExitBadModel = 78;     // serve: the model cannot be loaded
inline constexpr int kExitSignalOffset = 128;  // plus the number of the signal that ended it

}  // namespace sluice::cli
