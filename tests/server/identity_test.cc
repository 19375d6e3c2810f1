#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "server/authenticator.h"
#include "server/connection_table.h"
#include "server/reloader.h"
#include "server/tcp_address.h"
#include "tests/server/test_server.h"

namespace sluice::server {
namespace {

using Verdict = Authenticator::Verdict;
using Purpose = Authenticator::Purpose;

class AuthenticatorTest : public testing::Test {
 protected:
  AuthenticatorTest() {
    auto table = CredentialTable::Parse(
        R"({"tokens": [{"sha256": ")" + Sha256("one") +
        R"(", "tenant": "acme", "scopes": ["inference"]}, {"sha256": ")" + Sha256("two") +
        R"(", "tenant": "ops", "scopes": ["admin"]}],
           "certificates": [{"san": "spiffe://a", "tenant": "mesh", "scopes": ["inference"]}]})");
    EXPECT_TRUE(table.ok()) << table.status();
    authenticator_.Replace(*std::move(table));
  }
  Verdict Judge(const Claims& claims, Purpose purpose = Purpose::kInference) {
    identity_ = {};
    return authenticator_.Judge(claims, purpose, &identity_);
  }
  static Claims Header(const std::string& value) { return {.authorization = {value}}; }

  Authenticator authenticator_;
  Identity identity_;
};

TEST_F(AuthenticatorTest, KnowsTokensByTheirHashes) {
  EXPECT_EQ(Judge(Header("Bearer one")), Verdict::kAllowed);
  EXPECT_EQ(identity_.tenant, "acme");
  EXPECT_EQ(Judge(Header("bEARER one")), Verdict::kAllowed);
  for (const char* bad : {"", "Bearer", "Bearer ", "Bearer  one", "Bearer one ", "Bearer on",
                          "Bearer onee", "Basic one", "one", "Bearer \xff"}) {
    EXPECT_EQ(Judge(Header(bad)), Verdict::kUnauthenticated) << bad;
  }
  // The hash itself opens nothing.
  EXPECT_EQ(Judge(Header("Bearer " + Sha256("one"))), Verdict::kUnauthenticated);
  EXPECT_EQ(Judge({.authorization = {"Bearer one", "Bearer one"}}), Verdict::kUnauthenticated);
  EXPECT_EQ(Judge({}), Verdict::kUnauthenticated);
}

TEST_F(AuthenticatorTest, ComparesHashesToTheLastByte) {
  // Tokens whose hashes begin, or end, as that of a right one does.
  const std::string right = Sha256("one");
  int begins = 0, ends = 0;
  for (int i = 0; begins == 0 || ends == 0; ++i) {
    const std::string token = "guess-" + std::to_string(i);
    const std::string hash = Sha256(token);
    const bool begin = hash.compare(0, 4, right, 0, 4) == 0;
    const bool end = hash.compare(60, 4, right, 60, 4) == 0;
    if (!begin && !end) continue;
    begins += begin;
    ends += end;
    EXPECT_EQ(Judge(Header("Bearer " + token)), Verdict::kUnauthenticated) << token;
  }
}

TEST_F(AuthenticatorTest, ScopesSayWhatATokenOpens) {
  EXPECT_EQ(Judge(Header("Bearer one"), Purpose::kAdmin), Verdict::kDenied);
  EXPECT_EQ(Judge(Header("Bearer two"), Purpose::kAdmin), Verdict::kAllowed);
  EXPECT_EQ(Judge(Header("Bearer two"), Purpose::kInference), Verdict::kDenied);
  EXPECT_EQ(Judge(Header("Bearer one"), Purpose::kHealth), Verdict::kAllowed);
  EXPECT_EQ(Judge(Header("Bearer two"), Purpose::kOther), Verdict::kAllowed);
  EXPECT_EQ(authenticator_.Read().denied, 2u);
}

TEST_F(AuthenticatorTest, CertificatesAreKnownByTheirNames) {
  EXPECT_EQ(Judge({.has_certificate = true, .names = {"x", "spiffe://a"}}), Verdict::kAllowed);
  EXPECT_EQ(identity_.tenant, "mesh");
  EXPECT_EQ(Judge({.has_certificate = true, .names = {"x"}}), Verdict::kDenied);
  // Names that no certificate vouches for mean nothing.
  EXPECT_EQ(Judge({.has_certificate = false, .names = {"spiffe://a"}}), Verdict::kUnauthenticated);
  EXPECT_EQ(
      Judge({.authorization = {"Bearer x"}, .has_certificate = true, .names = {"spiffe://a"}}),
      Verdict::kUnauthenticated);
}

