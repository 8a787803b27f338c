// SPDX-License-Identifier: Apache-2.0
#include "tests/parallel/cuda/scripted_nccl.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
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
using parallel::NcclWindow;

constexpr int kCudaError = 1, kInternalError = 3, kRemoteError = 6;

struct Message {
  std::vector<std::byte> bytes;
  bool captured = false;  // sent by a graph
  bool taken = false;
};
struct Sum {
  std::vector<std::vector<float>> parts;  // by rank
  std::vector<float*> shared;             // by rank: in symmetric memory, instead of parts
  std::vector<ptrdiff_t> places;          // there, or -1
  int arrived = 0;
  bool captured = false;
  bool done = false;  // in symmetric memory: all ranks have it
};
constexpr char kUneven[] = "a transfer is captured on one rank and not on another";
// One communicator over all its ranks.
struct World {
  explicit World(int ranks) : size(ranks) {}
  const int size;
  std::mutex mutex;  // guards the rest
  int joined = 0, registered = 0;
  bool broken = false;                                                       // a rank has aborted
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
  std::byte* shared = nullptr;  // registered memory
  size_t shared_bytes = 0;
  NcclWindow* registering = nullptr;  // what to fill
  int error = kNcclSuccess;           // for good
};
std::mutex shared_mutex;                 // guards the rest
std::map<std::byte*, size_t> allocated;  // symmetric memory
std::set<std::byte*> windows;            // what of it is registered
NcclSums counted;

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
  World& world = *member.world;
  const std::lock_guard lock(world.mutex);
  bool waits = world.joined < world.size || member.polls > 0;
  if (member.polls > 0) --member.polls;
  if (!waits && member.registering != nullptr) {
    waits = world.registered < world.size;
    if (!waits) {
      const bool fails = (nccl_script().fails_window >> member.rank & 1) != 0;
      if (fails) member.error = kInternalError;
      *std::exchange(member.registering, nullptr) =
          fails ? nullptr : reinterpret_cast<NcclWindow>(&member);
    }
  }
  *error = waits ? kNcclInProgress : member.error;
  return kNcclSuccess;
}

int mem_alloc(void** data, size_t bytes) {
  if (nccl_script().no_memory.exchange(false)) return kCudaError;
  auto* const memory =
      static_cast<std::byte*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096));
  std::memset(memory, 0xff, bytes);
  const std::lock_guard lock(shared_mutex);
  allocated[memory] = bytes;
  ++nccl_script().live_memory;
  *data = memory;
  return kNcclSuccess;
}

// Waits for nothing: that the GPU is done with the memory is the caller's affair.
int mem_free(void* data) {
  const int64_t before = cuda_emulation::host_waits();
  cudaDeviceSynchronize();
  ANNULUS_CHECK(cuda_emulation::host_waits() == before, "memory goes while the GPU may use it");
  auto* const memory = static_cast<std::byte*>(data);
  const std::lock_guard lock(shared_mutex);
  ANNULUS_CHECK(allocated.erase(memory) == 1, "memory that is none");
  ANNULUS_CHECK(!windows.contains(memory), "memory goes before its communicator");
  std::free(memory);
  --nccl_script().live_memory;
  return kNcclSuccess;
}

int comm_window_register(NcclComm comm, void* data, size_t bytes, NcclWindow* window, int flags) {
  ANNULUS_CHECK(nccl_script().version >= parallel::kNcclSymmetricOldest,
                "kernels of this version do not end when they are aborted");
  ANNULUS_CHECK(flags == parallel::kNcclSymmetricWindow && !grouped, "flags ", flags);
  Member& member = *comm->member;
  *window = nullptr;
  if ((nccl_script().without_window >> member.rank & 1) != 0) return kNcclSuccess;
  auto* const memory = static_cast<std::byte*>(data);
  {
    const std::lock_guard lock(shared_mutex);
    ANNULUS_CHECK(allocated.at(memory) >= bytes && windows.insert(memory).second,
                  "registered twice");
  }
  const std::lock_guard lock(member.world->mutex);
  ++member.world->registered;
  member.shared = memory;
  member.shared_bytes = bytes;
  member.registering = window;
  return in_progress(comm);
}

