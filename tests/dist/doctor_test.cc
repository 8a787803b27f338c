// SPDX-License-Identifier: Apache-2.0
// `annulus doctor` and the running server's watch for stragglers, on real processes: whatever else
// this machine does, a rank that runs a fifth of the time is slower than the others, two ranks on
// one core share it, and a link of 20 Mbit/s is no veth.
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "bench/network_lab.h"
#include "bench/server_process.h"
#include "tests/dist/cluster.h"
#include "tests/dist/exposition.h"
#include "tests/support/tiny_model.h"

namespace annulus::testing {
namespace {

using nlohmann::json;

// Lets a process run for 20 of 100 ms, as a neighbour on its core or a CPU quota would.
class Hindrance {
 public:
  explicit Hindrance(pid_t pid)
      : process_(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))), thread_([this] {
          while (!over_) {
            send(SIGSTOP);
            std::this_thread::sleep_for(std::chrono::milliseconds(80));
            send(SIGCONT);
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
          }
        }) {}
  ~Hindrance() {
    over_ = true;
    thread_.join();
    close(process_);
  }
  Hindrance(const Hindrance&) = delete;
  Hindrance& operator=(const Hindrance&) = delete;

 private:
  // Of a process that has ended, nobody gets it.
  void send(int signal) const { syscall(SYS_pidfd_send_signal, process_, signal, nullptr, 0); }

  const int process_;
  std::atomic<bool> over_ = false;
  std::thread thread_;
};

// The doctor with ranks that this test starts, each behind its own prefix ("taskset -c 0", ...).
class Visit {
 public:
  Visit(int cp, const std::string& control_host, const std::vector<std::string>& worker_flags,
        const std::function<std::vector<std::string>(int rank)>& prefix)
      : json_(scratch_directory() + "/report.json") {
    setenv("ANNULUS_SECRET", "of this test", 1);
    doctor_ = std::make_unique<Process>(std::vector<std::string>{
        bench::annulus_binary(), "doctor", "--cp", absl::StrCat(cp), "--workers", "external",
        "--threads", "1", "--control-listen", control_host, "--json", json_});
    EXPECT_TRUE(doctor_->wait_for_output(absl::StrCat("--rank ", cp - 1))) << doctor_->err();
    const std::string out = doctor_->out();
    const size_t at = out.find("--connect ") + 10;
    for (int rank = 0; rank < cp; ++rank) {
      std::vector<std::string> command = prefix(rank);
      for (const std::string& part :
           {bench::annulus_binary(), std::string("worker"), std::string("--doctor"),
            std::string("--connect"), out.substr(at, out.find(' ', at) - at),
            std::string("--threads"), std::string("1"), std::string("--rank"),
            absl::StrCat(rank)}) {
        command.push_back(part);
      }
      command.insert(command.end(), worker_flags.begin(), worker_flags.end());
      workers_.push_back(std::make_unique<Process>(std::move(command)));
    }
  }

  pid_t pid(int rank) const { return workers_[static_cast<size_t>(rank)]->pid(); }
  // Its end: the report, with what was printed as "text" and the exit code as "code".
  json report() {
    const Outcome outcome = doctor_->wait(150);
    for (const auto& worker : workers_) {
      const Outcome ended = worker->wait(20);
      EXPECT_EQ(ended.code, 0) << ended.err;  // told to end
    }
    json out = json::parse(std::ifstream(json_), nullptr, /*allow_exceptions=*/false);
    EXPECT_TRUE(out.is_object()) << outcome.err;
    std::cout << outcome.out << outcome.err;
    out["text"] = outcome.out;
    out["code"] = outcome.code;
    return out;
  }

 private:
  const std::string json_;
  std::unique_ptr<Process> doctor_;
  std::vector<std::unique_ptr<Process>> workers_;
};

std::vector<std::string> nothing(int) {
  return {};
}

bool names(const json& report, const std::string& figure, const std::vector<int>& ranks) {
  for (const json& finding : report["findings"]) {
    if (finding["figure"] == figure && finding["ranks"] == ranks) return true;
  }
  return false;
}

double median_of(const json& report, int rank, const char* figure) {
  auto rounds =
      report["ranks"][static_cast<size_t>(rank)]["figures"][figure].get<std::vector<double>>();
  std::sort(rounds.begin(), rounds.end());
  return rounds.at(rounds.size() / 2);
}