TEST(AuthenticatorWithoutTableTest, EverybodyMayCallAndNobodyAdminister) {
  Authenticator authenticator;
  Identity identity;
  EXPECT_EQ(authenticator.Judge({}, Purpose::kInference, &identity), Verdict::kAllowed);
  EXPECT_EQ(identity.tenant, kDefaultTenant);
  EXPECT_EQ(authenticator.Judge({}, Purpose::kAdmin, &identity), Verdict::kDenied);
}

TEST(AuthenticatorPathTest, PurposesFollowServices) {
  EXPECT_EQ(Authenticator::PurposeOf("/sluice.v1.Inference/Generate"), Purpose::kInference);
  EXPECT_EQ(Authenticator::PurposeOf("/sluice.v1.Admin/Drain"), Purpose::kAdmin);
  EXPECT_EQ(Authenticator::PurposeOf("/grpc.channelz.v1.Channelz/GetServers"), Purpose::kAdmin);
  EXPECT_EQ(Authenticator::PurposeOf("/grpc.health.v1.Health/Check"), Purpose::kHealth);
  EXPECT_EQ(Authenticator::PurposeOf("/grpc.health.v1.HealthX/Check"), Purpose::kOther);
  EXPECT_EQ(Authenticator::PurposeOf(""), Purpose::kOther);
}

class ReloaderTest : public testing::Test {
 protected:
  ReloaderTest() : folder_(testing::TempDir() + "/reloader-" + std::to_string(getpid())) {
    std::filesystem::create_directories(folder_);
  }
  ~ReloaderTest() override { std::filesystem::remove_all(folder_); }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ + "/" + name) << text;
  }
  absl::Status Add() {
    return reloader_.Add({"pair",
                          {folder_ + "/a", folder_ + "/b"},
                          [this](const std::vector<std::string>& contents) {
                            ++tries_;
                            if (contents[0] != contents[1]) {
                              return engine::InvalidArgument("they differ");
                            }
                            applied_ = contents[0];
                            return absl::OkStatus();
                          }});
  }

  const std::string folder_;
  Reloader reloader_;
  int tries_ = 0;
  std::string applied_;
};

TEST_F(ReloaderTest, TakesWhatIsGoodAndKeepsItOtherwise) {
  EXPECT_FALSE(Add().ok());  // not there
  Write("a", "1");
  Write("b", "2");
  EXPECT_EQ(engine::Message(Add()), "they differ");
  Write("b", "1");
  ASSERT_TRUE(Add().ok());
  EXPECT_EQ(applied_, "1");
  tries_ = 0;
  EXPECT_TRUE(reloader_.Check()["pair"].ok());
  EXPECT_EQ(tries_, 0);  // nothing has changed
  Write("a", "2");
  EXPECT_FALSE(reloader_.Check()["pair"].ok());
  EXPECT_FALSE(reloader_.Check()["pair"].ok());
  EXPECT_EQ(tries_, 1);  // the same mistake is looked at once
  EXPECT_EQ(applied_, "1");
  Write("b", "2");
  EXPECT_TRUE(reloader_.Check()["pair"].ok());
  EXPECT_EQ(applied_, "2");
  std::filesystem::remove(folder_ + "/a");
  EXPECT_FALSE(reloader_.Check()["pair"].ok());
  EXPECT_FALSE(reloader_.Check()["pair"].ok());
  EXPECT_EQ(applied_, "2");
  EXPECT_EQ(reloader_.Read()["pair"].applied, 2u);
  EXPECT_EQ(reloader_.Read()["pair"].failed, 2u);
}

TEST_F(ReloaderTest, NeverWaitsForAFile) {
  std::filesystem::create_directory(folder_ + "/a");
  Write("b", "");
  EXPECT_FALSE(Add().ok());
  std::filesystem::remove(folder_ + "/a");
  ASSERT_EQ(mkfifo((folder_ + "/a").c_str(), 0600), 0);
  EXPECT_TRUE(Add().ok());  // as empty as the other
  Write("b", std::string(5 << 20, 'x'));
  EXPECT_THAT(engine::Message(reloader_.Check()["pair"]), testing::HasSubstr("larger than"));
}

