#pragma once

#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/field_limits.h"

namespace sluice::server {

// The model that the server serves, and what follows from it. Owned by the server from Serve on;
// immutable but for the engines behind `loaded.dispatcher`, which is thread-safe.
struct ServedModel {
  // `name` and `build` as in ServerOptions.
  ServedModel(engine::LoadedModel model, std::string name, std::string build, int max_tokens_cap);

  engine::LoadedModel loaded;
  std::string name;   // how clients call it
  std::string build;  // provenance
  FieldTable limits;

  bool has_vocabulary() const { return loaded.tokenizer != nullptr; }
  // Fields of GenerateRequest that answer UNIMPLEMENTED.
  std::vector<std::string> UnimplementedFields() const;
  engine::Dispatcher& dispatcher() const { return *loaded.dispatcher; }
};

// Of the KV pools of all engines.
int64_t PoolPositionsOf(const ServedModel& model);

}  // namespace sluice::server