TEST(Doctor, MeasuresItsOwnRanksAndSaysWhatTheyGoOver) {
  const std::string file = scratch_directory() + "/report.json";
  Process doctor({bench::annulus_binary(), "doctor", "--tp", "2", "--cp", "2", "--threads", "1",
                  "--json", file});
  const Outcome outcome = doctor.wait(150);
  std::cout << outcome.out;
  const json report = json::parse(std::ifstream(file));
  // Whether this machine is healthy is its business; the verdict must fit.
  EXPECT_EQ(outcome.code, report["findings"].empty() ? 0 : 1) << outcome.err;
  EXPECT_EQ(report["healthy"], report["findings"].empty());
  EXPECT_NE(outcome.out.find(report["healthy"] ? "\nhealthy\n" : "FINDING: "), std::string::npos);
  EXPECT_NE(outcome.err.find("annulus doctor: measuring"), std::string::npos) << outcome.err;
  ASSERT_EQ(report["ranks"].size(), 4u);
  std::set<int> pids;
  for (const json& rank : report["ranks"]) {
    EXPECT_EQ(rank["figures"].size(), 7u);
    for (const auto& [figure, rounds] : rank["figures"].items()) {
      ASSERT_EQ(rounds.size(), 5u) << figure;
      for (const double value : rounds) EXPECT_GT(value, 0) << figure;
    }
    for (const char* link : {"cp_transport", "tp_transport"}) {
      EXPECT_NE(rank["facts"][link].get<std::string>().find("/memory"), std::string::npos)
          << rank["facts"];
    }
    EXPECT_FALSE(rank["facts"]["ucx"].get<std::string>().empty());
    pids.insert(rank["pid"].get<int>());
  }
  EXPECT_EQ(pids.size(), 4u);
}

TEST(Doctor, NamesARankThatIsHinderedAndWhatOfItIsSlow) {
  Visit visit(3, "127.0.0.1", {}, nothing);
  const pid_t pid = visit.pid(2);
  const Hindrance hindrance(pid);
  const json report = visit.report();
  EXPECT_EQ(report["code"], 1);
  EXPECT_TRUE(names(report, "gemm_gflops", {2})) << report["findings"];
  EXPECT_NE(report["text"].get<std::string>().find(absl::StrCat("FINDING: rank 2 (pid ", pid)),
            std::string::npos);
  for (const int other : {0, 1}) {
    EXPECT_LT(median_of(report, 2, "gemm_gflops"), 0.7 * median_of(report, other, "gemm_gflops"));
  }
}

// Both are as slow as each other, and most of the ranks: no median shows it.
TEST(Doctor, NamesRanksThatShareACore) {
  cpu_set_t cores;
  ASSERT_EQ(sched_getaffinity(0, sizeof cores, &cores), 0);
  int core = 0;
  while (!CPU_ISSET(static_cast<size_t>(core), &cores)) ++core;
  Visit visit(2, "127.0.0.1", {}, [&](int) -> std::vector<std::string> {
    return {"taskset", "-c", absl::StrCat(core)};
  });
  const json report = visit.report();
  EXPECT_EQ(report["code"], 1);
  EXPECT_TRUE(names(report, "cores", {0, 1})) << report["findings"];
}

TEST(Doctor, NamesASlowLinkByItsEnds) {
  auto made = bench::NetworkLab::create(3);
  if (!made.ok()) GTEST_SKIP() << made.status();
  const std::unique_ptr<bench::NetworkLab> lab = *std::move(made);
  const absl::Status entered = bench::enter_namespace(lab->switch_namespace());
  ASSERT_TRUE(entered.ok()) << entered;
  ASSERT_TRUE(lab->shape(1, 20).ok());
  Visit visit(3, bench::NetworkLab::switch_address(), {"--transports", "tcp,self"},
              [&](int rank) -> std::vector<std::string> {
                return {"ip",   "netns",
                        "exec", lab->host(rank),
                        "env",  absl::StrCat("UCX_NET_DEVICES=", lab->host(rank))};
              });
  const json report = visit.report();
  EXPECT_EQ(report["code"], 1);
  EXPECT_TRUE(names(report, "cp_hop_gbytes", {1, 2})) << report["findings"];
  EXPECT_LT(median_of(report, 1, "cp_hop_gbytes"), 0.0027);  // 20 Mbit/s are 0.0025 GB/s
  for (const int other : {0, 2}) {
    EXPECT_GT(median_of(report, other, "cp_hop_gbytes"), 0.01);
  }
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(report["ranks"][static_cast<size_t>(rank)]["facts"]["cp_transport"],
              absl::StrCat("tcp/", lab->host(rank)));
  }
}

TEST(Doctor, ARankThatDiesIsTheDiagnosis) {
  setenv("ANNULUS_SECRET", "of this test", 1);
  Process doctor({bench::annulus_binary(), "doctor", "--cp", "2", "--threads", "1"});
  ASSERT_TRUE(eventually(30, [&] { return doctor.err().find("measuring") != std::string::npos; }));
  const std::vector<pid_t> ranks = children_of(doctor.pid());
  ASSERT_EQ(ranks.size(), 2u);
  kill(ranks[0], SIGKILL);
  const Outcome outcome = doctor.wait(20);
  EXPECT_EQ(outcome.code, 1);
  EXPECT_NE(outcome.err.find(absl::StrCat("(pid ", ranks[0])), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("was lost"), std::string::npos) << outcome.err;
  EXPECT_TRUE(gone(ranks[1]));
}

