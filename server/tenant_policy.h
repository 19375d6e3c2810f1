#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace sluice::server {

// What a tenant may have of the server. Value.
struct TenantLimits {
  int weight = 1;                                  // of its turns in the queue
  std::optional<int64_t> max_concurrent;           // open Generate calls
  std::optional<double> tokens_per_second;         // of prompts and generated, over time
  double burst_tokens = 0;                         // that it may take at once; set with the rate
  double kv_share = 1;                             // of the KV pools' positions
  std::optional<int64_t> max_tokens;               // of a call
  int max_priority = 0;                            // of a call
  std::optional<std::vector<std::string>> models;  // that it may use; nothing: all

  bool MayUse(std::string_view model) const;
};

// The limits of tenants, as a file gives them:
//
//   {"default": {"max_concurrent": 4},
//    "tenants": {"acme": {"weight": 2, "max_concurrent": 64, "tokens_per_second": 5000,
//                         "burst_tokens": 20000, "kv_share": 0.5, "max_tokens": 4096,
//                         "max_priority": 10, "models": ["smollm2"]}}}
//
// Tenants without an entry of their own have the limits of "default". Immutable; thread-safe.
class TenantPolicy {
 public:
  static constexpr size_t kMaxTenants = 1000;

  // Without a file: no limits for anybody.
  TenantPolicy();
  // INVALID_ARGUMENT with the path of what is wrong.
  static absl::StatusOr<std::shared_ptr<const TenantPolicy>> Parse(const std::string& json);

  const TenantLimits& Of(std::string_view tenant) const;
  // For metrics: the tenant if it has an entry of its own, "other" otherwise.
  std::string LabelOf(std::string_view tenant) const;

 private:
  TenantLimits default_;
  std::map<std::string, TenantLimits, std::less<>> tenants_;
};

}  // namespace sluice::server
