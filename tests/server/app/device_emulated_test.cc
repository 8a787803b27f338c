// SPDX-License-Identifier: Apache-2.0
// What a worker's GPU says it has room for, on an emulated one.
#include <gtest/gtest.h>

#include <cuda_runtime.h>

#include <memory>
#include <optional>
#include <string>

#include "kernels/cuda/matrix.h"
#include "kernels/cuda/queue.h"
#include "parallel/comm_nccl.h"
#include "server/app/device_on.h"
#include "tests/support/tiny_model.h"

namespace annulus::server {
namespace {

// A worker's GPU without the libraries.
struct EmulatedGpu {
  using Queue = kernels::CudaQueue;
  using World = parallel::NcclWorld;

  std::string name() const { return "emulated"; }
  std::string fault() const { return ""; }
  absl::Status ready_for(const EpochWish&) const { return absl::OkStatus(); }
  absl::StatusOr<std::optional<DeviceRoom>> room() const {
    return DeviceRoom{.device = name(),
                      .free_bytes = kernels::free_cuda_bytes({0, name()}).value()};
  }
  std::unique_ptr<Queue> queue(bool) const { return std::make_unique<Queue>(0); }
  std::unique_ptr<Queue> loader() const { return std::make_unique<Queue>(0); }
  absl::StatusOr<std::unique_ptr<World>> world(parallel::Topology topology, int32_t world_rank,
                                               int64_t epoch) const {
    static constexpr parallel::NcclApi kNone = {};
    return World::create(kNone, topology, world_rank, epoch);
  }
  static std::string transports(World&, int32_t) { return ""; }
  static std::map<std::string, std::string> versions() { return {}; }
};

TEST(GpuRoom, IsWhatTheDriverSaysIsFree) {
  cuda_emulation::free_bytes = 12345678;
  const auto rooms = room_of_gpus(1);
  ASSERT_TRUE(rooms.ok()) << rooms.status();
  ASSERT_EQ(rooms->size(), 1u);
  EXPECT_EQ((*rooms)[0].device, "GPU 0 (emulated)");
  EXPECT_EQ((*rooms)[0].free_bytes, 12345678);
  EXPECT_EQ((*rooms)[0].held_bytes, 0);
  EXPECT_NE(room_of_gpus(2).status().message().find("there is no GPU 1"), std::string::npos);
}

// A rank whose weights are there from the epoch before goes on in a GPU that they fill.
TEST(GpuRoom, WeightsOfTheLastEpochCountAsHeld) {
  const std::string path = testing::scratch_directory() + "/model.gguf";
  testing::write_gguf({}, path);
  const auto checkpoint = parallel::Checkpoint::open(path);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  DeviceOn<EmulatedGpu> device(EmulatedGpu{});
  const WeightKey key = {checkpoint->fingerprint(), 1, 0, kernels::Precision::kDefault};
  const EpochWish wish{{1, 1}, false};
  parallel::MemoryQuestion question;
  question.context = 1000;
  question.gpu = true;
  const parallel::RankMemory needs = parallel::rank_memory(*checkpoint, question);
  const auto libraries = static_cast<int64_t>(kLibrariesGib * kGib);
  const auto fits = [&] { return check_room(*checkpoint, question, **device.room()).ok(); };
  {
    const auto epoch = device.begin(1, wish, 0, key);
    ASSERT_TRUE(epoch.ok()) << epoch.status();
    cuda_emulation::free_bytes = static_cast<size_t>(libraries + needs.total());
    EXPECT_TRUE(fits());
    cuda_emulation::free_bytes -= 1;
    EXPECT_FALSE(fits());
    ASSERT_TRUE((*epoch)->load(*checkpoint, {}, {}).ok());
  }
  cuda_emulation::free_bytes = static_cast<size_t>(libraries + needs.total() - needs.weight_bytes);
  EXPECT_EQ((**device.room()).held_bytes, needs.weight_bytes);
  ASSERT_TRUE(device.begin(2, wish, 0, key).ok());
  EXPECT_TRUE(fits());
  WeightKey other = key;
  other.precision = kernels::Precision::kF32;
  ASSERT_TRUE(device.begin(3, wish, 0, other).ok());  // drops them
  EXPECT_FALSE(fits());
}

}  // namespace
}  // namespace annulus::server
