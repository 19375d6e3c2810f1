#include "server/listener_probe.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <unistd.h>

#include <thread>

namespace sluice::server {
namespace {

using std::chrono::milliseconds;

// A listener that greets only when told to: the kernel connects in any case.
class Greeter {
 public:
  Greeter() : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(fd_, 16), 0);
    EXPECT_EQ(getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
  }
  ~Greeter() { close(fd_); }
  // Takes a connection that has been given up, and says nothing.
  void Forget() { close(accept(fd_, nullptr, nullptr)); }
  void Greet() {
    const int peer = accept(fd_, nullptr, nullptr);
    EXPECT_EQ(write(peer, "x", 1), 1);
    close(peer);
  }
  int port() const { return port_; }

 private:
  const int fd_;
  int port_ = 0;
};

ListenerProbe::Options Quick() {
  ListenerProbe::Options options;
  options.interval = milliseconds(0);
  options.patience = milliseconds(50);
  return options;
}

TEST(ListenerProbeTest, TellsOfAListenerThatGreetsNoMore) {
  Greeter greeter;
  ListenerProbe probe(TcpAddress::Resolve("127.0.0.1:1", greeter.port()), Quick());
  engine::Time now = std::chrono::steady_clock::now();
  for (int i = 0; i < 10; ++i) {
    EXPECT_FALSE(probe.Tick(now));  // connects
    greeter.Greet();
    std::this_thread::sleep_for(milliseconds(20));
    now += milliseconds(100);  // late, but what has come counts
    EXPECT_FALSE(probe.Tick(now));
  }
  for (int failure = 1; failure <= 3; ++failure) {
    EXPECT_FALSE(probe.Tick(now));  // connects; nobody greets
    now += milliseconds(10);
    EXPECT_FALSE(probe.Tick(now));  // not yet
    now += milliseconds(100);
    EXPECT_EQ(probe.Tick(now), failure == 3);
  }
}

TEST(ListenerProbeTest, AGreetingMakesUpForTheFailuresBeforeIt) {
  Greeter greeter;
  ListenerProbe probe(TcpAddress::Resolve("127.0.0.1:1", greeter.port()), Quick());
  engine::Time now = std::chrono::steady_clock::now();
  const auto greet = [&] {
    EXPECT_FALSE(probe.Tick(now));  // connects
    greeter.Greet();
    std::this_thread::sleep_for(milliseconds(20));
    return probe.Tick(now);
  };
  EXPECT_FALSE(greet());
  for (int round = 0; round < 3; ++round) {
    for (int failure = 0; failure < 2; ++failure) {
      EXPECT_FALSE(probe.Tick(now));
      EXPECT_FALSE(probe.Tick(now += milliseconds(100)));
      greeter.Forget();
    }
    EXPECT_FALSE(greet());
  }
}

TEST(ListenerProbeTest, SaysNothingOfWhatNeverAnswered) {
  Greeter greeter;
  ListenerProbe probe(TcpAddress::Resolve("127.0.0.1:1", greeter.port()), Quick());
  engine::Time now = std::chrono::steady_clock::now();
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(probe.Tick(now += milliseconds(100)));
  ListenerProbe nowhere(std::nullopt, Quick());
  EXPECT_FALSE(nowhere.Tick(now));
}

TEST(ListenerProbeTest, ResolvesBracketsAndRefusesNonsense) {
  const auto address = TcpAddress::Resolve("[::1]:0", 80);
  ASSERT_TRUE(address.has_value());
  EXPECT_EQ(address->address.ss_family, AF_INET6);
  EXPECT_FALSE(TcpAddress::Resolve("no such host.invalid:0", 80).has_value());
}

}  // namespace
}  // namespace sluice::server
