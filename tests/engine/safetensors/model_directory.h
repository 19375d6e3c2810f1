#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "nlohmann/json.hpp"

namespace sluice::testing {

// A copy of one of tests/golden/safetensors, or an empty directory, in the test's temporary folder:
// to be edited and opened. Removed by the destructor.
class ModelDirectory {
 public:
  explicit ModelDirectory(std::string_view golden = "");
  ~ModelDirectory();
  ModelDirectory(const ModelDirectory&) = delete;
  ModelDirectory& operator=(const ModelDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string Read(const std::string& name) const;
  void Write(const std::string& name, std::string_view text) const;
  void Remove(const std::string& name) const;
  nlohmann::json ReadJson(const std::string& name) const;
  void WriteJson(const std::string& name, const nlohmann::json& json) const;

 private:
  std::string path_;
};

// A safetensors file with this header, the length of which is put before it unless given.
std::string SafetensorsBytes(std::string_view header, std::string_view data);
std::string SafetensorsBytes(uint64_t length, std::string_view header, std::string_view data);

}  // namespace sluice::testing
