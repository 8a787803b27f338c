// SPDX-License-Identifier: Apache-2.0
// Worlds of every backend for the conformance suite: on_ranks() runs fn on every rank of a new
// world, each rank a thread with its own queue; UCX ranks each have their own UcxWorld.
#pragma once

#include <gtest/gtest.h>

#include <barrier>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "parallel/comm_threads.h"
#include "parallel/comm_ucx.h"
#include "tests/support/run_ranks.h"

namespace annulus::parallel {

enum class Backend { kThreads, kUcxShared, kUcxTcp };

using kernels::CpuQueue;
using Ring = Communicator<CpuQueue>;
using RankFn = std::function<void(int32_t world_rank, Groups<CpuQueue> groups, CpuQueue& queue)>;

inline std::string name(Backend backend) {
  constexpr const char* kNames[] = {"threads", "ucx_shared", "ucx_tcp"};
  return kNames[static_cast<size_t>(backend)];
}

inline UcxOptions ucx_options(Backend backend) {
  UcxOptions options;
  options.transports = backend == Backend::kUcxTcp ? kTcpTransports : kLocalTransports;
  return options;
}

// A bug must end the test, not hang it; long enough for a busy machine.
inline void limit_waits(Groups<CpuQueue> groups, std::chrono::milliseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  for (Ring* ring : {groups.tp, groups.cp, groups.world}) ring->set_deadline(deadline);
}

inline void on_ranks(Backend backend, Topology topology, const RankFn& fn) {
  const int32_t n = topology.world();
  if (backend == Backend::kThreads) {
    ThreadWorld world(topology);
    annulus::testing::run_ranks(n, [&](int32_t rank) {
      CpuQueue queue(1);
      limit_waits(world.groups(rank), std::chrono::seconds(90));
      fn(rank, world.groups(rank), queue);
    });
    return;
  }
  std::vector<std::unique_ptr<UcxWorld>> worlds(static_cast<size_t>(n));
  std::vector<std::string> addresses(static_cast<size_t>(n));
  std::barrier all_created(n), all_connected(n);
  const auto abort_all = [&] {
    for (const auto& world : worlds)
      if (world != nullptr) world->abort("another rank of this test failed");
  };
  annulus::testing::run_ranks(n, [&](int32_t rank) {
    const size_t me = static_cast<size_t>(rank);
    auto world = UcxWorld::create(topology, rank, 7, ucx_options(backend));
    if (world.ok()) addresses[me] = (*world)->address();
    all_created.arrive_and_wait();
    const absl::Status status = world.ok() ? (*world)->connect(addresses) : world.status();
    if (status.ok()) worlds[me] = *std::move(world);
    all_connected.arrive_and_wait();
    if (!status.ok()) throw std::runtime_error(status.ToString());
    CpuQueue queue(1);
    limit_waits(worlds[me]->groups(), std::chrono::seconds(90));
    try {
      fn(rank, worlds[me]->groups(), queue);
    } catch (...) {
      abort_all();
      throw;
    }
    if (::testing::Test::HasFatalFailure()) abort_all();
  });
}

template <class T>
ConstBytes bytes_of(const std::vector<T>& v) {
  return std::as_bytes(std::span<const T>(v));
}
template <class T>
Bytes room_of(std::vector<T>& v) {
  return std::as_writable_bytes(std::span<T>(v));
}

// Value i of what rank `from` says in round `round`.
inline int32_t word(int64_t from, int64_t round, int64_t i) {
  return static_cast<int32_t>(from * 1000003 + round * 7919 + i);
}
inline std::vector<int32_t> words(int64_t count, int64_t from, int64_t round) {
  std::vector<int32_t> v(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) v[static_cast<size_t>(i)] = word(from, round, i);
  return v;
}

class OnWorlds : public ::testing::TestWithParam<std::tuple<Backend, int>> {
 protected:
  Backend backend() const { return std::get<0>(GetParam()); }
  int32_t size() const { return std::get<1>(GetParam()); }
  void on_ring(const std::function<void(Ring& ring, CpuQueue& queue)>& fn) const {
    on_ranks(backend(), {.tp = 1, .cp = size()},
             [&](int32_t, Groups<CpuQueue> groups, CpuQueue& queue) { fn(*groups.cp, queue); });
  }
};

inline std::string world_name(const ::testing::TestParamInfo<std::tuple<Backend, int>>& info) {
  return name(std::get<0>(info.param)) + "_" + std::to_string(std::get<1>(info.param));
}

inline std::string backend_name(const ::testing::TestParamInfo<Backend>& info) {
  return name(info.param);
}

inline auto every_world() {
  std::vector<std::tuple<Backend, int>> worlds;
  for (const Backend backend : {Backend::kThreads, Backend::kUcxShared})
    for (int n = 1; n <= 4; ++n) worlds.emplace_back(backend, n);
  worlds.emplace_back(Backend::kUcxTcp, 2);
  worlds.emplace_back(Backend::kUcxTcp, 3);
  return ::testing::ValuesIn(worlds);
}

}  // namespace annulus::parallel
