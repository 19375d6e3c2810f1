#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sluice::fuzz {

// One file in memory, made once and filled anew for each input: what takes a path reads it there.
class MemoryFile {
 public:
  MemoryFile();  // aborts when the system gives none
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  // The file becomes `bytes` and `zeros` bytes of nothing, which take no memory.
  void Fill(const uint8_t* bytes, size_t size, size_t zeros);
  const std::string& path() const { return path_; }

 private:
  int fd_;
  std::string path_;
};

}  // namespace sluice::fuzz
