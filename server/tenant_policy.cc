#include "server/tenant_policy.h"

#include <algorithm>
#include <utility>

#include "engine/base/status.h"
#include "server/credentials.h"
#include "server/field_limits.h"
#include "server/json_reader.h"
#include "server/rpc_error.h"

namespace sluice::server {
namespace {

constexpr double kBurstSeconds = 10;  // of the rate, where the file names no burst
constexpr int64_t kMost = 1'000'000'000;
constexpr int kMaxPriority = 100;  // of Field::kPriority

std::optional<std::vector<std::string>> ParseModels(JsonReader& reader) {
  const nlohmann::json* models = reader.Array("models");
  if (models == nullptr) return std::nullopt;
  std::vector<std::string> names;
  for (const nlohmann::json& model : *models) {
    if (!model.is_string()) {
      reader.Fail("models", "expected an array of names");
      return std::nullopt;
    }
    names.push_back(model.get<std::string>());
  }
  return names;
}

absl::StatusOr<TenantLimits> ParseLimits(const nlohmann::json& json, const std::string& path) {
  JsonReader reader(json, path,
                    {"weight", "max_concurrent", "tokens_per_second", "burst_tokens", "kv_share",
                     "max_tokens", "max_priority", "models"});
  TenantLimits limits;
  limits.weight = static_cast<int>(reader.Integer("weight", 1, 1000).value_or(1));
  limits.max_concurrent = reader.Integer("max_concurrent", 0, kMost);
  limits.tokens_per_second = reader.Number("tokens_per_second", 0.001, 1e9);
  const auto burst = reader.Number("burst_tokens", 1, 1e12);
  if (burst && !limits.tokens_per_second) {
    reader.Fail("burst_tokens", "needs tokens_per_second");
  }
  limits.burst_tokens =
      burst.value_or(std::max(1.0, limits.tokens_per_second.value_or(0) * kBurstSeconds));
  limits.kv_share = reader.Number("kv_share", 0.001, 1).value_or(1);
  limits.max_tokens = reader.Integer("max_tokens", 1, kMost);
  limits.max_priority =
      static_cast<int>(reader.Integer("max_priority", -kMaxPriority, kMaxPriority).value_or(0));
  limits.models = ParseModels(reader);
  RETURN_IF_ERROR(reader.status());
  return limits;
}

}  // namespace

bool TenantLimits::MayUse(std::string_view model) const {
  return !models || std::find(models->begin(), models->end(), model) != models->end();
}

TenantPolicy::TenantPolicy() { default_.max_priority = kMaxPriority; }

absl::StatusOr<std::shared_ptr<const TenantPolicy>> TenantPolicy::Parse(const std::string& text) {
  ASSIGN_OR_RETURN(const nlohmann::json file, ParseJson(text));
  JsonReader reader(file, "", {"default", "tenants"});
  const nlohmann::json* of_default = reader.Object("default");
  const nlohmann::json* of_tenants = reader.Object("tenants");
  RETURN_IF_ERROR(reader.status());
  auto policy = std::make_shared<TenantPolicy>();
  policy->default_ = {};
  if (of_default != nullptr) {
    ASSIGN_OR_RETURN(policy->default_, ParseLimits(*of_default, "default"));
  }
  if (of_tenants == nullptr) return policy;
  if (of_tenants->size() > kMaxTenants) {
    return engine::InvalidArgument("tenants: more than " + std::to_string(kMaxTenants));
  }
  for (const auto& [name, json] : of_tenants->items()) {
    if (!IsTenantName(name)) {
      return engine::InvalidArgument("tenants: " + Quote(name) +
                                     " is no name: 1 to 64 letters, digits, '-', '_' and '.'");
    }
    ASSIGN_OR_RETURN(policy->tenants_[name], ParseLimits(json, "tenants." + name));
  }
  return policy;
}

const TenantLimits& TenantPolicy::Of(std::string_view tenant) const {
  const auto place = tenants_.find(tenant);
  return place == tenants_.end() ? default_ : place->second;
}

std::string TenantPolicy::LabelOf(std::string_view tenant) const {
  return tenants_.find(tenant) == tenants_.end() ? "other" : std::string(tenant);
}

}  // namespace sluice::server
