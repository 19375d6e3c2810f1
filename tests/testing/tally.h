#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace sluice::testing {

// What one test compared, for the table of scripts/compatibility.py. At its end each of `rows`
// ("TABLE/ROW") gets a property in the account of the running test, where anything was compared:
// "compared/TABLE/ROW/KIND" = "CASES EQUAL NEAR_TIES". A row has a kind once in a test; what
// follows a comma in `kind` only tells two of them apart. Test thread only.
class Tally {
 public:
  Tally(std::vector<std::string> rows, std::string kind)
      : rows_(std::move(rows)), kind_(std::move(kind)) {}
  ~Tally() {
    if (cases_ + near_ties_ == 0) return;
    for (const std::string& row : rows_) {
      ::testing::Test::RecordProperty(absl::StrCat("compared/", row, "/", kind_),
                                      absl::StrCat(cases_, " ", equal_, " ", near_ties_));
    }
  }
  Tally(const Tally&) = delete;
  Tally& operator=(const Tally&) = delete;

  // Counts a case and gives `equal` back.
  bool Add(bool equal) {
    ++cases_;
    equal_ += equal ? 1 : 0;
    return equal;
  }
  // A case set apart, because the reference itself was not sure.
  void AddNearTie() { ++near_ties_; }

 private:
  const std::vector<std::string> rows_;
  const std::string kind_;
  int64_t cases_ = 0;
  int64_t equal_ = 0;
  int64_t near_ties_ = 0;
};

}  // namespace sluice::testing