TEST(Doctor, WrongCallsAndAbsentRanksAreOneLine) {
  const auto expect_line = [](std::vector<std::string> arguments, int code, const char* words) {
    arguments.insert(arguments.begin(), "doctor");
    const Outcome outcome = annulus(std::move(arguments));
    EXPECT_EQ(outcome.code, code) << outcome.err;
    const std::string last =
        outcome.err.substr(outcome.err.rfind('\n', outcome.err.size() - 2) + 1);
    EXPECT_NE(last.find(words), std::string::npos) << outcome.err;
    EXPECT_TRUE(last.starts_with("annulus doctor: ")) << last;
  };
  expect_line({"--cp", "0"}, 2, "--cp");
  expect_line({"--cpu-isa", "neon"}, 2, "neon");
  expect_line({"--log-level", "loud"}, 2, "loud");
  expect_line({"--json", "/nowhere/report"}, 2, "--json /nowhere/report cannot be written");
  expect_line({"--control-listen", "127.0.0.1", "--control-port", "1", "--workers", "external",
               "--timeout", "1", "--cp", "2"},
              geteuid() == 0 ? 1 : 2, geteuid() == 0 ? "ranks 0, 1 to attach" : "127.0.0.1:1");
}

// Workers of the one kind are refused by front ends of the other.
TEST(Doctor, ItsRanksAreNotThoseOfAServer) {
  setenv("ANNULUS_SECRET", "of this test", 1);
  Process doctor({bench::annulus_binary(), "doctor", "--workers", "external"});
  ASSERT_TRUE(doctor.wait_for_output("--rank 0"));
  const std::string out = doctor.out();
  const size_t at = out.find("--connect ") + 10;
  const Outcome outcome = annulus({"worker", "--connect", out.substr(at, out.find(' ', at) - at),
                                   "--model", tiny_model_file()});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("start its ranks with --doctor"), std::string::npos) << outcome.err;
}

// Keeps a server busy with prompts.
class Load {
 public:
  explicit Load(v1::Inference::Stub& stub)
      : thread_([this, &stub] {
          while (!over_) {
            Stream stream(stub, ask(std::string(300, 'x'), 2));
            EXPECT_TRUE(stream.status(60).ok());
          }
        }) {}
  ~Load() {
    over_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> over_ = false;
  std::thread thread_;
};

TEST(Straggler, IsNamedByTheRunningServerAndClearedWhenItRecovers) {
  ClusterOptions options;
  options.model = "synthetic:layers=4,dim=512,heads=8,kv_heads=2";  // computes more than it waits
  options.cp = 3;
  options.serve_flags = {"--metrics", "0"};
  Cluster cluster(options);
  const int metrics = metrics_port(cluster.front());
  const std::string straggler = "annulus_rank_straggler{rank=\"1\"}";
  const std::string warnings = "annulus_rank_straggler_warnings_total{rank=\"1\"}";
  const auto rank = [&](int r) {
    grpc::ClientContext context;
    v1::GetClusterResponse response;
    EXPECT_TRUE(cluster.stub().GetCluster(&context, {}, &response).ok());
    return response.ranks(r);
  };
  const Load load(cluster.stub());
  const pid_t pid = cluster.worker(1)->pid();
  const std::string warning = absl::StrCat("rank 1 (pid ", pid);
  {
    const Hindrance hindrance(pid);
    ASSERT_TRUE(eventually(150, [&] { return rank(1).recent().straggles(); }))
        << cluster.front().err();
    EXPECT_GT(rank(1).recent().excess(), 0.15);
    EXPECT_EQ(scrape(metrics).at(straggler), 1);
    EXPECT_EQ(scrape(metrics).at(warnings), 1);
    EXPECT_GT(rank(1).recent().compute_us(), rank(0).recent().compute_us());
    EXPECT_GT(rank(0).recent().ring_us() + rank(0).recent().other_us(), 0);
    EXPECT_NE(cluster.front().err().find(warning), std::string::npos) << cluster.front().err();
    const Outcome text = annulus({"status", "--server", cluster.address()});
    EXPECT_NE(text.out.find("STRAGGLER"), std::string::npos) << text.out;
    std::cout << text.out;
  }
  EXPECT_TRUE(eventually(100, [&] { return !rank(1).recent().straggles(); }))
      << rank(1).recent().excess();
  EXPECT_EQ(scrape(metrics).at(straggler), 0);
  EXPECT_EQ(scrape(metrics).at(warnings), 1);
  EXPECT_NE(cluster.front().err().find("is no straggler any longer"), std::string::npos);
}

}  // namespace
}  // namespace annulus::testing
