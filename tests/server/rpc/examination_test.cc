// SPDX-License-Identifier: Apache-2.0
// What `annulus doctor` makes of reports, and how they travel.
#include "server/examination.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "server/rpc/examination_wire.h"

namespace annulus::server {
namespace {

// Healthy ranks with a core each, in a ring over `transport`.
struct Cluster {
  explicit Cluster(int ranks, const std::string& transport = "posix/memory, cma/memory")
      : topology{.tp = 1, .cp = ranks} {
    for (int r = 0; r < ranks; ++r) {
      infos.push_back({.world_rank = r,
                       .host = "node",
                       .pid = 100 + r,
                       .cpu_isa = "avx2",
                       .threads = 1,
                       .weight_bytes = 0});
      RankExamination& rank = reports.emplace_back();
      rank.figures = {{"gemm_gflops", {100, 99, 101, 100, 100}},
                      {"read_gbytes", {20, 20, 20, 20, 20}},
                      {"copy_gbytes", {10, 10, 10, 10, 10}}};
      if (ranks > 1) {
        rank.figures["cp_hop_gbytes"] = {5, 5, 5, 5, 5};
        rank.figures["cp_hop_us"] = {1, 1, 1, 1, 1};
        rank.facts[fact::kCpTransport] = transport;
      }
      rank.facts[fact::kMachine] = "m";
      rank.facts[fact::kCores] = absl::StrCat(r);
      rank.facts[fact::kUcx] = "1.13.1";
    }
  }
  Diagnosis diagnose() const { return server::diagnose(topology, infos, reports); }

