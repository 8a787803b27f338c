// SPDX-License-Identifier: Apache-2.0
#include "parallel/comm_nccl.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/cuda/launch.h"
#include "parallel/comm_address.h"
#include "parallel/comm_ids.h"

namespace annulus::parallel {
namespace {

using kernels::check_cuda;
using kernels::CudaQueue;
using kernels::DeviceError;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kSpin{20}, kSleep{50};
// The last: the TP group's small sums.
constexpr std::array kGroupIds = {GroupId::kWorld, GroupId::kTp, GroupId::kCp, GroupId::kTp};
constexpr size_t kTp = 1, kSums = 3;

bool has_symmetric_memory(const NcclApi& api) {
  int version = 0;
  return api.mem_alloc != nullptr && api.mem_free != nullptr &&
         api.comm_window_register != nullptr && api.get_version(&version) == kNcclSuccess &&
         version >= kNcclSymmetricOldest;
}

size_t index(int64_t i) {
  return static_cast<size_t>(i);
}

// What the groups of one rank share. No two threads may be inside NCCL at once: every call is made
// under `calls`, and none waits there.
struct State {
  State(const NcclApi& nccl, const NcclOptions& given) : api(nccl), options(given) {}

  const NcclApi& api;
  NcclOptions options;
  AbortFlag flag;
  std::mutex calls;
  std::vector<NcclComm> comms;  // guarded by calls
  std::mutex holders;
  std::set<std::shared_ptr<kernels::CudaGraphs>> graphs;  // that hold transfers; guarded by holders
  int device = 0;
  Clock::time_point deadline = Clock::time_point::max();
  cudaStream_t hops = nullptr;

  std::string reason(NcclComm comm, int result) const {
    std::string text = api.get_error_string(result);
    if (const char* more = api.get_last_error(comm); more != nullptr && *more != '\0') {
      text += kernels::concat(" (", more, ")");
    }
    return text;
  }

  // call(), and whatever it has begun: success, or what went wrong.
  template <class Call>
  std::string finish(const NcclComm& comm, const Call& call, Clock::time_point until) {
    int result = kNcclInProgress;
    const Clock::time_point began = Clock::now();
    for (bool first = true;;) {
      // Not behind an abort, which may wait for what this thread is capturing.
      if (const std::unique_lock lock(calls, std::try_to_lock); lock.owns_lock()) {
        if (flag.raised()) return "aborted: " + flag.why();
        if (first) {
          result = call();
        } else if (const int asked = api.comm_get_async_error(comm, &result);
                   asked != kNcclSuccess) {
          result = asked;
        }
        first = false;
        if (result == kNcclSuccess) return "";
        if (result != kNcclInProgress) return reason(comm, result);
      } else if (flag.raised()) {
        return "aborted: " + flag.why();
      }
      const Clock::time_point now = Clock::now();
      if (now > until) return "NCCL has not answered by the deadline";
      if (now - began > kSpin) std::this_thread::sleep_for(kSleep);
    }
  }

  // From any thread.
  void abort(const std::string& why) {
    flag.raise(why);
    within_limit(why, [&] {
      {
        const std::lock_guard held(holders);
        for (const auto& each : graphs) each->end();  // an abort waits for them
        graphs.clear();
      }
      const std::lock_guard lock(calls);
      abort_all(std::exchange(comms, {}));
    });
  }
  // One in which nothing runs, for good; none where it was aborted with the others. It waits for no
  // other rank.
  void drop(NcclComm comm, const std::string& why) {
    within_limit(why, [&] {
      const std::lock_guard lock(calls);
      if (std::erase(comms, comm) > 0) abort_all({comm});
    });
  }

 private:
  // As one group: an abort frees memory, which waits for the other groups' kernels, which end only
  // when they are aborted too.
  void abort_all(const std::vector<NcclComm>& which) {
    if (which.empty()) return;  // one rank has none, and no NCCL
    api.group_start();
    for (NcclComm comm : which) api.comm_abort(comm);
    api.group_end();
  }
  // What may hang: then the process ends.
  template <class Body>
  void within_limit(const std::string& why, const Body& body) {
    std::promise<void> done;
    std::thread helper([&] {
      cudaSetDevice(device);
      body();
      done.set_value();
    });
    if (done.get_future().wait_for(options.abort_limit) != std::future_status::ready) {
      std::fprintf(stderr, "annulus: NCCL cannot be aborted (%s); this process ends\n",
                   why.c_str());
      std::_Exit(kNcclHungExit);
    }
    helper.join();
  }
};

class NcclGroup final : public Communicator<CudaQueue> {
 public:
  NcclGroup(State& state, GroupId group, const Topology& topology, int32_t world_rank)
      : state_(state),
        group_(group),
        members_(group_members(topology, group, world_rank)),
        rank_(group_rank(topology, group, world_rank)) {
    for (cudaEvent_t& event : events_) {
      check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
    }
  }
  ~NcclGroup() override {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
  }

