// SPDX-License-Identifier: Apache-2.0
#include "tests/parallel/trace/trace.h"

#include <algorithm>
#include <map>
#include <set>

#include "kernels/core/check.h"

namespace annulus::parallel {
namespace {

using Kind = TraceCall::Kind;

size_t index(int64_t i) {
  return static_cast<size_t>(i);
}

std::string worded(const TraceCall& call) {
  const char* const kinds[] = {"all_reduce", "all_gather", "all_to_all", "exchange"};
  const auto list = [](const std::vector<int64_t>& values) {
    std::string text;
    for (const int64_t value : values) text += (text.empty() ? "" : ",") + std::to_string(value);
    return text;
  };
  std::string text =
      kernels::concat(kinds[index(static_cast<int64_t>(call.kind))], " '", call.op.what, "' in ",
                      name(call.group->id), ", step ", call.op.step, " layer ", call.op.layer,
                      " sequence ", call.op.sequence, " hop ", call.op.hop, ", sends ");
  text += list(call.send) + ", receives " + list(call.receive);
  if (call.kind == Kind::kExchange) {
    text += kernels::concat(", to ", call.to, ", from ", call.from);
  }
  return text;
}

bool same_op(const TraceCall& a, const TraceCall& b) {
  const auto key = [](const TraceCall& c) {
    return std::make_tuple(c.kind, c.group, c.op.step, c.op.layer, c.op.sequence, c.op.hop,
                           std::string_view(c.op.what));
  };
  return key(a) == key(b);
}

class Checker {
 public:
  explicit Checker(const std::vector<Trace>& traces) : traces_(traces), at_(traces.size(), 0) {}

  std::string run() {
    for (bool moved = true; moved && wrong_.empty();) {
      moved = false;
      for (size_t rank = 0; rank < traces_.size() && wrong_.empty(); ++rank) {
        while (wrong_.empty() && step_from(static_cast<int32_t>(rank))) moved = true;
      }
    }
    for (size_t rank = 0; rank < traces_.size() && wrong_.empty(); ++rank) {
      if (front(static_cast<int32_t>(rank))) {
        wrong_ = stuck(static_cast<int32_t>(rank));
      } else if (traces_[rank].in_flight != 0) {
        wrong_ = kernels::concat("rank ", rank, " leaves a hop in flight");
      }
    }
    return wrong_;
  }

 private:
  const TraceCall* front(int32_t rank) const {
    const std::vector<TraceCall>& calls = traces_[index(rank)].calls;
    return at_[index(rank)] < calls.size() ? &calls[at_[index(rank)]] : nullptr;
  }

  // Whether the call that `rank` holds at happened.
  bool step_from(int32_t rank) {
    const TraceCall* call = front(rank);
    if (call == nullptr) return false;
    const std::vector<int32_t> all = meeting(rank);
    for (const int32_t other : all) {
      const TraceCall* theirs = front(other);
      if (theirs == nullptr || !same_op(*call, *theirs)) return false;  // not there yet
    }
    if (!sizes_agree(*call, all)) return false;
    for (const int32_t member : all) {
      const TraceCall& mine = *front(member);
      const auto id = std::make_tuple(mine.op.step, mine.op.layer, mine.op.sequence, mine.op.hop);
      if (!seen_[{mine.group, member}].insert(id).second) {
        wrong_ = kernels::concat("rank ", member, " has used this id before: ", worded(mine));
        return false;
      }
      ++at_[index(member)];
    }
    return !all.empty();
  }

  std::string stuck(int32_t rank) const {
    const std::string mine = kernels::concat("rank ", rank, " waits in ", worded(*front(rank)));
    for (const int32_t other : meeting(rank)) {
      const TraceCall* theirs = front(other);
      if (theirs == nullptr) return kernels::concat(mine, "; rank ", other, " has ended");
      if (!same_op(*front(rank), *theirs)) {
        return kernels::concat(mine, "; rank ", other, " is at ", worded(*theirs));
      }
    }
    return mine;
  }

  // World ranks that the call of `rank` needs at theirs, it among them: the whole group; of an
  // exchange those along its sides, theirs, and so on. A side of zero bytes needs nobody.
  std::vector<int32_t> meeting(int32_t rank) const {
    if (front(rank)->kind != Kind::kExchange) return front(rank)->group->members;
    std::set<int32_t> found;
    std::vector<int32_t> open = {rank};
    while (!open.empty()) {
      const int32_t member = open.back();
      open.pop_back();
      if (!found.insert(member).second) continue;
      const TraceCall* call = front(member);
      if (call == nullptr || call->kind != Kind::kExchange) continue;
      for (const int32_t peer : {call->to, call->from}) {
        if (peer >= 0) open.push_back(call->group->members[index(peer)]);
      }
    }
    return {found.begin(), found.end()};
  }

