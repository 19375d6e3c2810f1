#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "sluice/v1/admin.grpc.pb.h"
#include "tests/server/test_server.h"

namespace sluice::server {
namespace {

constexpr char kToken[] = "admin-token";

// A server with an operators' port, one administrator and no model yet.
class AdminTest : public testing::Test {
 protected:
  AdminTest() : file_(testing::TempDir() + "/auth-" + std::to_string(getpid()) + ".json") {
    std::ofstream(file_) << R"({"tokens": [{"sha256": ")" + Sha256(kToken) +
                                R"(", "tenant": "ops", "scopes": ["admin"]}]})";
    TestServer::Options options;
    options.serve = false;
    options.num_engines = 2;
    options.server.ops_listen = "127.0.0.1:0";
    options.server.auth_file = file_;
    options.server.build = "1.2.3+abc";
    server_ = std::make_unique<TestServer>(options);
    stub_ = v1::Admin::NewStub(
        grpc::CreateChannel("127.0.0.1:" + std::to_string(server_->server().ops_port()),
                            grpc::InsecureChannelCredentials()));
  }
  ~AdminTest() override { std::filesystem::remove(file_); }

  v1::Status GetStatus() {
    grpc::ClientContext context;
    context.AddMetadata("authorization", std::string("Bearer ") + kToken);
    v1::Status status;
    const grpc::Status answer = stub_->GetStatus(&context, v1::GetStatusRequest(), &status);
    EXPECT_TRUE(answer.ok()) << answer.error_message();
    return status;
  }

  const std::string file_;
  std::unique_ptr<TestServer> server_;
  std::unique_ptr<v1::Admin::Stub> stub_;
};

TEST_F(AdminTest, StatusFollowsTheServer) {
  const v1::Status loading = GetStatus();
  EXPECT_EQ(loading.build(), "1.2.3+abc");
  EXPECT_EQ(loading.model(), "");
  EXPECT_EQ(loading.load().engines_size(), 0);
  EXPECT_FALSE(loading.load().draining());
  EXPECT_GE(loading.uptime(), 0);
  EXPECT_LT(loading.uptime(), 60);
  EXPECT_GT(loading.resident_bytes(), 1u << 20);

  server_->Serve();
  const v1::Status serving = GetStatus();
  EXPECT_EQ(serving.model(), "fake");
  EXPECT_GT(serving.uptime(), loading.uptime());
  ASSERT_EQ(serving.load().engines_size(), 2);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(serving.load().engines(i).engine(), i);
    EXPECT_TRUE(serving.load().engines(i).up());
    EXPECT_GT(serving.load().engines(i).kv_pages_total(), 0);
  }

  server_->server().BeginDrain();
  EXPECT_TRUE(GetStatus().load().draining());
}

TEST_F(AdminTest, StatusCountsConnectionsOfTheService) {
  const auto count = [this] { return GetStatus().connections(); };
  const int64_t before = count();
  const auto channel = server_->NewChannel();
  ASSERT_TRUE(
      channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(10)));
  EXPECT_TRUE(Eventually([&] { return count() == before + 1; }));
}

TEST_F(AdminTest, StatusIsForAdministrators) {
  grpc::ClientContext context;
  v1::Status status;
  EXPECT_EQ(stub_->GetStatus(&context, v1::GetStatusRequest(), &status).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
}

}  // namespace
}  // namespace sluice::server
