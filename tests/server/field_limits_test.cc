#include "server/field_limits.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <string>

#include "server/rpc_error.h"

namespace sluice::server {
namespace {

FieldTable Table() {
  ModelBounds bounds;
  bounds.vocab_size = 100;
  bounds.max_context = 64;
  bounds.pool_positions = 48;
  bounds.max_queue = 8;
  return FieldTable(bounds);
}

TEST(FieldTableTest, NamesEveryFieldOnce) {
  const FieldTable table = Table();
  ASSERT_EQ(table.all().size(), static_cast<size_t>(Field::kNumFields));
  std::set<std::string> names;
  for (const FieldLimit& limit : table.all()) {
    EXPECT_FALSE(std::string(limit.field).empty());
    EXPECT_TRUE(names.insert(limit.field).second) << limit.field;
    ASSERT_TRUE(limit.minimum && limit.maximum) << limit.field;
    EXPECT_LE(*limit.minimum, *limit.maximum) << limit.field;
  }
}

TEST(FieldTableTest, AcceptsEveryDefaultAndEveryBound) {
  const FieldTable table = Table();
  for (int i = 0; i < static_cast<int>(Field::kNumFields); ++i) {
    const auto field = static_cast<Field>(i);
    const FieldLimit& limit = table[field];
    EXPECT_FALSE(limit.default_value && table.Violation(field, *limit.default_value));
    EXPECT_FALSE(table.Violation(field, *limit.maximum)) << limit.field;
    EXPECT_EQ(table.Violation(field, *limit.minimum).has_value(), limit.minimum_excluded);
    EXPECT_TRUE(table.Violation(field, *limit.maximum * 1.001 + 0.001)) << limit.field;
    EXPECT_TRUE(table.Violation(field, *limit.minimum - 0.001)) << limit.field;
    EXPECT_TRUE(table.Violation(field, std::nan(""))) << limit.field;
    EXPECT_TRUE(table.Violation(field, std::numeric_limits<double>::infinity())) << limit.field;
  }
}

TEST(FieldTableTest, TakesTheSmallerOfContextAndPool) {
  const FieldTable table = Table();
  EXPECT_EQ(table.bounds().MaxPositions(), 48);
  EXPECT_EQ(*table[Field::kMaxTokens].maximum, 47);
  EXPECT_EQ(*table[Field::kN].maximum, 8);
}

TEST(FieldTableTest, SaysTheLimitAndTheValue) {
  EXPECT_EQ(*Table().Violation(Field::kTopP, 1.5), "must be in (0, 1], is 1.5");
  EXPECT_EQ(*Table().Violation(Field::kTokenId, -2147483648.0),
            "must be in [0, 99], is -2147483648");
}

TEST(QuoteTest, EscapesAndCutsWhatAClientSent) {
  EXPECT_EQ(Quote("a\"b\n\x80"), "\"a\\x22b\\x0a\\x80\"");
  EXPECT_EQ(Quote(std::string(64, 'x')), "\"" + std::string(64, 'x') + "\"");
  EXPECT_EQ(Quote(std::string(65, 'x')), "\"" + std::string(64, 'x') + "\"... (65 bytes)");
}

}  // namespace
}  // namespace sluice::server
