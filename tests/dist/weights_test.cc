// SPDX-License-Identifier: Apache-2.0
// Weights that ranks send each other: the same answers, without the model's file, and whoever is
// lost on the way.
#include <gtest/gtest.h>
#include <signal.h>

#include <fstream>
#include <iostream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "bench/network_lab.h"
#include "parallel/model/checkpoint.h"
#include "tests/dist/cluster.h"
#include "tests/support/tiny_model.h"

namespace annulus::testing {
namespace {

const char* const kQuestion = "Who has the weights?";
constexpr uint32_t kAnswer = 20;

ClusterOptions ranks(int cp, const std::string& policy) {
  ClusterOptions options;
  options.model = tiny_model_file();
  options.cp = cp;
  options.serve_flags = {"--precision", "fp32", "--weights", policy};
  return options;
}

std::vector<int> senders(const v1::GetClusterResponse& cluster) {
  std::vector<int> out;
  for (const v1::Rank& rank : cluster.ranks()) {
    out.push_back(rank.has_weights_from() ? rank.weights_from() : -1);
  }
  return out;
}

bool says(const Process& process, const std::string& text) {
  return process.err().find(text) != std::string::npos;
}

TEST(Weights, SentOnesAnswerAsThoseThatWereRead) {
  std::vector<uint32_t> read;
  {
    Cluster cluster(ranks(3, "read"));
    EXPECT_EQ(senders(wait_serving(cluster.stub(), 0)), (std::vector<int>{-1, -1, -1}));
    read = cluster.answer(kQuestion, kAnswer);
    ASSERT_EQ(read.size(), 2 * kAnswer);
  }
  Cluster cluster(ranks(3, "send"));
  EXPECT_EQ(senders(wait_serving(cluster.stub(), 0)), (std::vector<int>{-1, 0, 1}));
  EXPECT_EQ(cluster.answer(kQuestion, kAnswer), read);
  EXPECT_TRUE(says(*cluster.worker(0), "sent on to rank 1")) << cluster.worker(0)->err();
  EXPECT_TRUE(says(*cluster.worker(1), "sent by rank 0, sent on to rank 2"))
      << cluster.worker(1)->err();
  EXPECT_TRUE(says(cluster.front(), "weights read by 1 ranks, sent to 2, held by 0"))
      << cluster.front().err();
}

// One after the other, until no rank has ever seen the file.
TEST(Weights, AReplacedWorkerNeedsNoFileWhileAPeerHoldsThem) {
  bool with_file = true;
  ClusterOptions options = ranks(2, "auto");
  options.model_flags = [&](int) -> std::vector<std::string> {
    return with_file ? std::vector<std::string>{"--model", tiny_model_file()}
                     : std::vector<std::string>{"--no-model"};
  };
  Cluster cluster(options);
  const std::vector<uint32_t> expected = cluster.answer(kQuestion, kAnswer);
  with_file = false;
  for (const int lost : {1, 0, 1}) {
    cluster.worker(lost)->signal(SIGKILL);
    cluster.worker(lost)->wait(5);
    cluster.start_worker(lost);
    const v1::GetClusterResponse now = cluster.wait_serving();
    EXPECT_EQ(now.ranks(lost).weights_from(), 1 - lost);
    EXPECT_FALSE(now.ranks(1 - lost).has_weights_from());
    EXPECT_EQ(now.ranks(1 - lost).load_s(), 0);
    EXPECT_EQ(cluster.answer(kQuestion, kAnswer), expected);
  }
  // The same workers and another front end.
  cluster.front().signal(SIGKILL);
  cluster.start_front_end();
  EXPECT_EQ(senders(cluster.wait_serving()), (std::vector<int>{-1, -1}));
  EXPECT_EQ(cluster.answer(kQuestion, kAnswer), expected);
}

TEST(Weights, WhereNobodyMaySendTheFrontEndNamesRankAndHost) {
  bool with_file = true;
  ClusterOptions options = ranks(2, "read");
  options.model_flags = [&](int) -> std::vector<std::string> {
    return with_file ? std::vector<std::string>{"--model", tiny_model_file()}
                     : std::vector<std::string>{"--no-model"};
  };
  Cluster cluster(options);
  cluster.worker(1)->signal(SIGKILL);
  cluster.worker(1)->wait(5);
  with_file = false;
  cluster.start_worker(1);
  EXPECT_TRUE(eventually(20, [&] {
    return says(cluster.front(), "has no model file, and --weights read lets nobody send");
  })) << cluster.front().err();
  EXPECT_FALSE(cluster.healthy());
  with_file = true;
  cluster.worker(1)->signal(SIGKILL);
  cluster.worker(1)->wait(5);
  cluster.start_worker(1);
  cluster.wait_serving();
}

TEST(Weights, WithoutAModelThereIsNoneToName) {
  const Outcome both =
      annulus({"worker", "--connect", "127.0.0.1:1", "--no-model", "--model", tiny_model_file()});
  EXPECT_EQ(both.code, 2);
  EXPECT_NE(both.err.find("--model excludes --no-model"), std::string::npos) << both.err;
}

// Equal where fingerprints look, different elsewhere.
std::string changed_model() {
  const std::string path = scratch_directory() + "/changed.gguf";
  const uint64_t fingerprint = parallel::Checkpoint::open(tiny_model_file())->fingerprint();
  std::string bytes;
  {
    std::ifstream in(tiny_model_file(), std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  for (size_t at = bytes.size() * 3 / 4; at < bytes.size(); at += 997) {
    std::string other = bytes;
    other[at] = static_cast<char>(other[at] ^ 1);
    write_file(path, other);
    if (parallel::Checkpoint::open(path)->fingerprint() == fingerprint) return path;
  }
  ADD_FAILURE() << "no byte that the fingerprint does not cover";
  return path;
}

TEST(Weights, RanksThatReadDifferentFilesDoNotServe) {
  const std::string changed = changed_model();
  std::string model = tiny_model_file();
  ClusterOptions options = ranks(2, "read");
  options.model_flags = [&](int rank) -> std::vector<std::string> {
    return {"--model", rank == 1 ? model : tiny_model_file()};
  };
  Cluster cluster(options);
  const std::vector<uint32_t> expected = cluster.answer(kQuestion, kAnswer);
  for (const std::string& next : {changed, tiny_model_file()}) {
    cluster.worker(1)->signal(SIGKILL);
    cluster.worker(1)->wait(5);
    model = next;
    cluster.start_worker(1);
    if (next != changed) continue;
    EXPECT_TRUE(eventually(20, [&] {
      return says(cluster.front(), "ranks 0 and 1 hold different weights of the same slice");
    })) << cluster.front().err();
    EXPECT_FALSE(cluster.healthy());
  }
  cluster.wait_serving();
  EXPECT_EQ(cluster.answer(kQuestion, kAnswer), expected);
}

// Hosts of their own, whose links are so slow that the weights take seconds.
class SlowWeights : public ::testing::Test {
 protected:
  void SetUp() override {
    auto lab = bench::NetworkLab::create(3);
    if (!lab.ok()) GTEST_SKIP() << lab.status();
    lab_ = *std::move(lab);
    const absl::Status entered = bench::enter_namespace(lab_->switch_namespace());
    ASSERT_TRUE(entered.ok()) << entered;
    TinyModel model;
    model.dim = 512;
    model.heads = 8;
    model.kv_heads = 4;
    model.head_dim = 64;
    model.ffn = 2048;
    const std::string path = scratch_directory() + "/slow.gguf";
    write_gguf(model, path);
    ClusterOptions options = ranks(3, "send");
    options.model = path;
    options.control_host = bench::NetworkLab::switch_address();
    options.worker_flags = {"--transports", "tcp,self"};
    options.prefix = [this](int rank) -> std::vector<std::string> {
      return {"ip",   "netns",
              "exec", lab_->host(rank),
              "env",  absl::StrCat("UCX_NET_DEVICES=", lab_->host(rank))};
    };
    cluster_ = std::make_unique<Cluster>(options);
    expected_ = cluster_->answer(kQuestion, kAnswer);
  }
  void TearDown() override {
    if (HasFailure() && cluster_) {
      std::cout << "front end:\n" << cluster_->front().err() << "\n";
      for (int rank = 0; rank < 3; ++rank) {
        std::cout << "rank " << rank << ":\n" << cluster_->worker(rank)->err() << "\n";
      }
    }
    cluster_.reset();
  }
  void kill(int rank) {
    cluster_->worker(rank)->signal(SIGKILL);
    cluster_->worker(rank)->wait(5);
  }
  // Starts these anew, with links of 20 Mbit/s, and waits until weights travel: 32 MB in fp32, 13
  // s.
  void start_slowly(const std::vector<int>& started, const std::string& proof, int proves) {
    for (int host = 0; host < 3; ++host) ASSERT_TRUE(lab_->shape(host, 20).ok());
    for (const int rank : started) cluster_->start_worker(rank);
    ASSERT_TRUE(eventually(20, [&] { return says(*cluster_->worker(proves), proof); }));
    std::this_thread::sleep_for(std::chrono::seconds(2));
    EXPECT_FALSE(cluster_->healthy());
  }
  void serve_fast_again() {
    for (int host = 0; host < 3; ++host) ASSERT_TRUE(lab_->shape(host, 10000).ok());
    cluster_->wait_serving();
    EXPECT_EQ(cluster_->answer(kQuestion, kAnswer), expected_);
  }

  std::unique_ptr<bench::NetworkLab> lab_;
  std::unique_ptr<Cluster> cluster_;
  std::vector<uint32_t> expected_;
};

TEST_F(SlowWeights, AKilledSenderEndsTheEpochAndTheNextOneHasAnother) {
  kill(1);
  kill(2);
  start_slowly({1, 2}, "rank 1 sends the weights", 2);
  const pid_t survivors[] = {cluster_->worker(1)->pid(), cluster_->worker(2)->pid()};
  kill(0);
  EXPECT_TRUE(eventually(10, [&] {
    return says(cluster_->front(), "did not start: rank 0 (pid ");
  })) << cluster_->front().err();
  cluster_->start_worker(0);
  serve_fast_again();
  const v1::GetClusterResponse now = wait_serving(cluster_->stub(), 0);
  for (int rank = 1; rank < 3; ++rank) EXPECT_EQ(now.ranks(rank).pid(), survivors[rank - 1]);
}

TEST_F(SlowWeights, AKilledReceiverCostsItsPeersNothingThatTheyHad) {
  kill(0);
  kill(2);
  start_slowly({0, 2}, "rank 0 sends the weights", 2);
  kill(2);
  EXPECT_TRUE(eventually(10, [&] {
    return says(cluster_->front(), "did not start: rank 2 (pid ");
  })) << cluster_->front().err();
  cluster_->start_worker(2);
  serve_fast_again();
  EXPECT_TRUE(says(*cluster_->worker(1), "goes on with the weights that are here, sent on"))
      << cluster_->worker(1)->err();
}

}  // namespace
}  // namespace annulus::testing