  // Collective over the group.
  absl::Status open(const NcclId& id, Clock::time_point until) {
    if (size() == 1) return absl::OkStatus();
    NcclConfig config;
    config.blocking = 0;
    const std::string wrong = state_.finish(
        comm_,
        [&] {
          const int result = state_.api.comm_init_rank_config(&comm_, size(), id, rank_, &config);
          if (comm_ != nullptr) state_.comms.push_back(comm_);
          return result;
        },
        until);
    if (wrong.empty()) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("NCCL, ", name(group_), " group of ", size(),
                                               " ranks, rank ", rank_, ": ", wrong));
  }

  // After open(): memory of all ranks, registered with this communicator, or why there is none.
  // What is given is NCCL's to fill until the communicator is aborted.
  std::string share_memory(void*& data, NcclWindow& window, Clock::time_point until) {
    const NcclApi& api = state_.api;
    const auto bytes = static_cast<size_t>(state_.options.symmetric_bytes);
    std::string wrong = state_.finish(
        comm_, [&] { return api.mem_alloc(&data, bytes); }, until);
    if (!wrong.empty()) {
      data = nullptr;
      return wrong;
    }
    return state_.finish(
        comm_,
        [&] { return api.comm_window_register(comm_, data, bytes, &window, kNcclSymmetricWindow); },
        until);
  }
  // Sums in this memory go there from here on; both live as long as this.
  void sum_small_by(NcclGroup& sums, Bytes memory) {
    sums_ = &sums;
    symmetric_ = memory;
  }
  // It is not used again.
  void give_up(const std::string& why) { state_.drop(std::exchange(comm_, nullptr), why); }
  // Whether all ranks of the group say so. Throws where a peer is lost.
  bool all_agree(CudaQueue& queue, bool mine, Clock::time_point until) {
    const float yes = mine ? 1.0f : 0.0f;
    float sum = 0;
    float* const there = queue.scratch<float>(1);
    queue.set_poll([this] { progress(); });
    set_deadline(until);
    queue.write(reinterpret_cast<std::byte*>(there), &yes, sizeof(yes));
    all_reduce(queue, {there, 1}, {.what = "symmetric memory"});
    queue.download(std::span(&sum, 1), there);
    queue.finish(until);
    set_deadline(Clock::time_point::max());
    return sum == static_cast<float>(size());
  }

  int32_t rank() const override { return rank_; }
  int32_t size() const override { return static_cast<int32_t>(members_.size()); }

  void all_reduce(CudaQueue& queue, std::span<float> data, const OpId& op) override {
    if (size() == 1 || data.empty()) return check(op);
    if (is_symmetric(data.data())) return sums_->all_reduce(queue, data, op);
    sent(queue, static_cast<int64_t>(data.size_bytes()) * 2 * (size() - 1) / size());
    if (!queue.enqueues(CudaQueue::Work::kTransfer, 'r', comm_, data.data(), data.size())) return;
    issue(queue, op, [&] {
      return state_.api.all_reduce(data.data(), data.data(), data.size(), kNcclFloat32, kNcclSum,
                                   comm_, queue.stream());
    });
  }

  std::byte* symmetric_memory(int64_t bytes) override {
    return bytes <= static_cast<int64_t>(symmetric_.size()) ? symmetric_.data() : nullptr;
  }

  void all_gather(CudaQueue& queue, ConstBytes own, Bytes out, std::span<const int64_t> bytes,
                  const OpId& op) override {
    std::vector<ConstBytes> send(index(size()), own);
    std::vector<Bytes> receive;
    size_t at = 0;
    for (const int64_t length : bytes) {
      receive.push_back(out.subspan(at, index(length)));
      at += index(length);
    }
    all_to_all(queue, send, receive, op);
  }

