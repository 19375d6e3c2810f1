#include "tests/engine/safetensors/model_directory.h"

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "gtest/gtest.h"

namespace sluice::testing {

ModelDirectory::ModelDirectory(std::string_view golden) {
  path_ = ::testing::TempDir() + "/model-XXXXXX";
  if (mkdtemp(path_.data()) == nullptr) std::abort();
  if (golden.empty()) return;
  const std::string from = std::string(SLUICE_GOLDEN_DIR) + "/safetensors/" + std::string(golden);
  for (const auto& entry : std::filesystem::directory_iterator(from)) {
    std::filesystem::copy_file(entry.path(), path_ + "/" + entry.path().filename().string());
  }
}

ModelDirectory::~ModelDirectory() { std::filesystem::remove_all(path_); }

std::string ModelDirectory::Read(const std::string& name) const {
  std::ifstream stream(path_ + "/" + name, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

void ModelDirectory::Write(const std::string& name, std::string_view text) const {
  const std::filesystem::path path = path_ + "/" + name;
  std::filesystem::create_directories(path.parent_path());
  std::filesystem::remove(path);
  std::ofstream stream(path, std::ios::binary);
  stream.write(text.data(), static_cast<std::streamsize>(text.size()));
  stream.close();
  if (!stream) std::abort();
}

void ModelDirectory::Remove(const std::string& name) const {
  if (!std::filesystem::remove(path_ + "/" + name)) std::abort();
}

nlohmann::json ModelDirectory::ReadJson(const std::string& name) const {
  return nlohmann::json::parse(Read(name));
}

void ModelDirectory::WriteJson(const std::string& name, const nlohmann::json& json) const {
  Write(name, json.dump());
}

std::string SafetensorsBytes(uint64_t length, std::string_view header, std::string_view data) {
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  bytes += header;
  bytes += data;
  return bytes;
}

std::string SafetensorsBytes(std::string_view header, std::string_view data) {
  return SafetensorsBytes(header.size(), header, data);
}

}  // namespace sluice::testing