  parallel::Topology topology;
  std::vector<RankInfo> infos;
  std::vector<RankExamination> reports;
};

std::vector<std::string> lines(const std::vector<Finding>& findings) {
  std::vector<std::string> out;
  for (const Finding& finding : findings) out.push_back(finding.line);
  return out;
}

TEST(Examination, HealthyRanksGetNoFindings) {
  for (const int ranks : {1, 2, 3, 8}) {
    const Diagnosis diagnosis = Cluster(ranks).diagnose();
    EXPECT_TRUE(diagnosis.findings.empty()) << lines(diagnosis.findings)[0];
    EXPECT_TRUE(diagnosis.remarks.empty()) << lines(diagnosis.remarks)[0];
  }
}

TEST(Examination, ASlowRankIsNamedWithFigureAndReason) {
  Cluster cluster(4);
  cluster.reports[2].figures["gemm_gflops"] = {50, 48, 55, 51, 50};
  cluster.reports[2].facts[fact::kWaitShare] = "0.47";
  const Diagnosis diagnosis = cluster.diagnose();
  ASSERT_EQ(diagnosis.findings.size(), 1u) << diagnosis.findings.size();
  EXPECT_EQ(diagnosis.findings[0].ranks, std::vector<int32_t>{2});
  EXPECT_EQ(diagnosis.findings[0].figure, "gemm_gflops");
  EXPECT_EQ(
      diagnosis.findings[0].line,
      "rank 2 (pid 102 on node): GEMM is 50 GFLOP/s, 50 % below the 100 that is the median of "
      "4; its threads waited for a core 47 % of the time");
  EXPECT_TRUE(diagnosis.remarks.empty());
}

// Rounds that something disturbed do not count while one was undisturbed.
TEST(Examination, NoiseInSomeRoundsIsNoFinding) {
  Cluster cluster(3);
  cluster.reports[1].figures["gemm_gflops"] = {20, 30, 40, 25, 90};
  EXPECT_TRUE(cluster.diagnose().findings.empty());
  cluster.reports[1].figures["gemm_gflops"] = {20, 30, 40, 25, 80};
  EXPECT_EQ(cluster.diagnose().findings.size(), 1u);
}

TEST(Examination, OfTwoRanksTheSlowerOneIsNamedFromAboutAQuarterBehind) {
  Cluster cluster(2);
  cluster.reports[1].figures["read_gbytes"] = {15, 15, 15, 15, 15};  // 14 % below 17.5
  EXPECT_TRUE(cluster.diagnose().findings.empty());
  cluster.reports[1].figures["read_gbytes"] = {14.5, 14.5, 14.5, 14.5, 14.5};
  const Diagnosis diagnosis = cluster.diagnose();
  ASSERT_EQ(diagnosis.findings.size(), 1u);
  EXPECT_EQ(diagnosis.findings[0].ranks, std::vector<int32_t>{1});
}

TEST(Examination, ASlowHopIsNamedByBothEnds) {
  Cluster cluster(4, "tcp/eth0");
  for (int r = 0; r < 4; ++r)
    cluster.reports[static_cast<size_t>(r)].facts[fact::kMachine] = absl::StrCat(r);
  cluster.reports[3].figures["cp_hop_gbytes"] = {1, 1, 1, 1, 1};
  cluster.reports[3].figures["cp_hop_us"] = {100, 90, 110, 100, 100};
  const Diagnosis diagnosis = cluster.diagnose();
  ASSERT_EQ(diagnosis.findings.size(), 2u);
  for (const Finding& finding : diagnosis.findings) {
    EXPECT_EQ(finding.ranks, (std::vector<int32_t>{3, 0}));
    EXPECT_NE(finding.line.find("over TCP"), std::string::npos) << finding.line;
  }
}

// A wake-up more or less is no finding, and shared memory is no measure for TCP.
TEST(Examination, HopsAreComparedWithTheirLike) {
  Cluster cluster(4);
  cluster.reports[1].figures["cp_hop_us"] = {4, 4, 4, 4, 4};
  for (const size_t r : {size_t{1}, size_t{3}}) {  // two hosts of two ranks
    cluster.reports[r].facts[fact::kCpTransport] = "tcp/eth0";
    cluster.reports[r].figures["cp_hop_gbytes"] = {1, 1, 1, 1, 1};
  }
  for (const size_t r : {size_t{2}, size_t{3}}) cluster.reports[r].facts[fact::kMachine] = "other";
  EXPECT_TRUE(cluster.diagnose().findings.empty());
}

TEST(Examination, TcpWithinAMachineIsNamedUnlessItWasAskedFor) {
  Cluster cluster(3, "tcp/lo");
  EXPECT_EQ(cluster.diagnose().findings.size(), 3u);
  for (RankExamination& rank : cluster.reports) rank.facts[fact::kForced] = "tcp,self";
  EXPECT_TRUE(cluster.diagnose().findings.empty());
  EXPECT_EQ(cluster.diagnose().remarks.size(), 3u);
}

TEST(Examination, MoreThreadsThanCoresIsNamedThoughAllAreEquallySlow) {
  Cluster cluster(4);
  for (const size_t r : {size_t{1}, size_t{2}}) cluster.reports[r].facts[fact::kCores] = "5";
  Diagnosis diagnosis = cluster.diagnose();
  ASSERT_EQ(diagnosis.findings.size(), 1u);
  EXPECT_EQ(diagnosis.findings[0].ranks, (std::vector<int32_t>{1, 2}));
  EXPECT_NE(diagnosis.findings[0].line.find("ranks 1, 2 on node: 2 threads on 1 core (5)"),
            std::string::npos)
      << diagnosis.findings[0].line;

  cluster.reports[2].facts[fact::kMachine] = "other";  // core 5 of another machine
  EXPECT_TRUE(cluster.diagnose().findings.empty());
  cluster.reports[0].facts[fact::kCores] = "0-1";
  cluster.infos[0].threads = 4;  // of its own doing
  for (RankInfo& rank : cluster.infos) rank.threads = 4;
  EXPECT_EQ(cluster.diagnose().findings.size(), 4u);
}

TEST(Examination, QuotasHeatAndVersionsAreNamed) {
  Cluster cluster(3);
  cluster.reports[0].facts[fact::kQuotaShare] = "0.3";
  cluster.reports[1].facts[fact::kHeat] = "12";
  cluster.reports[2].facts[fact::kUcx] = "1.15.0";
  cluster.reports[2].facts[fact::kKernel] = "Linux 6.1";
  cluster.reports[1].facts[fact::kKernel] = "Linux 5.10";
  const Diagnosis diagnosis = cluster.diagnose();
  ASSERT_EQ(diagnosis.findings.size(), 3u);
  EXPECT_EQ(diagnosis.findings[0].ranks, std::vector<int32_t>{0});
  EXPECT_EQ(diagnosis.findings[1].ranks, std::vector<int32_t>{1});
  EXPECT_EQ(diagnosis.findings[2].ranks, std::vector<int32_t>{2});
  EXPECT_EQ(diagnosis.findings[2].line, "UCX differs: 1.13.1 (rank 0, 1); 1.15.0 (rank 2)");
  ASSERT_EQ(diagnosis.remarks.size(), 1u);  // the kernel
}

// Where most ranks are slow the median is; the fast one is what shows it.
TEST(Examination, AFastRankIsARemark) {
  Cluster cluster(3);
  cluster.reports[1].figures["copy_gbytes"] = {20, 20, 20, 20, 20};
  const Diagnosis diagnosis = cluster.diagnose();
  EXPECT_TRUE(diagnosis.findings.empty());
  ASSERT_EQ(diagnosis.remarks.size(), 1u);
  EXPECT_EQ(diagnosis.remarks[0].figure, "copy_gbytes");
  EXPECT_EQ(diagnosis.remarks[0].ranks, std::vector<int32_t>{1});
}

TEST(Examination, CoresAndTransportsAreRead) {
  EXPECT_EQ(parse_cores("0-3,8"), (std::vector<int>{0, 1, 2, 3, 8}));
  EXPECT_EQ(format_cores(parse_cores("8,0-1,2-3")), "0-3,8");
  for (const char* wrong : {"", "a", "3-1", "0-", "1-2-3", "-1", "0-99999999"}) {
    EXPECT_TRUE(parse_cores(wrong).empty()) << wrong;
  }
  EXPECT_EQ(transport_kind("posix/memory, cma/memory"), "shared memory");
  EXPECT_EQ(transport_kind("tcp/eth0"), "TCP");
  EXPECT_EQ(transport_kind("rc_mlx5/mlx5_0:1, tcp/eth0"), "RDMA");
  EXPECT_EQ(transport_kind("NCCL"), "NCCL");
}

TEST(Examination, TravelsUnchangedAndIsCheckedOnArrival) {
  const RankExamination sent = Cluster(3).reports[1];
  const auto got = from_proto(to_proto(sent));
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->figures, sent.figures);
  EXPECT_EQ(got->facts, sent.facts);