  void all_to_all(CudaQueue& queue, std::span<const ConstBytes> send,
                  std::span<const Bytes> receive, const OpId& op) override {
    const ConstBytes own = send[index(rank_)];
    const Bytes room = receive[index(rank_)];
    ANNULUS_CHECK(own.empty() || room.empty() || own.size() == room.size(), own.size(),
                  " bytes into ", room.size());
    if (!room.empty() && own.data() != room.data()) {
      queue.copy(room.data(), own.data(), static_cast<int64_t>(own.size()));
    }
    if (size() == 1) return check(op);
    transfer(queue, queue.stream(), op, [&](const auto& one) {
      for (int32_t step = 1; step < size(); ++step) {
        one(send[index((rank_ + step) % size())], (rank_ + step) % size(),
            receive[index((rank_ + size() - step) % size())], (rank_ + size() - step) % size());
      }
    });
  }

  Transfer exchange(CudaQueue& queue, ConstBytes send, int32_t to, Bytes receive, int32_t from,
                    const OpId& op) override {
    const uint64_t id = ++transfers_;
    ANNULUS_CHECK((to == rank_) == (from == rank_), "half of an exchange with itself");
    if (to == rank_) {
      check(op);
      ANNULUS_CHECK(send.size() == receive.size(), send.size(), " bytes into ", receive.size());
      queue.copy(receive.data(), send.data(), static_cast<int64_t>(send.size()));
      if (queue.enqueues(CudaQueue::Work::kTransfer, 'e')) {
        check_cuda(cudaEventRecord(event(id), queue.stream()), "an event");
      }
      return Transfer(id);
    }
    // The payload is ready, and the buffer free, once what the queue holds has run.
    if (queue.enqueues(CudaQueue::Work::kTransfer, 'h')) {
      check_cuda(cudaEventRecord(event(id), queue.stream()), "an event");
      check_cuda(cudaStreamWaitEvent(state_.hops, event(id), 0), "a hop's start");
    }
    transfer(queue, state_.hops, op, [&](const auto& one) { one(send, to, receive, from); });
    if (queue.enqueues(CudaQueue::Work::kTransfer, 'e')) {
      check_cuda(cudaEventRecord(event(id), state_.hops), "an event");
    }
    return Transfer(id);
  }

  void await(CudaQueue& queue, Transfer transfer) override {
    const uint64_t id = transfer.release();
    ANNULUS_CHECK(id != 0 && id <= transfers_ && id + events_.size() > transfers_, "transfer ", id,
                  " of ", transfers_);
    if (queue.enqueues(CudaQueue::Work::kTransfer, 'w', transfers_ - id)) {
      check_cuda(cudaStreamWaitEvent(queue.stream(), event(id), 0), "a hop's end");
    }
  }

  void progress() override {
    if (state_.flag.raised()) throw DeviceError("aborted: " + state_.flag.why());
    if (sums_ != nullptr) sums_->progress();
    if (comm_ == nullptr) return;
    std::string why;
    {
      const std::lock_guard lock(state_.calls);
      int error = kNcclSuccess;
      if (!state_.flag.raised()) state_.api.comm_get_async_error(comm_, &error);
      if (error == kNcclSuccess || error == kNcclInProgress) return;
      why = state_.reason(comm_, error);
    }
    fail(kernels::concat(name(group_), " rank ", rank_, " of ", size()), why);
  }

  void set_deadline(Clock::time_point deadline) override { state_.deadline = deadline; }
  void abort(const std::string& why) override { state_.abort(why); }
  int64_t bytes_sent() const override {
    return bytes_sent_ + (sums_ == nullptr ? 0 : sums_->bytes_sent());
  }
  double waited_us() const override { return 0; }  // the host never waits here

 private:
  cudaEvent_t event(uint64_t id) const { return events_[id % events_.size()]; }
  bool is_symmetric(const float* data) const {
    const auto* const at = reinterpret_cast<const std::byte*>(data);
    return at >= symmetric_.data() && at < symmetric_.data() + symmetric_.size();
  }

