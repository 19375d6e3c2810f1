// M97: reads that come short, are interrupted, or fail at some byte. This program has a pread of
// its own, which takes the place of the C library's for all that is linked into it.

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/status.h"
#include "engine/model_file/model_file.h"
#include "tests/engine/hostile/hostile_case.h"
#include "tests/engine/hostile/load_probe.h"

namespace {

// What reads do. Set while nothing is being read; threads of a load read it.
struct ReadFaults {
  std::atomic<size_t> most_bytes{SIZE_MAX};  // of one call
  std::atomic<bool> interrupts{false};       // every other call
  std::atomic<int64_t> broken_byte{-1};      // reading it gives EIO
  std::atomic<uint64_t> calls{0};
} faults;

}  // namespace

extern "C" ssize_t pread(int fd, void* out, size_t size, off_t offset) {
  const uint64_t call = faults.calls.fetch_add(1);
  if (faults.interrupts && call % 2 == 0) {
    errno = EINTR;
    return -1;
  }
  size = std::min(size, faults.most_bytes.load());
  const int64_t broken = faults.broken_byte;
  if (broken >= offset && broken < offset + static_cast<int64_t>(size)) {
    if (broken == offset) {
      errno = EIO;
      return -1;
    }
    size = static_cast<size_t>(broken - offset);  // what lies before it can be read
  }
  return syscall(SYS_pread64, fd, out, size, offset);
}

namespace sluice::testing {
namespace {

using engine::Message;
using ::testing::HasSubstr;

class ReadFaultTest : public ::testing::Test {
 protected:
  ReadFaultTest() : file_(GoodModel().Bytes()), good_(LoadAndServe(file_.path())) {
    EXPECT_TRUE(good_.status.ok()) << Message(good_.status);
    EXPECT_GT(faults.calls, 0u) << "the engine reads by other means than pread";
  }
  ~ReadFaultTest() override {
    Heal();
    EXPECT_EQ(LoadAndServe(file_.path()).tokens, good_.tokens);
  }
  static void Heal() {
    faults.most_bytes = SIZE_MAX;
    faults.interrupts = false;
    faults.broken_byte = -1;
  }

  TempFile file_;
  LoadOutcome good_;
};

TEST_F(ReadFaultTest, ShortReadsAreGoneOnWith) {
  for (const size_t most : {size_t{97}, size_t{4096}}) {
    faults.most_bytes = most;
    const LoadOutcome outcome = LoadAndServe(file_.path());
    EXPECT_TRUE(outcome.status.ok()) << Message(outcome.status);
    EXPECT_EQ(outcome.tokens, good_.tokens);
  }
}

TEST_F(ReadFaultTest, InterruptedReadsAreMadeAgain) {
  faults.interrupts = true;
  faults.most_bytes = 1000;
  const LoadOutcome outcome = LoadAndServe(file_.path());
  EXPECT_TRUE(outcome.status.ok()) << Message(outcome.status);
  EXPECT_EQ(outcome.tokens, good_.tokens);
}

TEST_F(ReadFaultTest, AByteThatCannotBeReadIsNamed) {
  std::vector<uint64_t> bytes = {0, 3, 4, 8, 23, 24, 100};
  {
    const auto file = engine::ModelFile::Open(file_.path());
    ASSERT_TRUE(file.ok());
    for (const engine::FileTensor& tensor : (*file)->tensors()) {
      bytes.insert(bytes.end(),
                   {tensor.record_offset, tensor.offset, tensor.offset + 1,
                    tensor.offset + tensor.bytes / 2, tensor.offset + tensor.bytes - 1});
    }
  }
  for (const uint64_t byte : bytes) {
    faults.broken_byte = static_cast<int64_t>(byte);
    const absl::Status status =
        engine::LoadModel(file_.path(), ProbeOptions(), 1, nullptr).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << byte;
    EXPECT_THAT(Message(status), HasSubstr(file_.path())) << byte;
    EXPECT_THAT(Message(status), HasSubstr("at byte " + std::to_string(byte) + ": Input/output"))
        << byte;
    Heal();
    EXPECT_EQ(LoadAndServe(file_.path()).tokens, good_.tokens) << byte;
  }
}

}  // namespace
}  // namespace sluice::testing
