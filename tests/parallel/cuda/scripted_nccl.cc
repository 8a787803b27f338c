// SPDX-License-Identifier: Apache-2.0
#include "tests/parallel/cuda/scripted_nccl.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/core/check.h"

namespace annulus::testing {
namespace {

using parallel::kNcclInProgress;
using parallel::kNcclSuccess;
using parallel::NcclApi;
using parallel::NcclComm;
using parallel::NcclConfig;
using parallel::NcclId;

constexpr int kInternalError = 3, kRemoteError = 6;

struct Message {
  std::vector<std::byte> bytes;
  bool captured = false;  // sent by a graph
  bool taken = false;
};
struct Sum {
  std::vector<std::vector<float>> parts;  // by rank
  int arrived = 0;
  bool captured = false;
};
constexpr char kUneven[] = "a transfer is captured on one rank and not on another";
// One communicator over all its ranks.
struct World {
  explicit World(int ranks) : size(ranks) {}
  const int size;
  std::mutex mutex;  // guards the rest
  int joined = 0;
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Message>>> mail;  // (from, to)
  std::map<int64_t, Sum> sums;
};
std::mutex worlds_mutex;
std::map<std::string, std::shared_ptr<World>> worlds;
int64_t ids = 0;

// What streams hold on to: it outlives the handle.
struct Member {
  std::shared_ptr<World> world;
  int rank = 0;
  std::atomic<bool> aborted{false};
  std::atomic<int> polls{0};
  int64_t reductions = 0;
  // Beside the member, those who hold it are the graphs in which it has work.
  std::shared_ptr<int> held = std::make_shared<int>();
};

}  // namespace
}  // namespace annulus::testing

struct annulus::parallel::NcclCommOpaque {
  std::shared_ptr<annulus::testing::Member> member;
};

namespace annulus::testing {
namespace {

struct Pending {
  std::shared_ptr<Member> member;
  bool sends = false;
  const void* from = nullptr;
  void* to = nullptr;
  size_t bytes = 0;
  int peer = 0;
  cudaStream_t stream = nullptr;
};
thread_local bool grouped = false;
thread_local std::vector<Pending> group;

int in_progress(NcclComm comm) {
  comm->member->polls = nccl_script().polls.load();
  return kNcclInProgress;
}

int get_version(int* version) {
  *version = nccl_script().version;
  return kNcclSuccess;
}

int get_unique_id(NcclId* id) {
  const std::lock_guard lock(worlds_mutex);
  *id = {};
  const std::string text = "scripted " + std::to_string(++ids);
  std::copy(text.begin(), text.end(), id->bytes);
  return kNcclSuccess;
}

int comm_init_rank_config(NcclComm* comm, int ranks, NcclId id, int rank, NcclConfig* config) {
  ANNULUS_CHECK(config->blocking == 0 && config->magic == 0xcafebeef, "a blocking communicator");
  auto member = std::make_shared<Member>();
  {
    const std::lock_guard lock(worlds_mutex);
    std::shared_ptr<World>& world = worlds[std::string(id.bytes)];
    if (!world) world = std::make_shared<World>(ranks);
    ANNULUS_CHECK(world->size == ranks && rank >= 0 && rank < ranks, rank, " of ", ranks);
    const std::lock_guard joining(world->mutex);
    ++world->joined;
    member->world = world;
    member->rank = rank;
  }
  ++nccl_script().live;
  *comm = new parallel::NcclCommOpaque{std::move(member)};
  return in_progress(*comm);
}

int comm_get_async_error(NcclComm comm, int* error) {
  Member& member = *comm->member;
  if (nccl_script().async_error) {
    *error = kRemoteError;
    return kNcclSuccess;
  }
  const std::lock_guard lock(member.world->mutex);
  const bool waits = member.world->joined < member.world->size || member.polls > 0;
  if (member.polls > 0) --member.polls;
  *error = waits ? kNcclInProgress : kNcclSuccess;
  return kNcclSuccess;
}

// Frees memory, which waits for the kernels of every communicator: they are aborted as a group.
int comm_abort(NcclComm comm) {
  ANNULUS_CHECK(grouped, "aborted alone");
  comm->member->aborted = true;
  ANNULUS_CHECK(comm->member->held.use_count() == 1,
                "an abort waits for graphs that hold the communicator");
  while (nccl_script().abort_hangs) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  delete comm;
  --nccl_script().live;
  return kNcclSuccess;
}

int group_start() {
  ANNULUS_CHECK(!grouped, "groups do not nest here");
  grouped = true;
  return kNcclSuccess;
}

// Everything of one group at once: all is posted, then all must come.
struct Exchange {
  std::vector<Pending> parts;
  std::vector<std::shared_ptr<Message>> sent;
  bool captured = false;
  std::vector<bool> came;
  bool posted = false;