  for (const double wrong : {0.0, -1.0, std::numeric_limits<double>::infinity(), std::nan("")}) {
    v1::Examination proto = to_proto(sent);
    (*proto.mutable_figures())["gemm_gflops"].set_values(0, wrong);
    EXPECT_EQ(from_proto(proto).status().code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
  v1::Examination unknown = to_proto(sent);
  (*unknown.mutable_figures())["luck"].add_values(1);
  EXPECT_EQ(from_proto(unknown).status().code(), absl::StatusCode::kInvalidArgument);
  v1::Examination talkative = to_proto(sent);
  for (int i = 0; i < 100; ++i) (*talkative.mutable_facts())[absl::StrCat(i)] = "x";
  EXPECT_EQ(from_proto(talkative).status().code(), absl::StatusCode::kInvalidArgument);
  v1::Examination rude = to_proto(sent);
  (*rude.mutable_facts())["cpu"] = "a\x1b[2J\n" + std::string(10000, 'x');
  const auto tamed = from_proto(rude);
  ASSERT_TRUE(tamed.ok());
  EXPECT_LT(tamed->facts.at("cpu").size(), 300u);
  EXPECT_EQ(tamed->facts.at("cpu").find('\x1b'), std::string::npos);
}

}  // namespace
}  // namespace annulus::server
