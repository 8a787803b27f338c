// SPDX-License-Identifier: Apache-2.0
// Annulus under those who start and watch processes: systemd's notification protocol from a real
// `annulus serve`, and all ranks of a host under one `annulus worker --ranks`, as a pod of a
// LeaderWorkerSet has them.
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "bench/server_process.h"
#include "tests/dist/cluster.h"
#include "tests/support/tiny_model.h"

namespace annulus::testing {
namespace {

// The manager's end of the socket. Variables are set for processes that start while it lives.
class Manager {
 public:
  explicit Manager(bool abstract, int watchdog_us = 0) : socket_(socket(AF_UNIX, SOCK_DGRAM, 0)) {
    const std::string path = scratch_directory() + "/notify";
    sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
    std::copy(path.begin(), path.end(), &address.sun_path[abstract ? 1 : 0]);
    const size_t length = offsetof(sockaddr_un, sun_path) + path.size() + (abstract ? 1 : 0);
    EXPECT_EQ(
        bind(socket_, reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(length)),
        0);
    setenv("NOTIFY_SOCKET", (abstract ? "@" + path : path).c_str(), 1);
    if (watchdog_us > 0) setenv("WATCHDOG_USEC", std::to_string(watchdog_us).c_str(), 1);
  }
  ~Manager() {
    for (const char* name : {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}) unsetenv(name);
    close(socket_);
  }

  // Messages until one begins with `what`, that one last; all within `seconds` where none does.
  std::vector<std::string> until(const std::string& what, double seconds) const {
    std::vector<std::string> heard;
    const Clock::time_point start = Clock::now();
    while (seconds_since(start) < seconds) {
      pollfd waiting = {.fd = socket_, .events = POLLIN, .revents = 0};
      if (poll(&waiting, 1, 20) != 1) continue;
      char text[4096];
      const ssize_t bytes = recv(socket_, text, sizeof text, 0);
      heard.emplace_back(text, static_cast<size_t>(bytes));
      if (absl::StartsWith(heard.back(), what)) return heard;
    }
    return heard;
  }
  bool hears(const std::string& what, double seconds) const {
    const std::vector<std::string> heard = until(what, seconds);
    return !heard.empty() && absl::StartsWith(heard.back(), what);
  }

