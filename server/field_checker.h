#pragma once

#include <string>
#include <utility>
#include <vector>

#include "server/field_limits.h"
#include "server/rpc_error.h"

namespace sluice::server {

// "field[index]".
template <typename Index>
std::string Indexed(const char* field, Index index) {
  return std::string(field) + "[" + std::to_string(index) + "]";
}

// The parts of a request that go through the field table, gathering what is wrong.
class FieldChecker {
 public:
  FieldChecker(const FieldTable& limits, std::vector<FieldViolation>* violations)
      : limits_(limits), violations_(violations) {}

  // False when the value is not within its limits.
  bool Check(Field field, double value) {
    auto what = limits_.Violation(field, value);
    if (what) Fail(PathOf(limits_[field]), std::move(*what));
    return !what;
  }
  // The same of element `index` of the field at `path`; the path is built for a bad one only.
  template <typename Index>
  void CheckElement(Field field, double value, const char* path, Index index) {
    auto what = limits_.Violation(field, value);
    if (what) Fail(Indexed(path, index), std::move(*what));
  }
  // Takes the given value, or the table's default.
  template <typename T>
  T Resolve(Field field, bool given, T value) {
    if (!given) return static_cast<T>(*limits_[field].default_value);
    Check(field, static_cast<double>(value));
    return value;
  }
  void Fail(std::string path, std::string what) {
    // Some requests repeat one mistake a million times.
    if (violations_->size() < 64) violations_->push_back({std::move(path), std::move(what)});
  }
  bool full() const { return violations_->size() >= 64; }

 private:
  const FieldTable& limits_;
  std::vector<FieldViolation>* violations_;
};

}  // namespace sluice::server
