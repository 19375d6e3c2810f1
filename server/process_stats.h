#pragma once

#include <cstdint>
#include <string>

namespace sluice::server {

// The beginning of a small file of /proc, 1 KiB at most; empty when it cannot be read. Allocates
// little: a process short of memory asks too. Thread-safe.
std::string ReadProc(const char* path);

// What the kernel says of this process. Each is 0 when it does not say. Thread-safe.
uint64_t ResidentBytes();
uint64_t VirtualBytes();
double CpuSeconds();        // of all threads, in user and kernel mode
uint64_t OpenFiles();       // descriptors
uint64_t MaxOpenFiles();    // the limit in force on them
double StartTimeSeconds();  // since 1970; as the wall clock is now

}  // namespace sluice::server
