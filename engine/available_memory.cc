#include "engine/available_memory.h"

#include <algorithm>
#include <fstream>
#include <optional>

namespace sluice::engine {
namespace {

// A number at the beginning of `path`; nullopt when there is none ("max").
std::optional<uint64_t> ReadNumber(const std::string& path) {
  std::ifstream stream(path);
  uint64_t number = 0;
  if (!(stream >> number)) return std::nullopt;
  return number;
}

}  // namespace

uint64_t AvailableMemory(const MemorySources& sources) {
  uint64_t available = uint64_t{1} << 30;
  std::ifstream meminfo(sources.meminfo);
  std::string name, unit;
  uint64_t kilobytes = 0;
  while (meminfo >> name >> kilobytes) {
    std::getline(meminfo, unit);
    if (name == "MemAvailable:") available = kilobytes * 1024;
  }
  for (const MemorySources::Group& group : sources.groups) {
    const std::optional<uint64_t> limit = ReadNumber(group.limit), used = ReadNumber(group.used);
    if (limit && used) available = std::min(available, *limit > *used ? *limit - *used : 0);
  }
  return available;
}

}  // namespace sluice::engine
