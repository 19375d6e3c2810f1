#include "tests/testing/npy.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

namespace sluice::testing {

NpyArray LoadNpy(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(stream), {});
  const auto fail = [&](const char* why) {
    std::fprintf(stderr, "%s: %s\n", path.c_str(), why);
    std::abort();
  };
  if (bytes.size() < 10 || bytes.compare(1, 5, "NUMPY") != 0) fail("not a .npy file");
  uint16_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data() + 8, sizeof header_bytes);
  const std::string header = bytes.substr(10, header_bytes);
  if (header.find("'<f4'") == std::string::npos ||
      header.find("'fortran_order': False") == std::string::npos) {
    fail("expected C-order float32");
  }
  NpyArray array;
  int64_t count = 1;
  const size_t open = header.find('('), close = header.find(')');
  for (size_t at = open + 1; at < close;) {
    const int64_t dim = std::strtoll(header.c_str() + at, nullptr, 10);
    array.shape.push_back(dim);
    count *= dim;
    at = header.find(',', at);
    if (at == std::string::npos || at > close) break;
    ++at;
    while (at < close && header[at] == ' ') ++at;
  }
  const size_t begin = 10u + header_bytes;
  if (bytes.size() != begin + sizeof(float) * static_cast<size_t>(count)) fail("unexpected size");
  array.values.resize(static_cast<size_t>(count));
  std::memcpy(array.values.data(), bytes.data() + begin, sizeof(float) * array.values.size());
  return array;
}

}  // namespace sluice::testing
