#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sluice::engine {

// Where the system tells of memory. Defaults as Linux has them (proc(5); the kernel's
// admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst).
struct MemorySources {
  // Two files of a control group that hold a number of bytes each; a limit of "max" is none.
  struct Group {
    std::string limit;
    std::string used;
  };
  std::string meminfo = "/proc/meminfo";
  std::vector<Group> groups = {{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
                               {"/sys/fs/cgroup/memory/memory.limit_in_bytes",
                                "/sys/fs/cgroup/memory/memory.usage_in_bytes"}};
};

// Bytes that this process may still take: MemAvailable of the machine, less where a control group
// allows less. 1 GiB when the machine does not say.
uint64_t AvailableMemory(const MemorySources& sources = {});

}  // namespace sluice::engine
