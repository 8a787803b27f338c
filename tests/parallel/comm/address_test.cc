// SPDX-License-Identifier: Apache-2.0
// Addresses come over the network: no bytes may crash a worker, and a stale one is named as such.
#include "parallel/comm_address.h"

#include <gtest/gtest.h>

#include "parallel/comm_ucx.h"

namespace annulus::parallel {
namespace {

const AddressStamp kStamp{.topology = {.tp = 2, .cp = 2}, .world_rank = 3, .epoch = 9};

TEST(Address, OpensWhatWasSealed) {
  const std::string bytes("\0abc\xff", 5);
  const auto opened = open_address(kStamp, seal_address(kStamp, {bytes, 77}));
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->bytes, bytes);
  EXPECT_EQ(opened->host, 77u);
  EXPECT_EQ(this_host(), this_host());
}

TEST(Address, RefusesEveryDamage) {
  const std::string sealed = seal_address(kStamp, {"some address bytes", 1});
  for (size_t length = 0; length < sealed.size(); ++length)
    EXPECT_EQ(open_address(kStamp, sealed.substr(0, length)).status().code(),
              absl::StatusCode::kInvalidArgument);
  for (size_t i = 0; i < sealed.size(); ++i) {
    std::string damaged = sealed;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    EXPECT_EQ(open_address(kStamp, damaged).status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(open_address(kStamp, sealed + "x").ok());
}

TEST(Address, NamesAnotherEpochRankOrLayout) {
  const std::string sealed = seal_address(kStamp, {"x", 1});
  for (const auto& change :
       {+[](AddressStamp& s) { ++s.epoch; }, +[](AddressStamp& s) { --s.world_rank; },
        +[](AddressStamp& s) { s.topology = {.tp = 1, .cp = 4}; }}) {
    AddressStamp expected = kStamp;
    change(expected);
    const auto status = open_address(expected, sealed).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(status.message().find("epoch 9"), std::string::npos) << status;
  }
}

TEST(Address, NamesAnotherDevice) {
  AddressStamp gpu = kStamp;
  gpu.transport = Transport::kNccl;
  const auto status = open_address(kStamp, seal_address(gpu, {"x", 1})).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("--device cuda"), std::string::npos) << status;
}

TEST(UcxWorld, ConnectRefusesBadAddresses) {
  const UcxOptions options{.transports = kLocalTransports, .net_devices = {}};
  auto world = UcxWorld::create({.tp = 1, .cp = 2}, 0, 4, options);
  ASSERT_TRUE(world.ok()) << world.status();
  auto stale = UcxWorld::create({.tp = 1, .cp = 2}, 1, 3, options);
  ASSERT_TRUE(stale.ok()) << stale.status();
  const std::string own = (*world)->address();
  EXPECT_EQ((*world)->connect(std::vector{own}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*world)->connect(std::vector{own, std::string("noise")}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*world)->connect(std::vector{own, (*stale)->address()}).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(UcxWorld, RefusesUnknownTransports) {
  const auto world =
      UcxWorld::create({.tp = 1, .cp = 1}, 0, 1, {.transports = "pigeon", .net_devices = {}});
  EXPECT_EQ(world.status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace annulus::parallel