  [[noreturn]] void fail(const std::string& where, const std::string& why) {
    state_.flag.raise(why);
    throw DeviceError(kernels::concat(where, ": ", why));
  }
  void check(const OpId& op) {
    if (state_.flag.raised()) {
      fail(describe(group_, rank_, members_, op), "aborted: " + state_.flag.why());
    }
  }
  // A body that is logged and then captured runs once.
  void sent(const CudaQueue& queue, int64_t bytes) {
    if (!queue.captures()) bytes_sent_ += bytes;
  }
  template <class Call>
  void issue(const CudaQueue& queue, const OpId& op, const Call& call) {
    if (queue.captures()) {
      const std::lock_guard lock(state_.holders);
      state_.graphs.insert(queue.graphs());
    }
    const std::string wrong = state_.finish(comm_, call, state_.deadline);
    if (!wrong.empty()) fail(describe(group_, rank_, members_, op), wrong);
  }

  // One NCCL group: list(one) names the pairs of a send and a receive.
  template <class List>
  void transfer(CudaQueue& queue, cudaStream_t stream, const OpId& op, const List& list) {
    bool enqueues = true;
    list([&](ConstBytes send, int32_t to, Bytes receive, int32_t from) {
      sent(queue, static_cast<int64_t>(send.size()));
      enqueues = queue.enqueues(CudaQueue::Work::kTransfer, 't', comm_, stream, send.data(),
                                send.size(), to, receive.data(), receive.size(), from);
    });
    if (!enqueues) return;
    const NcclApi& api = state_.api;
    issue(queue, op, [&] {
      if (const int result = api.group_start(); result != kNcclSuccess) return result;
      int wrong = kNcclSuccess;
      const auto note = [&](int result) {
        if (result != kNcclSuccess && result != kNcclInProgress) wrong = result;
      };
      list([&](ConstBytes send, int32_t to, Bytes receive, int32_t from) {
        if (!send.empty()) {
          note(api.send(send.data(), send.size(), kNcclUint8, to, comm_, stream));
        }
        if (!receive.empty()) {
          note(api.recv(receive.data(), receive.size(), kNcclUint8, from, comm_, stream));
        }
      });
      const int result = api.group_end();
      return wrong != kNcclSuccess ? wrong : result;
    });
  }

  State& state_;
  GroupId group_;
  std::vector<int32_t> members_;
  int32_t rank_;
  NcclComm comm_ = nullptr;
  std::array<cudaEvent_t, 4> events_ = {};
  uint64_t transfers_ = 0;
  int64_t bytes_sent_ = 0;
  NcclGroup* sums_ = nullptr;  // of symmetric_
  Bytes symmetric_;
};

}  // namespace

struct NcclWorld::Impl {
  Impl(const NcclApi& api, const NcclOptions& options, const AddressStamp& of_me)
      : state(api, options), stamp(of_me) {
    int least = 0, most = 0;
    check_cuda(cudaGetDevice(&state.device), "the GPU of this thread");
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &most), "stream priorities");
    check_cuda(cudaStreamCreateWithPriority(&state.hops, cudaStreamNonBlocking, most), "a stream");
    for (const GroupId group : kGroupIds) {
      groups.push_back(std::make_unique<NcclGroup>(state, group, stamp.topology, stamp.world_rank));
    }
  }
  ~Impl() {
    state.abort("the epoch is over");
    cudaStreamSynchronize(state.hops);
    cudaStreamDestroy(state.hops);
    give_memory_back();
  }

  // The window went with its communicator.
  void give_memory_back() {
    if (memory == nullptr) return;
    // Kernels of a step that was aborted may still write.
    cudaDeviceSynchronize();
    const std::lock_guard lock(state.calls);
    state.api.mem_free(std::exchange(memory, nullptr));
  }

  // Ranks of one communicator have one version of NCCL, which it checks.
  bool offers_sums() const {
    return state.options.symmetric_bytes > 0 && groups[kSums]->size() > 1 &&
           has_symmetric_memory(state.api);
  }

  // Small sums of the TP group go through symmetric memory from here on, where all its ranks have
  // some. Collective over the group. Throws where a peer is lost.
  void open_sums(const NcclId& id, Clock::time_point until) {
    NcclGroup &tp = *groups[kTp], &sums = *groups[kSums];
    const Clock::time_point soon = std::min(until, Clock::now() + state.options.symmetric_limit);
    std::string wrong(sums.open(id, soon).message());
    if (wrong.empty()) wrong = sums.share_memory(memory, window, soon);
    if (!wrong.empty() && !state.flag.raised()) {
      std::fprintf(stderr, "annulus: sums go without symmetric memory: %s\n", wrong.c_str());
    }
    votes = std::make_unique<CudaQueue>(state.device);
    const bool all = tp.all_agree(*votes, wrong.empty() && window != nullptr, until);
    votes.reset();
    if (all) {
      tp.sum_small_by(sums,
                      {static_cast<std::byte*>(memory), index(state.options.symmetric_bytes)});
    } else {  // whoever voted has done with registering: nobody waits for this rank there
      sums.give_up("sums go without symmetric memory");
      give_memory_back();
    }
  }

  State state;
  AddressStamp stamp;
  std::string address;
  std::vector<std::unique_ptr<NcclGroup>> groups;  // as kGroupIds
  void* memory = nullptr;                          // symmetric
  NcclWindow window = nullptr;
  std::unique_ptr<CudaQueue> votes;  // where it throws, it waits for the abort
};

