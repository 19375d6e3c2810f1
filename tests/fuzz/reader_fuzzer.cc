// Bytes to ModelFile to ModelConfig to the roles of tensors to what `sluice inspect` prints. An
// input is a file, and behind it one byte: how many times 64 zeros follow, so that tensors
// can have data without an input carrying any.

#include <cstdint>
#include <cstdlib>
#include <utility>

#include "engine/inspection.h"
#include "engine/model_file/model_file.h"
#include "tests/fuzz/memory_file.h"

namespace {

using sluice::engine::FileTensor;
using sluice::engine::Inspection;
using sluice::engine::ModelConfig;
using sluice::engine::ModelFile;

void Check(bool holds) {
  if (!holds) std::abort();
}

// FNV-1a, its low bits mixed: a choice that depends on nothing but the input.
uint32_t Checksum(const uint8_t* data, size_t size) {
  uint32_t sum = 2166136261u;
  for (size_t i = 0; i < size; ++i) sum = (sum ^ data[i]) * 16777619u;
  return sum ^ sum >> 16;
}

// What every reader of an open file relies on.
void CheckTensors(const ModelFile& file) {
  uint64_t end = file.metadata_bytes();
  for (const FileTensor& tensor : file.tensors()) {
    Check(tensor.offset >= end && tensor.offset % file.alignment() == 0);
    Check(tensor.bytes <= file.file_bytes() && tensor.offset <= file.file_bytes() - tensor.bytes);
    Check(tensor.bytes > 0 && tensor.cols() > 0 && tensor.rows() > 0);
    end = tensor.offset + tensor.bytes;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  static sluice::fuzz::MemoryFile memory;
  memory.Fill(data, size - 1, size_t{data[size - 1]} * 64);
  auto file = ModelFile::Open(memory.path());
  if (!file.ok()) return 0;
  CheckTensors(**file);
  Inspection inspection;
  inspection.file = *std::move(file);
  auto config = ModelConfig::FromFile(*inspection.file);
  if (config.ok()) {
    Check(config->num_heads % config->num_kv_heads == 0 && config->head_size % 2 == 0);
    Check(config->layers.size() == static_cast<size_t>(config->num_layers));
    for (const auto& layer : config->layers) {
      Check(layer.rope < static_cast<int32_t>(config->ropes.size()));
    }
    for (const auto& table : config->ropes) {
      Check(table.rotary_size <= config->head_size &&
            table.inverse_frequencies.size() == static_cast<size_t>(table.rotary_size / 2));
    }
    inspection.config = *std::move(config);
  } else {
    inspection.problems.push_back(std::string(config.status().message()));
  }
  // Roles, text and JSON cost more than all before: one input in eight and one in 64 goes on.
  const uint32_t turn = Checksum(data, size);
  if (turn % 8 != 0) return 0;
  auto roles = DescribeTensors(*inspection.file);
  if (roles.ok()) {
    inspection.roles = *std::move(roles);
  } else {
    for (const FileTensor& tensor : inspection.file->tensors()) {
      inspection.roles.present.push_back({tensor.name, ""});
    }
  }
  Check(!InspectionText(inspection).empty());
  if (turn % 64 == 0) Check(!InspectionJson(inspection).empty());
  return 0;
}
