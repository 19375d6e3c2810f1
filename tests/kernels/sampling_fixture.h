#pragma once

// A sampler with its machine and slots, for the tests of sampling.

#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/core/sampler_slots.h"
#include "kernels/ops.h"

namespace sluice::kernels {

struct Machine {
  Backend backend = Backend::kCpu;
  CpuIsa isa = CpuIsa::kAvx2;
  int num_threads = 1;
};

inline bool HasAvx512() {
  const auto best = DetectCpuIsa();
  return best.ok() && *best == CpuIsa::kAvx512;
}

inline std::vector<Machine> AllMachines() {
  std::vector<Machine> machines = {{Backend::kRef, CpuIsa::kAvx2, 1},
                                   {Backend::kCpu, CpuIsa::kAvx2, 1},
                                   {Backend::kCpu, CpuIsa::kAvx2, 3}};
  if (HasAvx512()) machines.push_back({Backend::kCpu, CpuIsa::kAvx512, 2});
  return machines;
}

// A backend's sampler for one vocabulary.
class Sampler {
 public:
  Sampler(const Machine& machine, int64_t vocab_size, int num_slots = 8) : vocab_size_(vocab_size) {
    Exec::Options options;
    options.backend = machine.backend;
    options.isa = machine.isa;
    options.num_threads = machine.num_threads;
    exec_ = std::make_unique<Exec>(options);
    WorkspaceShape shape;
    shape.max_tokens = shape.max_logit_rows = shape.max_rows = shape.max_pages = 1;
    shape.width = shape.ffn_width = shape.head_size = 32;
    shape.num_heads = shape.num_kv_heads = 1;
    shape.vocab_size = vocab_size;
    const absl::Status reserved = ReserveWorkspace(*exec_, shape);
    EXPECT_TRUE(reserved.ok()) << reserved;
    auto slots = SamplerSlots::Create(*exec_, num_slots, vocab_size);
    EXPECT_TRUE(slots.ok()) << slots.status();
    slots_ = std::make_unique<SamplerSlots>(std::move(*slots));
  }

  void Reset(int slot, const SamplerParams& params, const std::vector<int32_t>& prompt = {},
             const std::vector<int32_t>& output = {}) {
    ASSERT_TRUE(slots_->Reset(slot, params, prompt, output).ok());
  }

  std::vector<SampledToken> Run(const std::vector<float>& logits,
                                const std::vector<SampleRow>& rows,
                                const std::vector<uint32_t>& mask = {}) {
    std::vector<SampledToken> out(rows.size());
    SampleArgs args;
    args.rows = rows;
    args.mask = mask.empty() ? nullptr : mask.data();
    const int64_t num_rows = static_cast<int64_t>(logits.size()) / vocab_size_;
    const absl::Status status =
        Sample(*exec_, {logits.data(), num_rows, vocab_size_}, args, *slots_, out, nullptr);
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  // One row of logits, one slot.
  SampledToken RunOne(const std::vector<float>& logits, SampleRow row = {}) {
    return Run(logits, {row})[0];
  }

  const SamplerSlot& slot(int index) const {
    return slots_->table().slots[static_cast<size_t>(index)];
  }

 private:
  int64_t vocab_size_;
  std::unique_ptr<Exec> exec_;
  std::unique_ptr<SamplerSlots> slots_;
};

inline ::testing::AssertionResult Same(const SampledToken& a, const SampledToken& b) {
  if (a.finite != b.finite) return ::testing::AssertionFailure() << "finite differs";
  if (!a.finite) return ::testing::AssertionSuccess();
  if (a.token != b.token) {
    return ::testing::AssertionFailure() << "tokens " << a.token << " and " << b.token;
  }
  if (std::memcmp(&a.logprob, &b.logprob, sizeof(float)) != 0) {
    return ::testing::AssertionFailure() << "logprobs " << a.logprob << " and " << b.logprob;
  }
  if (a.top.size() != b.top.size()) return ::testing::AssertionFailure() << "sizes of top differ";
  for (size_t i = 0; i < a.top.size(); ++i) {
    if (a.top[i].token != b.top[i].token || a.top[i].logprob != b.top[i].logprob) {
      return ::testing::AssertionFailure()
             << "top " << i << ": " << a.top[i].token << " and " << b.top[i].token;
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace sluice::kernels
