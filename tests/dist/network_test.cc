// SPDX-License-Identifier: Apache-2.0
// Two workers on hosts of their own (network namespaces), over TCP: a link that is cut and comes
// back, and one that loses packets.
#include <gtest/gtest.h>

#include <atomic>
#include <iostream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "bench/network_lab.h"
#include "tests/dist/cluster.h"

namespace annulus::testing {
namespace {

const char* const kQuestion = "A message between two hosts";
constexpr uint32_t kAnswer = 40;

class Network : public ::testing::Test {
 protected:
  // Before any other thread: the front end and this process's client live on the switch.
  void SetUp() override {
    auto lab = bench::NetworkLab::create(2);
    if (!lab.ok()) GTEST_SKIP() << lab.status();
    lab_ = *std::move(lab);
    const absl::Status entered = bench::enter_namespace(lab_->switch_namespace());
    ASSERT_TRUE(entered.ok()) << entered;
    ClusterOptions options;
    options.model = tiny_model_file();
    options.serve_flags = {"--precision", "fp32"};
    options.control_host = bench::NetworkLab::switch_address();
    options.worker_flags = {"--transports", "tcp,self"};
    options.prefix = [this](int rank) -> std::vector<std::string> {
      return {"ip",   "netns",
              "exec", lab_->host(rank),
              "env",  absl::StrCat("UCX_NET_DEVICES=", lab_->host(rank))};
    };
    cluster_ = std::make_unique<Cluster>(options);
    expected_ = cluster_->answer(kQuestion, kAnswer);
    ASSERT_EQ(expected_.size(), 2 * kAnswer);
  }
  void TearDown() override {
    if (HasFailure() && cluster_) {
      std::cout << "front end:\n" << cluster_->front().err() << "\n";
      for (int rank = 0; rank < 2; ++rank) {
        std::cout << "rank " << rank << ":\n" << cluster_->worker(rank)->err() << "\n";
      }
    }
    cluster_.reset();
  }

  std::unique_ptr<bench::NetworkLab> lab_;
  std::unique_ptr<Cluster> cluster_;
  std::vector<uint32_t> expected_;
};

TEST_F(Network, ACutLinkEndsTheEpochAndTheNextServesExactly) {
  for (const int cut_s : {4, 15}) {  // shorter and longer than a worker waits for its front end
    SCOPED_TRACE(absl::StrCat("cut for ", cut_s, " s"));
    const pid_t pids[] = {cluster_->worker(0)->pid(), cluster_->worker(1)->pid()};
    Stream running(cluster_->stub(), ask(kQuestion, 7000));
    running.wait_tokens(3);
    const Clock::time_point cut = Clock::now();
    ASSERT_TRUE(lab_->cut(1).ok());
    const grpc::Status status = running.status(10);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
    EXPECT_NE(status.error_message().find(absl::StrCat("rank 1 (pid ", pids[1])), std::string::npos)
        << status.error_message();
    EXPECT_LT(std::chrono::duration<double>(running.ended() - cut).count(), 5);
    EXPECT_TRUE(eventually(5, [&] { return !cluster_->healthy(); }));
    std::this_thread::sleep_until(cut + std::chrono::seconds(cut_s));
    ASSERT_TRUE(lab_->mend(1).ok());
    const v1::GetClusterResponse now = cluster_->wait_serving(90);
    for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(now.ranks(rank).pid(), pids[rank]);
    EXPECT_EQ(cluster_->answer(kQuestion, kAnswer), expected_);
  }
}

// TCP repairs what is lost. Where it takes so long that a heartbeat is 3 s late, the epoch ends,
// and the answer says so. Either way every stream ends, and afterwards all is as before.
TEST_F(Network, ALinkThatLosesPacketsDelaysOrEndsTheEpochAndNothingElse) {
  const pid_t pids[] = {cluster_->worker(0)->pid(), cluster_->worker(1)->pid()};
  const std::vector<uint32_t> greedy(expected_.begin(), expected_.begin() + kAnswer);
  int served = 0, lost = 0, refused = 0;
  const auto ask_on = [&](const std::atomic<bool>& over) {
    while (!over) {
      Stream stream(cluster_->stub(), ask(kQuestion, kAnswer));
      const grpc::Status status = stream.status(90);
      const std::vector<uint32_t> got = stream.ids();
      EXPECT_TRUE(std::equal(got.begin(), got.end(), greedy.begin())) << "wrong tokens";
      if (status.ok()) {
        ++served;
        EXPECT_EQ(got, greedy);
        continue;
      }
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
      EXPECT_NE(status.error_message().find("rank"), std::string::npos) << status.error_message();
      ++(status.error_message().find("not ready") == std::string::npos ? lost : refused);
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
    }
  };
  std::atomic<bool> over = false;
  std::thread client([&] { ask_on(over); });
  EXPECT_TRUE(lab_->lose(1, 25).ok());
  std::this_thread::sleep_for(std::chrono::seconds(10));
  EXPECT_TRUE(lab_->lose(1, 0).ok());
  over = true;
  client.join();
  std::cout << "25 % of the packets lost for 10 s: " << served << " answers served, " << lost
            << " cut, " << refused << " refused meanwhile" << std::endl;
  EXPECT_TRUE(eventually(90, [&] { return cluster_->healthy(); }));
  EXPECT_EQ(cluster_->answer(kQuestion, kAnswer), expected_);
  const v1::GetClusterResponse now = wait_serving(cluster_->stub(), 0);
  for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(now.ranks(rank).pid(), pids[rank]);
}

}  // namespace
}  // namespace annulus::testing
