#include "server/acceptor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>

#include "server/tcp_address.h"

namespace sluice::server {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

template <typename Condition>
bool Soon(const Condition& condition) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!condition() && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  return condition();
}

// Leaves the process without a free descriptor.
class Exhaustion {
 public:
  Exhaustion() {
    getrlimit(RLIMIT_NOFILE, &before_);
    const int next = dup(0);  // the lowest free number
    close(next);
    const rlimit none = {static_cast<rlim_t>(next), before_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    EXPECT_EQ(dup(0), -1);
  }
  ~Exhaustion() { setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
};

// An acceptor that counts and closes what it takes.
class AcceptorTest : public testing::Test {
 protected:
  void Listen(const std::string& address) {
    auto acceptor = Acceptor::Listen(address);
    ASSERT_TRUE(acceptor.ok()) << acceptor.status();
    acceptor_ = *std::move(acceptor);
  }
  void Start() {
    acceptor_->Start([this](int, int fd) {
      close(fd);
      ++taken_;
    });
  }
  int Connect(const std::string& host) {
    return TcpAddress::Resolve(host + ":0", acceptor_->port())->Connect();
  }

  std::unique_ptr<Acceptor> acceptor_;
  std::atomic<int> taken_{0};
};

TEST_F(AcceptorTest, TakesWhatWaitedAndWhatComes) {
  ASSERT_NO_FATAL_FAILURE(Listen("127.0.0.1:0"));
  ASSERT_GT(acceptor_->port(), 0);
  const int early = Connect("127.0.0.1");
  Start();
  EXPECT_TRUE(Soon([&] { return taken_ == 1; }));
  const int late = Connect("127.0.0.1");
  EXPECT_TRUE(Soon([&] { return taken_ == 2; }));
  const std::string address = "127.0.0.1:" + std::to_string(acceptor_->port());
  const auto second = Acceptor::Listen(address);
  EXPECT_TRUE(absl::IsUnavailable(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("taken"));
  acceptor_->Stop();
  acceptor_->Stop();
  EXPECT_TRUE(Acceptor::Listen(address).ok());
  close(early);
  close(late);
}

TEST_F(AcceptorTest, WaitsForADescriptorAndGoesOn) {
  ASSERT_NO_FATAL_FAILURE(Listen("127.0.0.1:0"));
  const int waiting = Connect("127.0.0.1");
  {
    const Exhaustion exhaustion;
    Start();
    EXPECT_TRUE(Soon([&] { return acceptor_->starved(); }));
    std::this_thread::sleep_for(milliseconds(100));
    EXPECT_EQ(taken_, 0);
  }
  EXPECT_TRUE(Soon([&] { return taken_ == 1; }));
  EXPECT_TRUE(Soon([&] { return !acceptor_->starved(); }));
  close(waiting);
}

TEST_F(AcceptorTest, StopsWhileItIsStarved) {
  ASSERT_NO_FATAL_FAILURE(Listen("127.0.0.1:0"));
  const int waiting = Connect("127.0.0.1");
  const Exhaustion exhaustion;
  Start();
  EXPECT_TRUE(Soon([&] { return acceptor_->starved(); }));
  acceptor_->Stop();
  EXPECT_EQ(taken_, 0);
  close(waiting);
}

TEST_F(AcceptorTest, TakesEveryAddressOfAName) {
  ASSERT_NO_FATAL_FAILURE(Listen("localhost:0"));
  Start();
  int expected = 0;
  for (const TcpAddress& address : TcpAddress::ResolveAll("localhost:0", acceptor_->port())) {
    const int fd = address.Connect();
    if (fd < 0) continue;  // the name has an address that this machine has not
    EXPECT_TRUE(Soon([&] { return taken_ == expected + 1; }));
    ++expected;
    close(fd);
  }
  EXPECT_GE(expected, 1);
}

TEST_F(AcceptorTest, RefusesAddressesOfOthers) {
  const auto elsewhere = Acceptor::Listen("192.0.2.1:0");  // for documentation only, RFC 5737
  EXPECT_TRUE(absl::IsUnavailable(elsewhere.status())) << elsewhere.status();
  EXPECT_THAT(std::string(elsewhere.status().message()), HasSubstr("not one of this machine's"));
}

}  // namespace
}  // namespace sluice::server
