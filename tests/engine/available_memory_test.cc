#include "engine/available_memory.h"

#include <string>

#include "gtest/gtest.h"

#include "tests/testing/gguf_writer.h"

namespace sluice::engine {
namespace {

using testing::TempFile;

constexpr uint64_t kGigabyte = uint64_t{1} << 30;
constexpr const char* kNowhere = "/nonexistent/file";

// 8 GiB available, as the kernel writes it.
constexpr const char* kMeminfo =
    "MemTotal:       16777216 kB\n"
    "MemFree:         1234567 kB\n"
    "MemAvailable:    8388608 kB\n"
    "Active(anon):      12345 kB\n"
    "HugePages_Total:       0\n"
    "Hugepagesize:       2048 kB\n";

// What is available with a limit and a use as the two files of one control group hold them.
uint64_t WithGroup(const std::string& limit, const std::string& used) {
  const TempFile meminfo(kMeminfo), limit_file(limit), used_file(used);
  return AvailableMemory({meminfo.path(), {{limit_file.path(), used_file.path()}}});
}

TEST(AvailableMemoryTest, IsWhatTheMachineHasWithoutAGroup) {
  const TempFile meminfo(kMeminfo);
  EXPECT_EQ(AvailableMemory({meminfo.path(), {}}), 8 * kGigabyte);
  EXPECT_EQ(AvailableMemory({meminfo.path(), {{kNowhere, kNowhere}}}), 8 * kGigabyte);
}

TEST(AvailableMemoryTest, IsOneGigabyteWhenTheMachineDoesNotSay) {
  EXPECT_EQ(AvailableMemory({kNowhere, {}}), kGigabyte);
  const TempFile nothing(""), other("MemTotal:       16777216 kB\n");
  EXPECT_EQ(AvailableMemory({nothing.path(), {}}), kGigabyte);
  EXPECT_EQ(AvailableMemory({other.path(), {}}), kGigabyte);
}

TEST(AvailableMemoryTest, IsLessWhereAGroupAllowsLess) {
  EXPECT_EQ(WithGroup("3221225472\n", "1073741824\n"), 2 * kGigabyte);
  EXPECT_EQ(WithGroup("1073741824\n", "1073741824\n"), 0u);
  EXPECT_EQ(WithGroup("1073741824\n", "1073741825\n"), 0u);  // shrunk below what is in use
}

TEST(AvailableMemoryTest, IsNotMoreWhereAGroupAllowsMore) {
  EXPECT_EQ(WithGroup("max\n", "1073741824\n"), 8 * kGigabyte);                  // version 2
  EXPECT_EQ(WithGroup("9223372036854771712\n", "1073741824\n"), 8 * kGigabyte);  // version 1
  EXPECT_EQ(WithGroup("1073741824\n", ""), 8 * kGigabyte);  // a use that nobody tells
}

TEST(AvailableMemoryTest, TakesTheTightestOfTheGroups) {
  const TempFile meminfo(kMeminfo), wide("4294967296\n"), tight("2147483648\n"), used("1048576\n");
  const MemorySources::Group first = {wide.path(), used.path()};
  const MemorySources::Group second = {tight.path(), used.path()};
  for (const auto& groups : {std::vector{first, second}, std::vector{second, first}})
    EXPECT_EQ(AvailableMemory({meminfo.path(), groups}), 2147483648u - 1048576u);
}

TEST(AvailableMemoryTest, ReadsBothVersionsOfControlGroups) {
  const MemorySources sources;
  EXPECT_EQ(sources.meminfo, "/proc/meminfo");
  ASSERT_EQ(sources.groups.size(), 2u);
  EXPECT_EQ(sources.groups[0].limit, "/sys/fs/cgroup/memory.max");
  EXPECT_EQ(sources.groups[0].used, "/sys/fs/cgroup/memory.current");
  EXPECT_EQ(sources.groups[1].limit, "/sys/fs/cgroup/memory/memory.limit_in_bytes");
  EXPECT_EQ(sources.groups[1].used, "/sys/fs/cgroup/memory/memory.usage_in_bytes");
  EXPECT_GT(AvailableMemory(), 0u);
}

}  // namespace
}  // namespace sluice::engine
