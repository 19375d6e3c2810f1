#include "kernels/core/exec.h"

#include <cpuid.h>

#include <utility>

#include "kernels/core/check.h"

namespace sluice::kernels {
namespace {

// Asked of the processor itself: not every compiler's __builtin_cpu_supports knows the name.
bool HasF16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

}  // namespace

std::string_view Name(Backend backend) {
  switch (backend) {
    case Backend::kRef:
      return "ref";
    case Backend::kCpu:
      return "cpu";
    case Backend::kCuda:
      return "cuda";
  }
  return "unknown";
}

std::string_view Name(CpuIsa isa) { return isa == CpuIsa::kAvx512 ? "avx512" : "avx2"; }

// __builtin_cpu_supports also asks whether the operating system saves the registers.
absl::StatusOr<CpuIsa> DetectCpuIsa() {
  __builtin_cpu_init();
  std::string missing;
  if (!__builtin_cpu_supports("avx2")) missing += " AVX2";
  if (!__builtin_cpu_supports("fma")) missing += " FMA";
  if (!HasF16c()) missing += " F16C";
  if (!missing.empty()) {
    return absl::FailedPreconditionError("this processor lacks" + missing +
                                         "; the CPU backend needs AVX2, FMA and F16C");
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni")) {
    return CpuIsa::kAvx512;
  }
  return CpuIsa::kAvx2;
}

Exec::Exec(const Options& options)
    : options_(options), pool_(std::make_unique<WorkerPool>(options.num_threads)) {}

Exec::~Exec() = default;

std::string Exec::Describe() const {
  std::string text(Name(backend()));
  if (backend() == Backend::kCpu) {
    text += ' ';
    text += Name(isa());
  }
  const int threads = pool_->num_workers();
  return text + ' ' + std::to_string(threads) + (threads == 1 ? " thread" : " threads");
}

void Exec::set_workspace(const WorkspaceShape& shape, std::unique_ptr<Workspace> workspace) {
  SLUICE_KERNEL_CHECK(workspace != nullptr, "a workspace is set once it exists");
  workspace_shape_ = shape;
  workspace_ = std::move(workspace);
}

}  // namespace sluice::kernels
