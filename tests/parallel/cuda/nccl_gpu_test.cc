// SPDX-License-Identifier: Apache-2.0
// The engine as several processes on one real GPU, joined by the real NCCL over loopback: the same
// plans as one rank on a CPU gives the same answers. NCCL allows ranks to share a GPU where each is
// told to be a host of its own (NCCL_HOSTID) and only sockets are left to it; that is slow, and
// proves everything but speed and NVLink.
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/matrix.h"
#include "parallel/comm_nccl.h"
#include "tests/parallel/cuda/engine_problem.h"
#include "tests/support/processes.h"

namespace annulus::parallel {
namespace {

using kernels::CudaQueue;
using kernels::Precision;

constexpr int kNoGpu = 77, kNoNccl = 78;

void be_a_host_of_its_own(int32_t rank) {
  setenv("NCCL_HOSTID", ("rank" + std::to_string(rank)).c_str(), 1);
  for (const auto& [name, value] : {std::pair{"NCCL_NET", "Socket"},
                                    {"NCCL_IB_DISABLE", "1"},
                                    {"NCCL_SOCKET_IFNAME", "lo"},
                                    {"NCCL_SOCKET_FAMILY", "AF_INET"},
                                    {"NCCL_P2P_DISABLE", "1"},
                                    {"NCCL_SHM_DISABLE", "1"},
                                    {"NCCL_MNNVL_ENABLE", "0"},
                                    {"NCCL_NVLS_ENABLE", "0"},
                                    {"NCCL_RAS_ENABLE", "0"},
                                    {"NCCL_CUMEM_HOST_ENABLE", "0"},
                                    {"NCCL_MAX_CTAS", "2"},
                                    {"NCCL_ALGO", "Ring"},
                                    {"NCCL_PROTO", "Simple"},
                                    {"NCCL_DEBUG", "WARN"},
                                    {"CUDA_MODULE_LOADING", "EAGER"}}) {
    setenv(name, value, 1);
  }
}

// What one rank answers, a StepResult a step, each behind its length, into a file.
int run_rank(const EngineProblem& problem, Topology topology, Variant variant, int32_t me,
             annulus::testing::Blackboard& board, const std::string& file) {
  be_a_host_of_its_own(me);
  if (!kernels::find_cuda_device(0).ok()) return kNoGpu;
  const auto nccl = load_nccl();
  if (!nccl.ok()) return kNoNccl;
  auto queue = std::make_unique<CudaQueue>(0);
  if (const auto cublas = kernels::load_cublaslt(); cublas.ok()) queue->use(**cublas);
  std::unique_ptr<Rank> rank;  // outlives the world, as a worker's does
  auto world = NcclWorld::create(**nccl, topology, me, 1).value();
  board.write(me, world->address());
  if (const absl::Status joined = world->connect(board.read_all()); !joined.ok()) {
    std::fprintf(stderr, "rank %d: %s\n", me, joined.ToString().c_str());
    return 1;
  }
  rank = problem.rank_on(std::move(queue), world->groups(), topology, me);
  rank->measure();
  std::ofstream out(file, std::ios::binary);
  problem.run(*rank, topology, me, variant, [&](size_t, const auto& wanted) {
    StepResult result;
    result.wanted = wanted;
    const std::string bytes = encode(result);
    const auto size = static_cast<uint64_t>(bytes.size());
    out.write(reinterpret_cast<const char*>(&size), sizeof(size)) << bytes;
  });
  out.flush();
  return ::testing::Test::HasFailure() || !out ? 1 : 0;
}

class NcclOnOneGpu : public ::testing::TestWithParam<std::tuple<Topology, Variant, Precision>> {};

TEST_P(NcclOnOneGpu, AnswersAsOneRankOnACpu) {
  const auto [topology, variant, precision] = GetParam();
  const EngineProblem problem(precision, EngineProblem::tiny(precision, topology.tp));
  const std::string folder = annulus::testing::scratch_directory();
  annulus::testing::Blackboard board(topology.world());
  std::vector<pid_t> children;
  const auto file_of = [&](int32_t r) { return folder + "/" + std::to_string(r); };
  for (int32_t r = 0; r < topology.world(); ++r) {
    children.push_back(annulus::testing::fork_child([&, r, topology = topology, variant = variant] {
      alarm(120);  // a rank whose peer is lost spins for ever
      return run_rank(problem, topology, variant, r, board, file_of(r));
    }));
  }
  std::vector<int> ends;
  for (const pid_t child : children) ends.push_back(annulus::testing::wait_child(child));
  if (ends[0] == kNoGpu) GTEST_SKIP() << "no GPU of compute capability 9.0";
  if (ends[0] == kNoNccl) GTEST_SKIP() << "NCCL is not here";
  Answers answers(problem.of_cpu.size());
  for (int32_t r = 0; r < topology.world(); ++r) {
    ASSERT_EQ(ends[static_cast<size_t>(r)], 0) << "rank " << r;
    std::ifstream in(file_of(r), std::ios::binary);
    for (auto& step : answers) {
      uint64_t size = 0;
      ASSERT_TRUE(in.read(reinterpret_cast<char*>(&size), sizeof(size))) << "rank " << r;
      std::string bytes(size, '\0');
      ASSERT_TRUE(in.read(bytes.data(), static_cast<std::streamsize>(size))) << "rank " << r;
      const auto result = decode_result(bytes).value();
      step.insert(step.end(), result.wanted.begin(), result.wanted.end());
    }
  }
  problem.expect_equal(answers);
}

// Ranks take turns on the GPU, some milliseconds a turn: a layout runs where it can show something
// of its own. Without CP the variants are one.
INSTANTIATE_TEST_SUITE_P(Cp, NcclOnOneGpu,
                         ::testing::Combine(::testing::Values(Topology{1, 2}, Topology{1, 3},
                                                              Topology{1, 4}, Topology{2, 2},
                                                              Topology{3, 2}),
                                            ::testing::Values(Variant::kPassKv, Variant::kPassQ),
                                            ::testing::Values(Precision::kF32)));
INSTANTIATE_TEST_SUITE_P(Tp, NcclOnOneGpu,
                         ::testing::Combine(::testing::Values(Topology{2, 1}, Topology{3, 1}),
                                            ::testing::Values(Variant::kPassKv),
                                            ::testing::Values(Precision::kF32)));
INSTANTIATE_TEST_SUITE_P(Bf16, NcclOnOneGpu,
                         ::testing::Combine(::testing::Values(Topology{3, 2}),
                                            ::testing::Values(Variant::kPassKv),
                                            ::testing::Values(Precision::kDefault)));

}  // namespace
}  // namespace annulus::parallel