// Frees memory, which waits for the kernels of every communicator: they are aborted as a group.
int comm_abort(NcclComm comm) {
  ANNULUS_CHECK(grouped, "aborted alone");
  {
    const std::lock_guard lock(comm->member->world->mutex);
    comm->member->aborted = true;
    comm->member->world->broken = true;
  }
  for (int i = 0; i < 200 && comm->member->held.use_count() > 1; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ANNULUS_CHECK(comm->member->held.use_count() == 1,
                "an abort waits for graphs that hold the communicator");
  while (nccl_script().abort_hangs) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  {
    const std::lock_guard lock(shared_mutex);
    windows.erase(comm->member->shared);
  }
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

// Each part of the values begins at another rank, as a ring's does.
std::vector<float> sum_of(const std::vector<const float*>& parts, size_t count) {
  std::vector<float> out(count, 0.0f);
  const size_t ranks = parts.size();
  for (size_t r = 0; r < ranks; ++r) {
    for (size_t i = 0; i < count; ++i) out[i] += parts[(i + r) % ranks][i];
  }
  return out;
}

int all_reduce(const void* from, void* to, size_t count, int type, int op, NcclComm comm,
               cudaStream_t stream) {
  ANNULUS_CHECK(type == parallel::kNcclFloat32 && op == parallel::kNcclSum && !grouped, type);
  const std::shared_ptr<Member> member = comm->member;
  const size_t bytes = count * sizeof(float);
  const ptrdiff_t into = static_cast<std::byte*>(to) - member->shared;
  const bool shared =
      member->shared != nullptr && into >= 0 && into < static_cast<ptrdiff_t>(member->shared_bytes);
  ANNULUS_CHECK(
      !shared || (from == to && static_cast<size_t>(into) + bytes <= member->shared_bytes),
      "a sum leaves symmetric memory");
  const auto make = [member, from, to, count, bytes, shared, into,
                     held = member->held](bool captured) {
    {
      const std::lock_guard lock(shared_mutex);
      ++(shared ? counted.symmetric : counted.plain)[bytes];
    }
    const int64_t number = member->reductions++;
    return [member, number, from, to, count, shared, into, captured, posted = false]() mutable {
      if (member->aborted) return true;
      World& world = *member->world;
      const std::lock_guard lock(world.mutex);
      Sum& sum = world.sums[number];
      const auto ranks = static_cast<size_t>(world.size), me = static_cast<size_t>(member->rank);
      const auto* values = static_cast<const float*>(from);
      if (!posted) {
        posted = true;
        ANNULUS_CHECK(sum.arrived == 0 || sum.captured == captured, kUneven);
        sum.captured = captured;
        sum.parts.resize(ranks);
        sum.shared.resize(ranks);
        sum.places.push_back(shared ? into : -1);
        ANNULUS_CHECK(sum.places.front() == sum.places.back(), "ranks sum at two places");
        if (shared) sum.shared[me] = static_cast<float*>(to);
        if (!shared) sum.parts[me].assign(values, values + count);
        ++sum.arrived;
      }
      if (sum.done) return true;
      if (sum.arrived < world.size || (shared && world.broken)) return false;
      std::vector<const float*> parts;
      for (size_t r = 0; r < ranks; ++r) {
        ANNULUS_CHECK(shared || sum.parts[r].size() == count, sum.parts[r].size(), " and ", count);
        parts.push_back(shared ? sum.shared[r] : sum.parts[r].data());
      }
      const std::vector<float> out = sum_of(parts, count);
      if (!shared) std::copy(out.begin(), out.end(), static_cast<float*>(to));
      if (shared) {  // the last to come does everybody's
        for (float* const theirs : sum.shared) std::copy(out.begin(), out.end(), theirs);
        sum.done = true;
      }
      return true;
    };
  };
  cuda_emulation::enqueue_waiting(stream, make);
  return in_progress(comm);
}

const char* get_error_string(int result) {
  if (result == kRemoteError) return "remote process exited or there was a network error";
  if (result == kCudaError) return "unhandled cuda error";
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

NcclSums take_nccl_sums() {
  const std::lock_guard lock(shared_mutex);
  return std::exchange(counted, {});
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
                                        get_last_error,
                                        mem_alloc,
                                        mem_free,
                                        comm_window_register};
  return api;
}

}  // namespace annulus::testing
