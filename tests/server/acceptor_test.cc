#include "server/acceptor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netdb.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

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
  // Listens at 127.0.0.1 and 127.0.0.2.
  void ListenTwice() {
    auto acceptor = Acceptor::ListenAt(
        {*TcpAddress::Resolve("127.0.0.1:0", 0), *TcpAddress::Resolve("127.0.0.2:0", 0)}, "both:0");
    ASSERT_TRUE(acceptor.ok()) << acceptor.status();
    acceptor_ = *std::move(acceptor);
  }
  void Take(int fd) {
    close(fd);
    ++taken_;
  }
  void Start() {
    acceptor_->Start([this](int, int fd) { Take(fd); });
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

TEST_F(AcceptorTest, BindsAnAddressOnceThatANameHasTwice) {
  const TcpAddress four = *TcpAddress::Resolve("127.0.0.1:0", 7);
  const TcpAddress other = *TcpAddress::Resolve("127.0.0.2:0", 7);
  const TcpAddress six = *TcpAddress::Resolve("[::1]:0", 7);
  const std::vector<TcpAddress> listed = {six, four, six, other, four};
  std::vector<addrinfo> list(listed.size());
  for (size_t i = 0; i < list.size(); ++i) {
    list[i].ai_family = listed[i].address.ss_family;
    list[i].ai_addr = const_cast<sockaddr*>(reinterpret_cast<const sockaddr*>(&listed[i].address));
    list[i].ai_addrlen = listed[i].size;
    if (i > 0) list[i - 1].ai_next = &list[i];
  }
  EXPECT_TRUE(TcpAddress::AllOf(list.data()) == (std::vector<TcpAddress>{six, four, other}));
  EXPECT_FALSE(four == *TcpAddress::Resolve("127.0.0.1:0", 8));
}

TEST_F(AcceptorTest, HasOneFreePortForAllAddresses) {
  ASSERT_NO_FATAL_FAILURE(ListenTwice());
  Start();
  const int first = Connect("127.0.0.1");
  EXPECT_TRUE(Soon([&] { return taken_ == 1; }));
  const int second = Connect("127.0.0.2");
  EXPECT_TRUE(Soon([&] { return taken_ == 2; }));
  close(first);
  close(second);
  // No port is free twice at one address: the search for one ends.
  const TcpAddress place = *TcpAddress::Resolve("127.0.0.1:0", 0);
  const auto never = Acceptor::ListenAt({place, place}, "twice:0");
  EXPECT_TRUE(absl::IsUnavailable(never.status())) << never.status();
  EXPECT_THAT(std::string(never.status().message()), HasSubstr("twice:0: the port is taken"));
}

TEST_F(AcceptorTest, TheWildcardOfIpv6TakesIpv4Too) {
  const auto six = Acceptor::Listen("[::1]:0");
  if (!six.ok()) GTEST_SKIP() << "this machine has no IPv6: " << six.status();
  ASSERT_NO_FATAL_FAILURE(Listen("[::]:0"));
  Start();
  const int fd6 = Connect("[::1]");
  EXPECT_TRUE(Soon([&] { return taken_ == 1; }));
  const int fd4 = Connect("127.0.0.1");
  EXPECT_TRUE(Soon([&] { return taken_ == 2; }));
  close(fd6);
  close(fd4);
}

TEST_F(AcceptorTest, TheWildcardOfIpv4LeavesIpv6Alone) {
  if (!Acceptor::Listen("[::1]:0").ok()) GTEST_SKIP() << "this machine has no IPv6";
  ASSERT_NO_FATAL_FAILURE(Listen("0.0.0.0:0"));
  Start();
  const int fd = Connect("127.0.0.1");
  EXPECT_TRUE(Soon([&] { return taken_ == 1; }));
  const auto beside = Acceptor::Listen("[::1]:" + std::to_string(acceptor_->port()));
  EXPECT_TRUE(beside.ok()) << beside.status();
  close(fd);
}

TEST_F(AcceptorTest, NetworkErrorsAreNotStarvation) {
  for (const int error : {ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH, ENONET,
                          ENOPROTOOPT, EOPNOTSUPP, EPERM, EPROTO}) {
    ASSERT_NO_FATAL_FAILURE(Listen("127.0.0.1:0"));
    taken_ = 0;
    std::atomic<int> calls{0};
    std::atomic<bool> starved{false};
    const int waiting = Connect("127.0.0.1");
    acceptor_->Start([this](int, int fd) { Take(fd); },
                     [&](int listener) {
                       if (acceptor_->starved()) starved = true;
                       if (calls++ >= 3) return accept4(listener, nullptr, nullptr, SOCK_NONBLOCK);
                       errno = error;
                       return -1;
                     });
    EXPECT_TRUE(Soon([&] { return taken_ == 1; })) << strerror(error);
    acceptor_->Stop();
    EXPECT_GT(calls, 3);
    EXPECT_FALSE(starved) << strerror(error);
    close(waiting);
  }
}

// The other listener has nothing waiting, too: what it says must not end the starvation.
TEST_F(AcceptorTest, AListenerThatStarvesDoesNotKeepTheOtherFromBeingServed) {
  for (const int error : {EMFILE, ENFILE, ENOBUFS, ENOMEM}) {
    ASSERT_NO_FATAL_FAILURE(ListenTwice());
    taken_ = 0;
    std::atomic<bool> failing{true}, flickered{false};
    std::atomic<int> first{-1}, failures{0};
    const int starving = Connect("127.0.0.1");
    const int served = Connect("127.0.0.2");
    acceptor_->Start([this](int, int fd) { Take(fd); },
                     [&](int listener) {
                       int none = -1;
                       first.compare_exchange_strong(none, listener);
                       if (listener != first || !failing) {
                         return accept4(listener, nullptr, nullptr, SOCK_NONBLOCK);
                       }
                       if (failures++ > 0 && !acceptor_->starved()) flickered = true;
                       errno = error;
                       return -1;
                     });
    EXPECT_TRUE(Soon([&] { return taken_ == 1 && failures > 3; })) << strerror(error);
    EXPECT_TRUE(acceptor_->starved()) << strerror(error);
    EXPECT_FALSE(flickered) << strerror(error);
    failing = false;
    EXPECT_TRUE(Soon([&] { return taken_ == 2 && !acceptor_->starved(); })) << strerror(error);
    acceptor_->Stop();
    close(starving);
    close(served);
  }
}

TEST_F(AcceptorTest, RefusesAddressesOfOthers) {
  const auto elsewhere = Acceptor::Listen("192.0.2.1:0");  // for documentation only, RFC 5737
  EXPECT_TRUE(absl::IsUnavailable(elsewhere.status())) << elsewhere.status();
  EXPECT_THAT(std::string(elsewhere.status().message()), HasSubstr("not one of this machine's"));
}

}  // namespace
}  // namespace sluice::server
