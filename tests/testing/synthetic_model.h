#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/gguf/gguf_writer.h"
#include "kernels/core/dtype.h"

namespace sluice::testing {

// A model of random weights with the shape and the types of a real one, to measure speed without
// the real one's file. Logits have about unit variance. Value.
struct SyntheticSpec {
  std::string name;
  std::string architecture;  // "llama" or "qwen2"
  int layers = 0;
  int width = 0;
  int heads = 0, kv_heads = 0;
  int ffn_width = 0;
  int vocab_size = 0;
  int context_length = 0;
  float norm_epsilon = 1e-6f;
  float rope_base = 10000.0f;
  bool tied_head = true;
  std::string types = "q8_0";  // one of SyntheticTypes()
  uint64_t seed = 1;
};

// The shapes known by name ("smollm2-135m", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b",
// "qwen2.5-7b"); NOT_FOUND with the names for another.
absl::StatusOr<SyntheticSpec> SyntheticShape(const std::string& name);
// "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_s", "q4_k_m", "q5_k_m",
// "q6_k": as of llama-quantize.
std::vector<std::string> SyntheticTypes();

// The tensors in file order, each with the type that llama-quantize chooses for it
// (llama.cpp/src/llama-quant.cpp: more bits for some layers and for the output, other types where a
// row is no multiple of 256). INVALID_ARGUMENT for an unknown word in `types`.
absl::StatusOr<std::vector<engine::TensorRecord>> SyntheticTensors(const SyntheticSpec& spec);

struct SyntheticReport {
  uint64_t file_bytes = 0;
  uint64_t tensor_bytes = 0;
  uint64_t step_bytes = 0;  // read by every decode step: all but an embedding that is not the head
};

// Writes the file, replacing one that is there; as fast as `num_threads` draw and one writes.
absl::StatusOr<SyntheticReport> WriteSyntheticModel(const SyntheticSpec& spec,
                                                    const std::string& path, int num_threads);

}  // namespace sluice::testing
