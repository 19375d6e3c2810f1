#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "bench/device_rates.h"
#include "kernels/cuda/device.h"

namespace sluice::bench {
namespace {

// Device memory that is given back at the end of a scope; null when there is not so much.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) {
    if (cudaMalloc(&memory_, bytes) != cudaSuccess) memory_ = nullptr;
  }
  ~DeviceMemory() { cudaFree(memory_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  void* get() const { return memory_; }

 private:
  void* memory_ = nullptr;
};

// Seconds of each of `count` runs of `work`, after two that are not counted, ascending; empty when
// the device failed.
template <typename Work>
std::vector<double> Times(int count, const Work& work) {
  cudaEvent_t begin, end;
  std::vector<double> seconds;
  if (cudaEventCreate(&begin) != cudaSuccess || cudaEventCreate(&end) != cudaSuccess) return {};
  bool ok = true;
  for (int i = 0; i < count + 2 && ok; ++i) {
    float milliseconds = 0;
    cudaEventRecord(begin);
    work();
    cudaEventRecord(end);
    ok = cudaEventSynchronize(end) == cudaSuccess &&
         cudaEventElapsedTime(&milliseconds, begin, end) == cudaSuccess &&
         cudaGetLastError() == cudaSuccess;
    if (i >= 2) seconds.push_back(1e-3 * static_cast<double>(milliseconds));
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  if (!ok) return {};
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

// Halves of both signs between 0.5 and 2 in magnitude.
__global__ void fill_halves(uint16_t* out, size_t count) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    uint64_t z = (i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    const auto bits = static_cast<uint16_t>(z >> 40);
    out[i] = static_cast<uint16_t>((bits & 0x87ff) | 0x3800);
  }
}

// The three functions of cuBLAS (cublas_v2.h) that one product takes.
struct Cublas {
  using Create = int (*)(void** handle);
  using Destroy = int (*)(void* handle);
  using GemmEx = int (*)(void* handle, int transpose_a, int transpose_b, int m, int n, int k,
                         const void* alpha, const void* a, int a_type, int lda, const void* b,
                         int b_type, int ldb, const void* beta, void* c, int c_type, int ldc,
                         int compute_type, int algorithm);
  Create create = nullptr;
  Destroy destroy = nullptr;
  GemmEx gemm = nullptr;

  static Cublas Open() {
    Cublas cublas;
    void* library = nullptr;
    for (const char* name : {"libcublas.so.13", "/usr/local/cuda/lib64/libcublas.so.13",
                             "libcublas.so.12", "/usr/local/cuda/lib64/libcublas.so.12"}) {
      if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    if (library == nullptr) return cublas;
    cublas.create = reinterpret_cast<Create>(dlsym(library, "cublasCreate_v2"));
    cublas.destroy = reinterpret_cast<Destroy>(dlsym(library, "cublasDestroy_v2"));
    cublas.gemm = reinterpret_cast<GemmEx>(dlsym(library, "cublasGemmEx"));
    return cublas;
  }
  bool ok() const { return create != nullptr && destroy != nullptr && gemm != nullptr; }
};

}  // namespace

std::string DeviceName(int index) {
  cudaDeviceProp properties;
  int driver = 0;
  if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) {
    cudaGetLastError();
    return "";
  }
  cudaDriverGetVersion(&driver);
  char text[320];
  std::snprintf(text, sizeof text, "%s, %d SMs, CUDA %d.%d of the driver", properties.name,
                properties.multiProcessorCount, driver / 1000, driver % 1000 / 10);
  return text;
}

double CopyBandwidth(int index) {
  constexpr size_t kBytes = size_t{2} << 30;
  if (cudaSetDevice(index) != cudaSuccess) return 0;
  const DeviceMemory from(kBytes), to(kBytes);
  if (from.get() == nullptr || to.get() == nullptr) return 0;
  fill_halves<<<1024, 256>>>(static_cast<uint16_t*>(from.get()), kBytes / 2);
  const std::vector<double> seconds = Times(10, [&] {
    cudaMemcpyAsync(to.get(), from.get(), kBytes, cudaMemcpyDeviceToDevice, nullptr);
  });
  return seconds.empty() ? 0 : 2.0 * static_cast<double>(kBytes) / seconds.front();
}

double GemmRate(int index) {
  constexpr int kM = 2048, kN = 16384, kK = 4096;
  constexpr int kNotTransposed = 0, kTransposed = 1, kHalf = 2, kSumsInF32 = 68, kDefault = -1;
  const Cublas cublas = Cublas::Open();
  if (!cublas.ok() || cudaSetDevice(index) != cudaSuccess) return 0;
  const DeviceMemory weights(size_t{2} * kN * kK), rows(size_t{2} * kM * kK),
      out(size_t{2} * kM * kN);
  void* handle = nullptr;
  if (weights.get() == nullptr || rows.get() == nullptr || out.get() == nullptr) return 0;
  if (cublas.create(&handle) != 0) return 0;
  fill_halves<<<1024, 256>>>(static_cast<uint16_t*>(weights.get()), size_t{kN} * kK);
  fill_halves<<<1024, 256>>>(static_cast<uint16_t*>(rows.get()), size_t{kM} * kK);
  const float one = 1e-3f, zero = 0;  // sums stay below the largest half
  bool ok = true;
  const std::vector<double> seconds = Times(20, [&] {
    ok &=
        cublas.gemm(handle, kTransposed, kNotTransposed, kN, kM, kK, &one, weights.get(), kHalf, kK,
                    rows.get(), kHalf, kK, &zero, out.get(), kHalf, kN, kSumsInF32, kDefault) == 0;
  });
  cublas.destroy(handle);
  if (!ok || seconds.empty()) return 0;
  return 2.0 * kM * kN * kK / seconds[seconds.size() / 2];
}

}  // namespace sluice::bench