NcclWorld::NcclWorld(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
NcclWorld::~NcclWorld() = default;

absl::StatusOr<std::unique_ptr<NcclWorld>> NcclWorld::create(const NcclApi& api, Topology topology,
                                                             int32_t world_rank, int64_t epoch,
                                                             const NcclOptions& options) {
  const AddressStamp stamp{.transport = Transport::kNccl,
                           .topology = topology,
                           .world_rank = world_rank,
                           .epoch = epoch};
  auto impl = std::make_unique<Impl>(api, options, stamp);
  std::string ids;
  for (size_t g = 0; g < kGroupIds.size(); ++g) {
    const NcclGroup& group = *impl->groups[g];
    NcclId id = {};
    const bool wanted = g != kSums || impl->offers_sums();
    if (wanted && group.rank() == 0 && group.size() > 1) {  // an id costs a listening socket
      if (const int result = api.get_unique_id(&id); result != kNcclSuccess) {
        return absl::UnavailableError(
            absl::StrCat("NCCL gives no id: ", impl->state.reason(nullptr, result)));
      }
    }
    ids.append(id.bytes, sizeof id.bytes);
  }
  impl->address = seal_address(stamp, {.bytes = ids, .host = this_host()});
  return std::unique_ptr<NcclWorld>(new NcclWorld(std::move(impl)));
}

std::string NcclWorld::address() const {
  return impl_->address;
}

absl::Status NcclWorld::connect(std::span<const std::string> addresses) {
  const Topology& topology = impl_->stamp.topology;
  if (static_cast<int64_t>(addresses.size()) != topology.world()) {
    return absl::InvalidArgumentError(
        absl::StrCat(addresses.size(), " addresses for a world of ", topology.world(), " ranks"));
  }
  std::vector<std::string> ids;
  for (int32_t r = 0; r < topology.world(); ++r) {
    AddressStamp stamp = impl_->stamp;
    stamp.world_rank = r;
    absl::StatusOr<WorkerAddress> address = open_address(stamp, addresses[index(r)]);
    if (!address.ok()) return address.status();
    if (address->bytes.size() != kGroupIds.size() * sizeof(NcclId)) {
      return absl::InvalidArgumentError(
          absl::StrCat("rank ", r, " gives ", address->bytes.size(), " bytes of NCCL ids"));
    }
    ids.push_back(std::move(address->bytes));
  }
  const Clock::time_point until = Clock::now() + impl_->state.options.connect_limit;
  const auto id_of = [&](size_t g) {
    const int32_t leader = group_members(topology, kGroupIds[g], impl_->stamp.world_rank).front();
    NcclId id;
    std::memcpy(id.bytes, ids[index(leader)].data() + g * sizeof id, sizeof id);
    return id;
  };
  for (size_t g = 0; g < kSums; ++g) {
    if (absl::Status status = impl_->groups[g]->open(id_of(g), until); !status.ok()) return status;
  }
  const NcclId sums = id_of(kSums);
  const bool offered = std::any_of(std::begin(sums.bytes), std::end(sums.bytes),
                                   [](char byte) { return byte != 0; });
  try {
    if (offered) impl_->open_sums(sums, until);
  } catch (const DeviceError& error) {
    return absl::UnavailableError(error.what());
  }
  return absl::OkStatus();
}

Groups<CudaQueue> NcclWorld::groups() {
  return {
      .tp = impl_->groups[1].get(), .cp = impl_->groups[2].get(), .world = impl_->groups[0].get()};
}

void NcclWorld::abort(const std::string& why) {
  impl_->state.abort(why);
}

}  // namespace annulus::parallel
