// SPDX-License-Identifier: Apache-2.0
// The communicator calls of every rank, recorded and checked: TraceComm writes down what a rank
// asks of one group and returns at once; check_traces() proves that all ranks' calls fit together.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bench/virtual_queue.h"
#include "parallel/comm_ids.h"
#include "parallel/communicator.h"

namespace annulus::parallel {

// A group: its members' world ranks in group order.
struct TraceGroup {
  GroupId id;
  std::vector<int32_t> members;
};

struct TraceCall {
  enum class Kind : uint8_t { kAllReduce, kAllGather, kAllToAll, kExchange };
  Kind kind;
  const TraceGroup* group;
  OpId op;
  // all_reduce: {bytes}; all_gather: by rank; all_to_all: what goes to each rank; exchange:
  // {bytes}.
  std::vector<int64_t> send;
  // all_to_all: what comes from each rank; exchange: {bytes}.
  std::vector<int64_t> receive;
  int32_t to = -1, from = -1;  // exchange, ranks of the group; -1: a side of zero bytes
};
// Of one rank, over all its groups.
struct Trace {
  std::vector<TraceCall> calls;
  uint64_t hops = 0, in_flight = 0;  // the hop that has not been awaited yet; 0: none
};

class TraceComm final : public Communicator<kernels::VirtualQueue> {
 public:
  using Queue = kernels::VirtualQueue;
  TraceComm(const TraceGroup& group, int32_t rank, Trace& trace)
      : group_(group), rank_(rank), trace_(trace) {}

  int32_t rank() const override { return rank_; }
  int32_t size() const override { return static_cast<int32_t>(group_.members.size()); }
  void all_reduce(Queue&, std::span<float> data, const OpId& op) override;
  void all_gather(Queue&, ConstBytes own, Bytes out, std::span<const int64_t> bytes,
                  const OpId& op) override;
  void all_to_all(Queue&, std::span<const ConstBytes> send, std::span<const Bytes> receive,
                  const OpId& op) override;
  Transfer exchange(Queue&, ConstBytes send, int32_t to, Bytes receive, int32_t from,
                    const OpId& op) override;
  void await(Queue&, Transfer transfer) override;
  void progress() override {}
  void set_deadline(std::chrono::steady_clock::time_point) override {}
  void abort(const std::string&) override {}
  int64_t bytes_sent() const override { return sent_; }
  double waited_us() const override { return 0; }

 private:
  void record(TraceCall call);

  const TraceGroup& group_;
  int32_t rank_;
  Trace& trace_;
  int64_t sent_ = 0;
};

// Empty, or the first thing that is wrong. Each rank issues its calls strictly in order and holds
// at each until all that take part in it have come to it: the least that any data plane allows,
// with no buffer, no second stream and no communicator beside another. Calls that meet must be the
// same (kind, OpId, sizes on both sides), no OpId may occur twice in a group, no call may be made
// while a hop is in flight (of any group: they would be two communicators at once), and every trace
// must come to its end. What meets is determined by the traces alone, so that one run through them
// stands for every order in time, and is itself the one order over all groups that NCCL asks for: a
// data plane that may do more cannot deadlock either.
std::string check_traces(const std::vector<Trace>& of_world_rank);

}  // namespace annulus::parallel