  bool run() {
    World& world = *parts[0].member->world;
    const int me = parts[0].member->rank;
    if (parts[0].member->aborted) return true;  // the kernel ends; what came, came
    const std::lock_guard lock(world.mutex);
    if (!posted) {
      posted = true;
      came.assign(parts.size(), false);
      for (const Pending& part : parts) {
        if (!part.sends) continue;
        const auto* from = static_cast<const std::byte*>(part.from);
        auto message = std::make_shared<Message>();
        message->bytes.assign(from, from + part.bytes);
        message->captured = captured;
        world.mail[{me, part.peer}].push_back(message);
        sent.push_back(message);
      }
    }
    bool all = true;
    std::map<int, bool> waits;  // by peer: receives come in order
    for (size_t i = 0; i < parts.size(); ++i) {
      const Pending& part = parts[i];
      if (part.sends || came[i]) continue;
      auto& box = world.mail[{part.peer, me}];
      if (box.empty() || waits[part.peer]) {
        waits[part.peer] = true;
        all = false;
        continue;
      }
      ANNULUS_CHECK(box.front()->bytes.size() == part.bytes, "rank ", me, " expects ", part.bytes,
                    " bytes of rank ", part.peer, ", which sends ", box.front()->bytes.size());
      ANNULUS_CHECK(box.front()->captured == captured, kUneven);
      std::memcpy(part.to, box.front()->bytes.data(), part.bytes);
      box.front()->taken = true;
      box.pop_front();
      came[i] = true;
    }
    return all && std::all_of(sent.begin(), sent.end(), [](const auto& m) { return m->taken; });
  }
};

int group_end() {
  grouped = false;
  if (group.empty()) return kNcclSuccess;
  const std::vector<Pending> parts = std::exchange(group, {});
  for (const Pending& part : parts) {
    ANNULUS_CHECK(part.member == parts[0].member && part.stream == parts[0].stream,
                  "a group of two communicators or streams");
    part.member->polls = nccl_script().polls.load();
  }
  cuda_emulation::enqueue_waiting(parts[0].stream,
                                  [parts, held = parts[0].member->held](bool captured) {
                                    auto exchange = std::make_shared<Exchange>();
                                    exchange->parts = parts;
                                    exchange->captured = captured;
                                    return [exchange] { return exchange->run(); };
                                  });
  return kNcclInProgress;
}

int post(Pending part) {
  ANNULUS_CHECK(grouped, "a send or receive outside a group deadlocks");
  ANNULUS_CHECK(
      part.peer >= 0 && part.peer < part.member->world->size && part.peer != part.member->rank,
      "peer ", part.peer);
  group.push_back(std::move(part));
  return kNcclSuccess;
}

int send(const void* data, size_t count, int type, int peer, NcclComm comm, cudaStream_t stream) {
  ANNULUS_CHECK(type == parallel::kNcclUint8, "type ", type);
  return post({comm->member, true, data, nullptr, count, peer, stream});
}
int recv(void* data, size_t count, int type, int peer, NcclComm comm, cudaStream_t stream) {
  ANNULUS_CHECK(type == parallel::kNcclUint8, "type ", type);
  return post({comm->member, false, nullptr, data, count, peer, stream});
}

int all_reduce(const void* from, void* to, size_t count, int type, int op, NcclComm comm,
               cudaStream_t stream) {
  ANNULUS_CHECK(type == parallel::kNcclFloat32 && op == parallel::kNcclSum && !grouped, type);
  const std::shared_ptr<Member> member = comm->member;
  const auto make = [member, from, to, count, held = member->held](bool captured) {
    const int64_t number = member->reductions++;
    return [member, number, from, to, count, captured, posted = false]() mutable {
      if (member->aborted) return true;
      World& world = *member->world;
      const std::lock_guard lock(world.mutex);
      Sum& sum = world.sums[number];
      if (!posted) {
        posted = true;
        ANNULUS_CHECK(sum.arrived == 0 || sum.captured == captured, kUneven);
        sum.captured = captured;
        sum.parts.resize(static_cast<size_t>(world.size));
        const auto* values = static_cast<const float*>(from);
        sum.parts[static_cast<size_t>(member->rank)].assign(values, values + count);
        ++sum.arrived;
      }
      if (sum.arrived < world.size) return false;
      auto* out = static_cast<float*>(to);
      std::fill_n(out, count, 0.0f);
      // Each part of the values begins at another rank, as a ring's does.
      const auto ranks = static_cast<size_t>(world.size);
      for (size_t r = 0; r < ranks; ++r) {
        ANNULUS_CHECK(sum.parts[r].size() == count, sum.parts[r].size(), " and ", count);
        for (size_t i = 0; i < count; ++i) out[i] += sum.parts[(i + r) % ranks][i];
      }
      return true;
    };
  };
  cuda_emulation::enqueue_waiting(stream, make);
  return in_progress(comm);
}

const char* get_error_string(int result) {
  if (result == kRemoteError) return "remote process exited or there was a network error";
  return result == kInternalError ? "internal error" : "no error";
}
const char* get_last_error(NcclComm) {
  return "";
}

}  // namespace

NcclScript& nccl_script() {
  static NcclScript script;
  return script;
}

const parallel::NcclApi& scripted_nccl() {
  static const parallel::NcclApi api = {get_version,
                                        get_unique_id,
                                        comm_init_rank_config,
                                        comm_get_async_error,
                                        comm_abort,
                                        group_start,
                                        group_end,
                                        send,
                                        recv,
                                        all_reduce,
                                        get_error_string,
                                        get_last_error};
  return api;
}

}  // namespace annulus::testing