 private:
  int socket_;
};

size_t count(const std::vector<std::string>& heard, const std::string& what) {
  return static_cast<size_t>(std::count(heard.begin(), heard.end(), what));
}

std::vector<std::string> serve(std::vector<std::string> flags) {
  std::vector<std::string> command = {bench::annulus_binary(),
                                      "serve",
                                      "--model",
                                      tiny_model_file(),
                                      "--port",
                                      "0",
                                      "--threads",
                                      "1"};
  command.insert(command.end(), flags.begin(), flags.end());
  return command;
}

std::string environment_of(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/environ");
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(NotifiedManager, HearsOfReadinessLoadAndTheEnd) {
  for (const bool abstract : {false, true}) {
    const Manager manager(abstract);
    Process server(serve({"--cp", "2"}));
    const std::vector<std::string> heard = manager.until("READY=1", 30);
    ASSERT_EQ(count(heard, "READY=1"), 1u);
    EXPECT_NE(server.out().find("annulus: ready on"), std::string::npos);
    EXPECT_EQ(count(heard, "WATCHDOG=1"), 0u);  // nobody asked for it
    EXPECT_TRUE(absl::StartsWith(heard.front(), "STATUS=not serving: waiting for"))
        << heard.front();
    EXPECT_TRUE(manager.hears("STATUS=serving, epoch 1, 0 running, 0 waiting", 5));
    for (const pid_t child : children_of(server.pid())) {
      EXPECT_EQ(environment_of(child).find("NOTIFY_SOCKET"), std::string::npos);
    }
    server.signal(SIGTERM);
    EXPECT_TRUE(manager.hears("STOPPING=1", 5));
    EXPECT_EQ(server.wait().code, 0);
  }
}

TEST(NotifiedManager, IsNotToldThatAServerWithoutRanksIsReady) {
  const Manager manager(false);
  setenv("ANNULUS_SECRET", "s", 1);
  Process server(serve({"--cp", "2", "--workers", "external"}));
  unsetenv("ANNULUS_SECRET");
  const std::vector<std::string> heard = manager.until("READY=1", 3);
  EXPECT_EQ(count(heard, "READY=1"), 0u);
  ASSERT_FALSE(heard.empty());
  EXPECT_NE(heard.back().find("ranks 0, 1"), std::string::npos) << heard.back();
}

// Its engine thread is held; the rest of it goes on.
TEST(Watchdog, IsFedOnlyWhileTheEngineComesRound) {
  const Manager manager(false, 1000000);
  Process server(serve({}));
  ASSERT_TRUE(manager.hears("READY=1", 30));
  const size_t fed = count(manager.until("never", 3), "WATCHDOG=1");
  EXPECT_GE(fed, 6u);  // 12 are sent where this machine is idle
  EXPECT_LE(fed, 13u);
  pid_t engine = -1;
  for (const pid_t thread : threads_of(server.pid())) {
    std::string name;
    std::getline(std::ifstream(absl::StrCat("/proc/", thread, "/comm")), name);
    if (name == "annulus-engine") engine = thread;
  }
  ASSERT_GT(engine, 0);
  ASSERT_EQ(ptrace(PTRACE_SEIZE, engine, nullptr, nullptr), 0);
  ASSERT_EQ(ptrace(PTRACE_INTERRUPT, engine, nullptr, nullptr), 0);
  ASSERT_EQ(waitpid(engine, nullptr, __WALL), engine);
  manager.until("never", 7);
  EXPECT_EQ(count(manager.until("never", 2), "WATCHDOG=1"), 0u);
  ASSERT_EQ(ptrace(PTRACE_DETACH, engine, nullptr, nullptr), 0);
  EXPECT_TRUE(manager.hears("WATCHDOG=1", 5));
}

TEST(Watchdog, OfAnotherProcessIsNotFed) {
  const Manager manager(false, 200000);
  setenv("WATCHDOG_PID", "1", 1);
  Process server(serve({}));
  ASSERT_TRUE(manager.hears("READY=1", 30));
  EXPECT_EQ(count(manager.until("never", 1), "WATCHDOG=1"), 0u);
}

TEST(NotifiedManager, ThatIsGoneIsWarnedOfOnce) {
  for (const char* place : {"/nowhere/notify", "relative"}) {
    setenv("NOTIFY_SOCKET", place, 1);
    Process server(serve({}));
    unsetenv("NOTIFY_SOCKET");
    ASSERT_TRUE(server.wait_for_output("annulus: ready on"));
    server.signal(SIGTERM);
    const Outcome outcome = server.wait();
    EXPECT_EQ(outcome.code, 0);
    const size_t first = outcome.err.find(absl::StrCat("NOTIFY_SOCKET=", place, ": "));
    EXPECT_NE(first, std::string::npos) << outcome.err;
    EXPECT_EQ(outcome.err.find("NOTIFY_SOCKET", first + 1), std::string::npos) << outcome.err;
  }
}

// Two hosts of two ranks each.
class HostRanks : public ::testing::Test {
 protected:
  void SetUp() override {
    setenv("ANNULUS_SECRET", "s", 1);
    front_ = std::make_unique<Process>(serve({"--tp", "1", "--cp", "4", "--workers", "external",
                                              "--precision", "fp32", "--drain-timeout", "30"}));
    ASSERT_TRUE(front_->wait_for_output("--connect"));
    control_ = word_after(front_->out(), "--connect ");
    for (int host = 0; host < 2; ++host) start_host(host);
    ASSERT_TRUE(front_->wait_for_output("annulus: ready on"));
    address_ = word_after(front_->out(), "annulus: ready on ");
    stub_ = stub_for(address_);
  }
  void TearDown() override { unsetenv("ANNULUS_SECRET"); }

  static std::string word_after(const std::string& text, const std::string& what) {
    const size_t from = text.find(what) + what.size();
    return text.substr(from, text.find_first_of(" \n", from) - from);
  }
  void start_host(int index) {
    setenv("LWS_WORKER_INDEX", std::to_string(index).c_str(), 1);
    setenv("LWS_GROUP_SIZE", "2", 1);
    setenv("LWS_LEADER_ADDRESS", "127.0.0.1", 1);
    hosts_.push_back(std::make_unique<Process>(std::vector<std::string>{
        bench::annulus_binary(), "worker", "--connect", control_, "--model", tiny_model_file(),
        "--ranks", "2", "--threads=1", "--drain-timeout", "30"}));
    for (const char* name : {"LWS_WORKER_INDEX", "LWS_GROUP_SIZE", "LWS_LEADER_ADDRESS"}) {
      unsetenv(name);
    }
  }

  std::unique_ptr<Process> front_;
  std::vector<std::unique_ptr<Process>> hosts_;
  std::string control_, address_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

TEST_F(HostRanks, TakeTheRanksOfTheirHostAndOneThatDiesIsReplaced) {
  const v1::GetClusterResponse before = wait_serving(*stub_, 0);
  const std::vector<uint32_t> expected = answer_of(*stub_, "Two hosts", 20);
  for (int rank = 0; rank < 4; ++rank) {
    const std::vector<pid_t> of_host = children_of(hosts_[static_cast<size_t>(rank / 2)]->pid());
    EXPECT_EQ(std::count(of_host.begin(), of_host.end(), before.ranks(rank).pid()), 1) << rank;
  }
  kill(static_cast<pid_t>(before.ranks(3).pid()), SIGKILL);
  const v1::GetClusterResponse after = wait_serving(*stub_, before.epoch());
  for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(after.ranks(rank).pid(), before.ranks(rank).pid());
  EXPECT_NE(after.ranks(3).pid(), before.ranks(3).pid());
  EXPECT_EQ(answer_of(*stub_, "Two hosts", 20), expected);
}

// As at the end of a group: everybody gets SIGTERM, and what runs is finished.
TEST_F(HostRanks, DrainWithTheirFrontEnd) {
  Stream running(*stub_, ask("Everybody is told at once", 1500));
  running.wait_tokens(3);
  for (const auto& host : hosts_) host->signal(SIGTERM);
  front_->signal(SIGTERM);
  EXPECT_TRUE(running.status().ok());
  EXPECT_EQ(running.ids().size(), 1500u);
  EXPECT_EQ(front_->wait().code, 0);
  for (const auto& host : hosts_) EXPECT_EQ(host->wait().code, 0);
}

TEST_F(HostRanks, GiveUpWithTheLineOfTheRankThatIsRefused) {
  setenv("ANNULUS_SECRET", "another", 1);
  start_host(0);
  const Outcome refused = hosts_.back()->wait();
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find("secret"), std::string::npos) << refused.err;
  EXPECT_NE(refused.err.find("ended with status 2; its own line says why"), std::string::npos)
      << refused.err;
}

TEST_F(HostRanks, EndWithTheHostsProcess) {
  const std::vector<pid_t> ranks = children_of(hosts_[1]->pid());
  ASSERT_EQ(ranks.size(), 2u);
  hosts_[1]->signal(SIGKILL);
  for (const pid_t rank : ranks) EXPECT_TRUE(wait_gone(rank, 5));
}

TEST(HostRanksFlags, AreCheckedInOneLine) {
  const std::vector<std::string> base = {
      "worker", "--connect", "127.0.0.1:1", "--model", tiny_model_file(), "--ranks", "2"};
  Outcome outcome = annulus(base);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(lines(outcome.err), 1) << outcome.err;
  EXPECT_NE(outcome.err.find("--ranks needs --rank"), std::string::npos) << outcome.err;
  std::vector<std::string> with_gpu = base;
  with_gpu.insert(with_gpu.end(), {"--rank", "0", "--gpu", "1"});
  outcome = annulus(with_gpu);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(lines(outcome.err), 1) << outcome.err;
  EXPECT_NE(outcome.err.find("--gpu names one GPU"), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace annulus::testing