  bool sizes_agree(const TraceCall& first, const std::vector<int32_t>& all) {
    const std::vector<int32_t>& members = first.group->members;
    const auto fail = [&](int32_t a, int32_t b) {
      wrong_ = kernels::concat("sizes of ranks ", a, " and ", b, " differ: ", worded(*front(a)),
                               "; ", worded(*front(b)));
      return false;
    };
    for (const int32_t a : all) {
      const TraceCall& mine = *front(a);
      if (first.kind == Kind::kExchange) {
        if (mine.to >= 0) {
          const int32_t peer = members[index(mine.to)];
          const TraceCall& theirs = *front(peer);
          if (theirs.from < 0 || members[index(theirs.from)] != a || theirs.receive != mine.send) {
            return fail(a, peer);
          }
        }
        if (mine.from >= 0) {
          const int32_t peer = members[index(mine.from)];
          const TraceCall& theirs = *front(peer);
          if (theirs.to < 0 || members[index(theirs.to)] != a) return fail(a, peer);
        }
      } else if (first.kind == Kind::kAllToAll) {
        for (size_t i = 0; i < members.size(); ++i) {
          for (size_t j = 0; j < members.size(); ++j) {
            if (front(members[i])->send[j] != front(members[j])->receive[i]) {
              return fail(members[i], members[j]);
            }
          }
        }
        return true;
      } else if (mine.send != first.send) {
        return fail(all.front(), a);
      }
    }
    return true;
  }

  const std::vector<Trace>& traces_;
  std::vector<size_t> at_;
  std::map<std::pair<const TraceGroup*, int32_t>,
           std::set<std::tuple<int64_t, int32_t, int32_t, int32_t>>>
      seen_;
  std::string wrong_;
};

}  // namespace

void TraceComm::record(TraceCall call) {
  ANNULUS_CHECK(trace_.in_flight == 0, "a call while a hop is in flight: ", worded(call));
  ANNULUS_CHECK(call.op.layer < 1024 && call.op.sequence < 4096 && call.op.hop < 256,
                "no room in a message tag: ", worded(call));
  trace_.calls.push_back(std::move(call));
}

void TraceComm::all_reduce(Queue&, std::span<float> data, const OpId& op) {
  const auto bytes = static_cast<int64_t>(data.size_bytes());
  sent_ += bytes;
  record({Kind::kAllReduce, &group_, op, {bytes}, {}});
}

void TraceComm::all_gather(Queue&, ConstBytes own, Bytes out, std::span<const int64_t> bytes,
                           const OpId& op) {
  int64_t total = 0;
  for (const int64_t one : bytes) total += one;
  ANNULUS_CHECK(static_cast<int64_t>(own.size()) == bytes[index(rank_)] &&
                    static_cast<int64_t>(out.size()) == total,
                own.size(), " bytes of ", bytes[index(rank_)], ", ", out.size(), " of ", total);
  sent_ += bytes[index(rank_)] * (size() - 1);
  record({Kind::kAllGather, &group_, op, {bytes.begin(), bytes.end()}, {}});
}

void TraceComm::all_to_all(Queue&, std::span<const ConstBytes> send, std::span<const Bytes> receive,
                           const OpId& op) {
  TraceCall call{Kind::kAllToAll, &group_, op, {}, {}};
  for (int32_t r = 0; r < size(); ++r) {
    call.send.push_back(static_cast<int64_t>(send[index(r)].size()));
    call.receive.push_back(static_cast<int64_t>(receive[index(r)].size()));
    if (r != rank_) sent_ += call.send.back();
  }
  record(std::move(call));
}

Transfer TraceComm::exchange(Queue&, ConstBytes send, int32_t to, Bytes receive, int32_t from,
                             const OpId& op) {
  TraceCall call{Kind::kExchange,
                 &group_,
                 op,
                 {static_cast<int64_t>(send.size())},
                 {static_cast<int64_t>(receive.size())}};
  if (!send.empty()) call.to = to;
  if (!receive.empty()) call.from = from;
  sent_ += call.send[0];
  record(std::move(call));
  trace_.in_flight = ++trace_.hops;
  return Transfer(trace_.in_flight);
}

void TraceComm::await(Queue&, Transfer transfer) {
  ANNULUS_CHECK(transfer.release() == trace_.in_flight && trace_.in_flight != 0,
                "not the hop in flight");
  trace_.in_flight = 0;
}

std::string check_traces(const std::vector<Trace>& of_world_rank) {
  return Checker(of_world_rank).run();
}

}  // namespace annulus::parallel
