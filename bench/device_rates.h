#pragma once

#include <string>

namespace sluice::bench {

// What a CUDA device reaches in this process, to be printed beside what our code reaches there.
// 0 where it cannot be measured: no device, a build without CUDA, no cuBLAS beside the driver.

// "NVIDIA H200, driver 580.159"; empty without a device.
std::string DeviceName(int index);
// Bytes read and written a second by a copy of 2 GiB on the device; the best of several.
double CopyBandwidth(int index);
// Operations a second of cuBLAS's product [2048, 4096] x [4096, 16384] in f16 with f32 sums, on
// random values; the median of several. cuBLAS is looked for when this is called: programs do not
// need it otherwise.
double GemmRate(int index);

}  // namespace sluice::bench
