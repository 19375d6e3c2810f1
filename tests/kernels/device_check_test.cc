// What is said of a CUDA device that cannot be used: one line each, from faked answers of the
// driver, so that every machine tests it.

#include "kernels/cuda/device_check.h"

#include <string>
#include <utility>

#include "gtest/gtest.h"

namespace sluice::kernels::cuda {
namespace {

using Driver = DeviceQuery::Driver;

DeviceQuery Sound() {
  DeviceQuery query;
  query.driver_version = query.runtime_version = 13000;
  query.num_devices = 2;
  query.name = "NVIDIA H200";
  query.major = 9;
  query.built_for = "90a";
  return query;
}

TEST(DeviceCheckTest, PassesASoundDevice) {
  EXPECT_TRUE(CheckDevice(0, Sound()).ok());
  EXPECT_TRUE(CheckDevice(1, Sound()).ok());
}

TEST(DeviceCheckTest, SaysInOneLineWhatIsWrong) {
  const auto with = [](auto change) {
    DeviceQuery query = Sound();
    change(query);
    return query;
  };
  const std::pair<DeviceQuery, std::string> cases[] = {
      {with([](DeviceQuery& q) { q.driver = Driver::kNone; }),
       "cuda:1: no NVIDIA driver is loaded"},
      {with([](DeviceQuery& q) {
         q.driver = Driver::kTooOld;
         q.driver_version = 12040;
       }),
       "cuda:1: the NVIDIA driver is too old: expected one for CUDA 13.0 or newer, got one for "
       "CUDA "
       "12.4"},
      {with([](DeviceQuery& q) { q.driver = Driver::kMismatch; }),
       "cuda:1: the NVIDIA driver's library and kernel module are of different versions: restart "
       "the machine, or load the module anew"},
      {with([](DeviceQuery& q) { q.driver = Driver::kNoDevice; }),
       "cuda:1: the NVIDIA driver finds no device"},
      {with([](DeviceQuery& q) {
         q.driver = Driver::kOtherError;
         q.error = "CUDA error 999 (cudaErrorUnknown): unknown error";
       }),
       "cuda:1: the NVIDIA driver does not work: CUDA error 999 (cudaErrorUnknown): unknown error"},
      {with([](DeviceQuery& q) { q.num_devices = 1; }),
       "cuda:1: expected a device below 1, the number found"},
      {with([](DeviceQuery& q) {
         q.name = "Tesla V100";
         q.major = 7;
       }),
       "cuda:1: Tesla V100: expected compute capability 8.0 or more, got 7.0"},
      {with([](DeviceQuery& q) {
         q.name = "NVIDIA L4";
         q.major = 8;
         q.minor = 9;
         q.has_kernels = false;
       }),
       "cuda:1: NVIDIA L4: this program has no kernels for compute capability 8.9, only for 90a"},
  };
  for (const auto& [query, line] : cases) {
    const absl::Status status = CheckDevice(1, query);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(std::string(status.message()), line);
  }
  EXPECT_EQ(CheckDevice(-1, Sound()).message(),
            "cuda:-1: expected a device below 2, the number found");
}

}  // namespace
}  // namespace sluice::kernels::cuda