TEST(ConnectionTableTest, CountsWhatIsOpen) {
  ConnectionTable table(/*max_all=*/3, /*max_of_address=*/3);
  int pairs[4][2];
  for (auto& pair : pairs) ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(table.Add(pairs[i][0]));
  EXPECT_FALSE(table.Add(pairs[3][0]));
  EXPECT_TRUE(table.full());
  EXPECT_EQ(table.refused(), 1u);
  // The descriptor is closed and its number given to something else at once.
  close(pairs[1][0]);
  ASSERT_EQ(dup2(pairs[3][1], pairs[1][0]), pairs[1][0]);
  EXPECT_FALSE(table.full());
  EXPECT_EQ(table.size(), 2);
  EXPECT_TRUE(table.Add(pairs[3][0]));
  EXPECT_EQ(table.size(), 3);
  for (auto& pair : pairs) {
    close(pair[0]);
    close(pair[1]);
  }
  EXPECT_EQ(table.size(), 0);
  EXPECT_FALSE(table.Add(-1));
}

// A connection over the loopback that a table counts.
class CutTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto place = TcpAddress::Resolve(std::string(GetParam()) + ":0", 0);
    ASSERT_TRUE(place.has_value());
    const int listener = socket(place->address.ss_family, SOCK_STREAM, 0);
    auto* address = reinterpret_cast<sockaddr*>(&place->address);
    ASSERT_EQ(bind(listener, address, place->size), 0);
    ASSERT_EQ(listen(listener, 1), 0);
    ASSERT_EQ(getsockname(listener, address, &place->size), 0);
    client_ = socket(place->address.ss_family, SOCK_STREAM, 0);
    ASSERT_EQ(connect(client_, address, place->size), 0);
    server_ = accept(listener, nullptr, nullptr);
    close(listener);
    ASSERT_GE(server_, 0);
    TcpAddress own;
    own.size = sizeof own.address;
    ASSERT_EQ(getsockname(client_, reinterpret_cast<sockaddr*>(&own.address), &own.size), 0);
    const bool six = own.address.ss_family == AF_INET6;
    peer_ = (six ? "ipv6:%5B::1%5D:" : "ipv4:127.0.0.1:") + std::to_string(own.port());
    ASSERT_TRUE(table_.Add(server_));
  }
  void TearDown() override {
    close(client_);
    close(server_);
  }

  ConnectionTable table_{8, 8};
  int client_ = -1, server_ = -1;
  std::string peer_;
};

TEST_P(CutTest, EndsBothWaysAndLeavesNothingToRead) {
  const std::string much(100'000, 'x');
  ASSERT_EQ(send(client_, much.data(), much.size(), 0), static_cast<ssize_t>(much.size()));
  EXPECT_FALSE(table_.Cut(peer_ + "0", ConnectionTable::Fault::kHeld).has_value());
  EXPECT_EQ(table_.Cut(peer_, ConnectionTable::Fault::kHeld), "");  // this machine's own
  char byte;
  EXPECT_LE(recv(server_, &byte, 1, MSG_DONTWAIT), 0);
  EXPECT_LE(recv(client_, &byte, 1, 0), 0);
  EXPECT_EQ(table_.cut(ConnectionTable::Fault::kHeld), 1u);
  EXPECT_EQ(table_.cut(ConnectionTable::Fault::kBrokenOff), 0u);
  EXPECT_EQ(fcntl(server_, F_GETFD), 0);  // still its owner's to close
}

TEST_P(CutTest, SparesWhatHasItsDescriptorNow) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  ASSERT_EQ(dup2(pair[0], server_), server_);
  ASSERT_EQ(send(pair[1], "x", 1, 0), 1);
  EXPECT_FALSE(table_.Cut(peer_, ConnectionTable::Fault::kHeld).has_value());
  char byte;
  EXPECT_EQ(recv(server_, &byte, 1, MSG_DONTWAIT), 1);
  EXPECT_EQ(table_.cut(ConnectionTable::Fault::kHeld), 0u);
  close(pair[0]);
  close(pair[1]);
}

INSTANTIATE_TEST_SUITE_P(Loopback, CutTest, testing::Values("127.0.0.1", "[::1]"),
                         [](const auto& info) { return info.param[0] == '[' ? "Six" : "Four"; });

}  // namespace
}  // namespace sluice::server
