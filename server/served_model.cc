#include "server/served_model.h"

#include <utility>

namespace sluice::server {
namespace {

ModelBounds BoundsOf(const engine::LoadedModel& model, int max_tokens_cap) {
  const engine::ModelFacts& facts = model.facts;
  ModelBounds bounds;
  bounds.vocab_size = facts.vocab_size;
  bounds.max_context = facts.max_context > 0 ? facts.max_context : facts.context_length;
  bounds.pool_positions = facts.kv_pages * engine::KvAccounting{}.page_tokens;
  bounds.max_queue = model.dispatcher->engines().front()->limits().max_queue;
  bounds.max_tokens_cap = max_tokens_cap;
  return bounds;
}

}  // namespace

int64_t PoolPositionsOf(const ServedModel& model) {
  return model.limits.bounds().pool_positions *
         static_cast<int64_t>(model.dispatcher().engines().size());
}

ServedModel::ServedModel(engine::LoadedModel model, std::string served_name, std::string build_name,
                         int max_tokens_cap)
    : loaded(std::move(model)),
      name(served_name.empty() ? loaded.facts.name : std::move(served_name)),
      build(std::move(build_name)),
      limits(BoundsOf(loaded, max_tokens_cap)) {}

std::vector<std::string> ServedModel::UnimplementedFields() const { return {"constraint"}; }

}  // namespace sluice::server
