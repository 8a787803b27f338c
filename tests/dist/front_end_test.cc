// SPDX-License-Identifier: Apache-2.0
// A front end that is killed, paused or told to end, and workers that are merely slow.
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "bench/server_process.h"
#include "tests/dist/cluster.h"
#include "tests/support/tiny_model.h"

namespace annulus::testing {
namespace {

const char* const kQuestion = "What comes after the front end";

int count(const std::string& text, const std::string& what) {
  int n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

int64_t address_space_bytes(pid_t pid) {
  int64_t pages = 0;
  std::ifstream("/proc/" + std::to_string(pid) + "/statm") >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

ClusterOptions two_ranks(const std::string& orphan_timeout = "60") {
  ClusterOptions options;
  options.model = tiny_model_file();
  options.serve_flags = {"--precision", "fp32"};
  options.worker_flags = {"--orphan-timeout", orphan_timeout};
  return options;
}

TEST(LostFrontEnd, WorkersKeepTheirWeightsForTheNextOneAndServeItExactly) {
  Cluster cluster(two_ranks());
  const std::vector<uint32_t> expected = cluster.answer(kQuestion, 20);
  const pid_t pids[] = {cluster.worker(0)->pid(), cluster.worker(1)->pid()};
  for (int round = 0; round < 3; ++round) {
    Stream running(cluster.stub(), ask(kQuestion, 3000));
    running.wait_tokens(3);
    cluster.front().signal(SIGKILL);
    EXPECT_EQ(running.status(10).error_code(), grpc::StatusCode::UNAVAILABLE);
    cluster.start_front_end();
    const v1::GetClusterResponse now = cluster.wait_serving();
    for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(now.ranks(rank).pid(), pids[rank]);
    EXPECT_EQ(cluster.answer(kQuestion, 20), expected);
  }
  for (int rank = 0; rank < 2; ++rank) {
    const std::string log = cluster.worker(rank)->err();
    EXPECT_EQ(count(log, "of weights loaded in"), 1) << log;
    EXPECT_EQ(count(log, "goes on with the weights that are here"), 3) << log;
  }
}

TEST(LostFrontEnd, OrphansEndByThemselves) {
  Cluster cluster(two_ranks("2"));
  cluster.front().signal(SIGKILL);
  const Clock::time_point killed = Clock::now();
  for (int rank = 0; rank < 2; ++rank) {
    const Outcome outcome = cluster.worker(rank)->wait(30);
    EXPECT_EQ(outcome.code, 1) << outcome.err;
    EXPECT_NE(outcome.err.find("no front end at 127.0.0.1:"), std::string::npos) << outcome.err;
  }
  EXPECT_GE(seconds_since(killed), 2);
}

TEST(PausedFrontEnd, TakesItsOwnSilenceForNobodyElses) {
  auto server = bench::ServerProcess::start(
      {"--model", tiny_model_file(), "--cp", "2", "--threads", "1", "--precision", "fp32"});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto stub = stub_for(server->address());
  const v1::GetClusterResponse before = wait_serving(*stub, 0);
  Stream running(*stub, ask(kQuestion, 3000));
  running.wait_tokens(3);
  kill(server->pid(), SIGSTOP);
  std::this_thread::sleep_for(std::chrono::seconds(5));
  kill(server->pid(), SIGCONT);
  const grpc::Status status = running.status(120);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(running.ids().size(), 3000u);
  const v1::GetClusterResponse after = wait_serving(*stub, 0);
  EXPECT_EQ(after.epoch(), before.epoch()) << server->log();
  for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(after.ranks(rank).pid(), before.ranks(rank).pid());
}

class Drain : public ::testing::Test {
 protected:
  void start(const std::string& drain_timeout) {
    auto started =
        bench::ServerProcess::start({"--model", tiny_model_file(), "--cp", "2", "--threads", "1",
                                     "--drain-timeout", drain_timeout});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = std::make_unique<bench::ServerProcess>(*std::move(started));
    stub_ = stub_for(server_->address());
  }
  std::unique_ptr<bench::ServerProcess> server_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

TEST_F(Drain, RunningStreamsFinishNewOnesAreRefused) {
  start("60");
  Stream running(*stub_, ask(kQuestion, 2000));
  running.wait_tokens(3);
  kill(server_->pid(), SIGTERM);
  EXPECT_TRUE(eventually(5, [&] { return !health_of(server_->address()); }));
  Stream late(*stub_, ask(kQuestion, 1));
  const grpc::Status refused = late.status();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_NE(refused.error_message().find("shutting down"), std::string::npos)
      << refused.error_message();
  EXPECT_TRUE(running.status().ok());
  EXPECT_EQ(running.ids().size(), 2000u);
  EXPECT_EQ(server_->wait_exit(20), 0) << server_->log();
}

TEST_F(Drain, PastTheDeadlineTheRestIsCut) {
  start("0.5");
  Stream running(*stub_, ask(kQuestion, 7000));
  running.wait_tokens(3);
  const Clock::time_point told = Clock::now();
  kill(server_->pid(), SIGTERM);
  const grpc::Status cut = running.status();
  EXPECT_EQ(cut.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_NE(cut.error_message().find("drain time of 0.5 s is over"), std::string::npos)
      << cut.error_message();
  EXPECT_GE(seconds_since(told), 0.5);
  EXPECT_EQ(server_->wait_exit(20), 0) << server_->log();
}

// Stopped for 1.5 s at a time, again and again: less than half as fast, and never silent for 3 s.
TEST(SlowWorker, InPulsesIsNotLost) {
  Cluster cluster(two_ranks());
  const std::vector<uint32_t> expected = cluster.answer(kQuestion, 100);
  const int64_t epoch = cluster.epoch();
  std::atomic<bool> over = false;
  std::thread pulses([&, pid = cluster.worker(1)->pid()] {
    for (int i = 0; i < 6; ++i) {
      kill(pid, SIGSTOP);
      std::this_thread::sleep_for(std::chrono::milliseconds(1500));
      kill(pid, SIGCONT);
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    over = true;
  });
  while (!over) EXPECT_EQ(cluster.answer(kQuestion, 100), expected);
  pulses.join();
  EXPECT_EQ(wait_serving(cluster.stub(), 0).epoch(), epoch) << cluster.front().err();
}

// Busy loops that are preferred to the worker share its one core.
TEST(SlowWorker, StarvedIsNotLost) {
  Cluster cluster(two_ranks());
  const std::vector<uint32_t> expected = cluster.answer(kQuestion, 40);
  const int64_t epoch = cluster.epoch();
  const pid_t pid = cluster.worker(1)->pid();
  cpu_set_t all, one;
  sched_getaffinity(0, sizeof all, &all);
  size_t core = 0;
  while (!CPU_ISSET(core, &all)) ++core;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  for (const pid_t thread : threads_of(pid)) {
    ASSERT_EQ(sched_setaffinity(thread, sizeof one, &one), 0);
    ASSERT_EQ(setpriority(PRIO_PROCESS, static_cast<id_t>(thread), 10), 0);
  }
  std::vector<std::unique_ptr<Process>> hogs;
  for (int i = 0; i < 4; ++i) {
    hogs.push_back(std::make_unique<Process>(
        std::vector<std::string>{"/bin/sh", "-c", "while :; do :; done"}));
    ASSERT_EQ(sched_setaffinity(hogs.back()->pid(), sizeof one, &one), 0);
  }
  const Clock::time_point start = Clock::now();
  do {
    EXPECT_EQ(cluster.answer(kQuestion, 40), expected);
  } while (seconds_since(start) < 8 && !HasFailure());
  EXPECT_EQ(wait_serving(cluster.stub(), 0).epoch(), epoch) << cluster.front().err();
}

// A model whose steps take long enough to be met in the middle of their computing.
std::string wide_model() {
  TinyModel wide;
  wide.ffn = 16384;
  const std::string path = scratch_directory() + "/wide.gguf";
  write_gguf(wide, path);
  return path;
}

// Its computing thread is held, its heartbeats go on: the deadline of the step decides, and says
// where everybody was. Held in the second of many long steps.
TEST(HungWorker, PassesTheDeadlineOfItsStepAndServesAgainOnceItMoves) {
  ClusterOptions options = two_ranks();
  options.model = wide_model();
  options.serve_flags.push_back("--chunk-tokens=256");
  Cluster cluster(options);
  const std::vector<uint32_t> expected = cluster.answer(kQuestion, 20);
  const pid_t computing = cluster.worker(1)->pid();  // the first thread
  Stream running(cluster.stub(), ask(std::string(3900, 'm'), 4));
  running.wait_prefill(0.01);
  const Clock::time_point hung = Clock::now();
  ASSERT_EQ(ptrace(PTRACE_SEIZE, computing, nullptr, nullptr), 0);
  ASSERT_EQ(ptrace(PTRACE_INTERRUPT, computing, nullptr, nullptr), 0);
  int stop = 0;
  ASSERT_EQ(waitpid(computing, &stop, __WALL), computing);
  const grpc::Status status = running.status(60);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  const std::string& why = status.error_message();
  EXPECT_NE(why.find("deadline"), std::string::npos) << why;
  EXPECT_NE(why.find("rank 1"), std::string::npos) << why;
  EXPECT_NE(why.find("layer"), std::string::npos) << why;
  EXPECT_NE(why.find("hop"), std::string::npos) << why;
  EXPECT_GE(seconds_since(hung), 10);
  ASSERT_EQ(ptrace(PTRACE_DETACH, computing, nullptr, nullptr), 0);
  cluster.wait_serving();
  EXPECT_EQ(cluster.answer(kQuestion, 20), expected);
}

// Little more memory than it has, and a step that needs a hundred megabytes: the step fails, the
// worker does not.
TEST(StarvedOfMemory, AWorkerEndsTheEpochAndLives) {
  ClusterOptions options = two_ranks();
  options.model = wide_model();
  options.serve_flags.push_back("--max-step-ms=60000");
  Cluster cluster(options);
  const std::vector<uint32_t> expected = cluster.answer(kQuestion, 20);
  const pid_t pid = cluster.worker(1)->pid();
  rlimit before{}, tight{};
  ASSERT_EQ(prlimit(pid, RLIMIT_AS, nullptr, &before), 0);
  tight = before;
  tight.rlim_cur = static_cast<rlim_t>(address_space_bytes(pid) + (16 << 20));
  ASSERT_EQ(prlimit(pid, RLIMIT_AS, &tight, nullptr), 0);
  Stream stream(cluster.stub(), ask(std::string(3900, 'm'), 4));
  const grpc::Status status = stream.status();
  ASSERT_EQ(prlimit(pid, RLIMIT_AS, &before, nullptr), 0);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_NE(status.error_message().find(absl::StrCat("rank 1 (pid ", pid, " on ")),
            std::string::npos)
      << status.error_message();
  EXPECT_NE(status.error_message().find("out of memory in a step"), std::string::npos)
      << status.error_message() << "\n"
      << cluster.worker(1)->err();
  const v1::GetClusterResponse now = cluster.wait_serving();
  EXPECT_EQ(now.ranks(1).pid(), pid) << cluster.worker(1)->err();
  EXPECT_EQ(cluster.answer(kQuestion, 20), expected);
}

}  // namespace
}  // namespace annulus::testing
