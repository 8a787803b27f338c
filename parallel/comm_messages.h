// SPDX-License-Identifier: Apache-2.0
// MessageCommunicator: a Communicator over point-to-point messages, written once for the threads
// and the UCX backend. Wire is the backend, shared by a rank's groups and not owned:
//   Request send(world_rank, ConstBytes, tag), recv(world_rank, Bytes, tag)   start; never block
//   bool done(Request&)         finished? throws WireError (device fault, message of another size)
//                               and forgets the request
//   void cancel(Request&)       gives a started request up; the wire is then only destroyed
//   bool progress()             moves everything along; false: nothing moved
//   bool block(milliseconds)    sleeps until something may have happened; false: nothing has
//   std::string lost(world_rank)  why that peer is known to be gone; empty while it is not
//   int64_t epoch(), AbortFlag& abort_flag()
//   Use                         a guard held through every call of a communicator
// Work happens at the call. A wait spins for 20 us, goes on for 1 ms at most while its core is not
// wanted by others (a wake-up costs more than most waits inside a step), then blocks and looks up
// every 1 to 5 ms: an idle rank burns no core.
// After any error the wire is poisoned: every later call on any group throws the first reason.
// Buffers of operations in flight at an error must outlive the wire.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/cpu/queue.h"
#include "parallel/comm_ids.h"
#include "parallel/communicator.h"

namespace annulus::parallel {

class WireError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// data (rank me's part) = the ranks' sum in rank order; rank r's part begins at others + r *
// stride. Where me != 0 the sum is built in rank 0's place; rank me's place is not read.
void sum_in_rank_order(std::span<float> data, int32_t me, int32_t ranks, float* others,
                       int64_t others_stride);

template <class Wire>
class MessageCommunicator final : public Communicator<kernels::CpuQueue> {
 public:
  using Queue = kernels::CpuQueue;
  using Clock = std::chrono::steady_clock;

  // members: world ranks in group order.
  MessageCommunicator(Wire& wire, GroupId group, std::vector<int32_t> members, int32_t rank)
      : wire_(wire), group_(group), members_(std::move(members)), rank_(rank) {
    ANNULUS_CHECK(size() <= kMaxGroupSize, "group of ", size(), " ranks");
    ANNULUS_CHECK(rank_ >= 0 && rank_ < size(), "rank ", rank_, " of ", size());
  }

  int32_t rank() const override { return rank_; }
  int32_t size() const override { return static_cast<int32_t>(members_.size()); }

  void all_reduce(Queue& queue, std::span<float> data, const OpId& op) override;
  void all_gather(Queue& queue, ConstBytes own, Bytes out, std::span<const int64_t> bytes,
                  const OpId& op) override;
  void all_to_all(Queue& queue, std::span<const ConstBytes> send, std::span<const Bytes> recv,
                  const OpId& op) override;
  Transfer exchange(Queue& queue, ConstBytes send, int32_t to, Bytes recv, int32_t from,
                    const OpId& op) override;
  void await(Queue& queue, Transfer transfer) override;

  void progress() override {
    if (flights_in_use_ == 0) return;
    const typename Wire::Use use(wire_);
    wire_.progress();
    for (Flight& flight : flights_) {
      if (flight.timeline != nullptr && settled(flight.of_use(), flight.op)) record(flight);
    }
  }
  void set_deadline(Clock::time_point deadline) override {
    deadline_ = deadline;
    deadline_set_ = Clock::now();
  }
  void abort(const std::string& why) override { wire_.abort_flag().raise(why); }
  int64_t bytes_sent() const override { return bytes_sent_; }
  double waited_us() const override { return waited_us_; }

 private:
  struct Part {  // one message of an operation
    typename Wire::Request request;
    int32_t peer = 0;
    int64_t bytes = 0;
    bool sending = false;
    bool finished = false;
  };
  struct Flight {  // an exchange between start and await
    OpId op;
    std::array<Part, 2> parts;
    size_t count = 0;
    uint32_t generation = 0;
    bool live = false;
    kernels::Timeline* timeline = nullptr;  // where its end is still to be recorded
    Clock::time_point began;
    std::span<Part> of_use() { return std::span(parts).first(count); }
  };

  Part start_send(int32_t to, ConstBytes bytes, const OpId& op) {
    bytes_sent_ += static_cast<int64_t>(bytes.size());
    return {.request = wire_.send(members_[index(to)], bytes, tag(op, rank_)),
            .peer = to,
            .bytes = static_cast<int64_t>(bytes.size()),
            .sending = true};
  }
  Part start_recv(int32_t from, Bytes bytes, const OpId& op) {
    return {.request = wire_.recv(members_[index(from)], bytes, tag(op, from)),
            .peer = from,
            .bytes = static_cast<int64_t>(bytes.size()),
            .sending = false};
  }
  uint64_t tag(const OpId& op, int32_t sender) const {
    return message_tag(wire_.epoch(), group_, op, sender);
  }
  void send_to(int32_t to, ConstBytes bytes, const OpId& op) {
    if (!bytes.empty()) parts_.push_back(start_send(to, bytes, op));
  }
  void recv_from(int32_t from, Bytes bytes, const OpId& op) {
    if (!bytes.empty()) parts_.push_back(start_recv(from, bytes, op));
  }

  void begin(Queue& queue, const OpId& op);  // throws where aborted already
  void finish(Queue& queue, const OpId& op) {
    wait(queue, parts_, op);
    if (kernels::Timeline* const timeline = queue.phases().timeline();
        timeline && !parts_.empty()) {
      timeline->add(interval_of(op, parts_, std::exchange(began_, Clock::now())));
    }
    parts_.clear();
  }
  kernels::Interval interval_of(const OpId& op, std::span<const Part> parts,
                                Clock::time_point began) const;
  void record(Flight& flight);
  void wait(Queue& queue, std::span<Part> parts, const OpId& op);  // all of them, or DeviceError
  bool settled(std::span<Part> parts, const OpId& op);
  [[noreturn]] void fail(const OpId& op, const Part* part, const std::string& reason);
  std::string where(const OpId& op) const { return describe(group_, rank_, members_, op); }

  int32_t neighbour(int32_t distance) const { return (rank_ + distance) % size(); }
  static size_t index(int64_t value) { return static_cast<size_t>(value); }

  Wire& wire_;
  GroupId group_;
  std::vector<int32_t> members_;
  int32_t rank_;
  std::vector<Part> parts_;  // of the collective that is running
  Clock::time_point began_;  // the operation that is running, where a timeline is kept
  std::vector<Flight> flights_;
  int64_t flights_in_use_ = 0;
  std::vector<float> scratch_;  // other ranks' floats; keeps its peak size
  Clock::time_point deadline_ = Clock::time_point::max();
  Clock::time_point deadline_set_ = Clock::now();
  int64_t bytes_sent_ = 0;
  double waited_us_ = 0;
  int shared_waits_ = 0;
};

// Below this an all_reduce is one message to everybody (one latency); above, each rank sums a slice
// (each byte crosses the link twice instead of size-1 times).
inline constexpr int64_t kDirectReduceBytes = 64 << 10;

template <class Wire>
void MessageCommunicator<Wire>::all_reduce(Queue& queue, std::span<float> data, const OpId& op) {
  const kernels::InPhase phase(queue, kernels::Phase::kSend);
  const typename Wire::Use use(wire_);
  begin(queue, op);
  const int64_t count = static_cast<int64_t>(data.size()), n = size();
  if (n == 1 || count == 0) return;
  const bool direct = count * int64_t{sizeof(float)} <= kDirectReduceBytes;
  // Slices are whole cache lines; the last ones may be short or empty.
  const int64_t stride = direct ? count : ((count + n - 1) / n + 15) / 16 * 16;
  const auto slice = [&](int64_t r) {
    if (direct) return data;
    const int64_t begin = std::min(count, r * stride), end = std::min(count, begin + stride);
    return data.subspan(index(begin), index(end - begin));
  };
  const std::span<float> mine = slice(rank_);
  if (scratch_.size() < index(n * stride)) scratch_.resize(index(n * stride));
  for (int32_t d = 1; d < n; ++d) {
    const int32_t from = neighbour(d);
    recv_from(
        from,
        std::as_writable_bytes(std::span(scratch_).subspan(index(from * stride), mine.size())), op);
  }
  for (int32_t d = 1; d < n; ++d) send_to(neighbour(d), std::as_bytes(slice(neighbour(d))), op);
  finish(queue, op);
  if (!mine.empty())
    sum_in_rank_order(mine, rank_, static_cast<int32_t>(n), scratch_.data(), stride);
  if (direct) return;
  OpId second = op;
  second.hop = op.hop + 1;
  for (int32_t d = 1; d < n; ++d)
    recv_from(neighbour(d), std::as_writable_bytes(slice(neighbour(d))), second);
  for (int32_t d = 1; d < n; ++d) send_to(neighbour(d), std::as_bytes(mine), second);
  finish(queue, second);
}

template <class Wire>
void MessageCommunicator<Wire>::all_gather(Queue& queue, ConstBytes own, Bytes out,
                                           std::span<const int64_t> bytes, const OpId& op) {
  const kernels::InPhase phase(queue, kernels::Phase::kSend);
  const typename Wire::Use use(wire_);
  begin(queue, op);
  ANNULUS_CHECK(static_cast<int32_t>(bytes.size()) == size(), where(op));
  ANNULUS_CHECK(static_cast<int64_t>(own.size()) == bytes[index(rank_)], where(op), ": own ",
                own.size(), " bytes, plan ", bytes[index(rank_)]);
  int64_t at = 0;
  for (int32_t r = 0; r < size(); ++r) {
    const int64_t length = bytes[index(r)];
    ANNULUS_CHECK(length >= 0 && at + length <= static_cast<int64_t>(out.size()), where(op));
    const Bytes room = out.subspan(index(at), index(length));
    if (r != rank_) {
      recv_from(r, room, op);
    } else if (!own.empty() && room.data() != own.data()) {
      std::memmove(room.data(), own.data(), own.size());
    }
    at += length;
  }
  for (int32_t d = 1; d < size(); ++d) send_to(neighbour(d), own, op);
  finish(queue, op);
}

template <class Wire>
void MessageCommunicator<Wire>::all_to_all(Queue& queue, std::span<const ConstBytes> send,
                                           std::span<const Bytes> recv, const OpId& op) {
  const kernels::InPhase phase(queue, kernels::Phase::kSend);
  const typename Wire::Use use(wire_);
  begin(queue, op);
  ANNULUS_CHECK(static_cast<int32_t>(send.size()) == size() && send.size() == recv.size(),
                where(op));
  ANNULUS_CHECK(send[index(rank_)].size() == recv[index(rank_)].size(), where(op), ": own part");
  for (int32_t d = size() - 1; d > 0; --d) recv_from(neighbour(d), recv[index(neighbour(d))], op);
  for (int32_t d = 1; d < size(); ++d) send_to(neighbour(d), send[index(neighbour(d))], op);
  if (!send[index(rank_)].empty())
    std::memmove(recv[index(rank_)].data(), send[index(rank_)].data(), send[index(rank_)].size());
  finish(queue, op);
}

template <class Wire>
Transfer MessageCommunicator<Wire>::exchange(Queue& queue, ConstBytes send, int32_t to, Bytes recv,
                                             int32_t from, const OpId& op) {
  const kernels::InPhase phase(queue, kernels::Phase::kSend);
  const typename Wire::Use use(wire_);
  begin(queue, op);
  ANNULUS_CHECK(to >= 0 && to < size() && from >= 0 && from < size(), where(op), ": to ", to,
                " from ", from);
  ANNULUS_CHECK((to == rank_) == (from == rank_), where(op), ": half of an exchange with itself");
  if (to == rank_) {
    ANNULUS_CHECK(send.size() == recv.size(), where(op), ": sizes of an exchange with itself");
    if (!send.empty()) std::memmove(recv.data(), send.data(), send.size());
    return {};
  }
  if (send.empty() && recv.empty()) return {};
  size_t slot = 0;
  while (slot < flights_.size() && flights_[slot].live) ++slot;
  if (slot == flights_.size()) flights_.emplace_back();
  Flight& flight = flights_[slot];
  flight.op = op;
  flight.count = 0;
  if (!recv.empty()) flight.parts[flight.count++] = start_recv(from, recv, op);
  if (!send.empty()) flight.parts[flight.count++] = start_send(to, send, op);
  flight.live = true;
  flight.timeline = queue.phases().timeline();
  flight.began = began_;
  ++flight.generation;
  ++flights_in_use_;
  return Transfer((uint64_t{flight.generation} << 32) | (slot + 1));
}

template <class Wire>
void MessageCommunicator<Wire>::await(Queue& queue, Transfer transfer) {
  const uint64_t id = transfer.release();
  if (id == 0) return;
  const typename Wire::Use use(wire_);
  const size_t slot = index(id & 0xffffffffu) - 1;
  ANNULUS_CHECK(slot < flights_.size() && flights_[slot].live &&
                    flights_[slot].generation == static_cast<uint32_t>(id >> 32),
                "transfer ", id, " is not in flight in group ", name(group_));
  Flight& flight = flights_[slot];
  wait(queue, flight.of_use(), flight.op);
  if (flight.timeline != nullptr) record(flight);
  flight.live = false;
  --flights_in_use_;
}

template <class Wire>
kernels::Interval MessageCommunicator<Wire>::interval_of(const OpId& op,
                                                         std::span<const Part> parts,
                                                         Clock::time_point began) const {
  kernels::Interval interval{.begin_ns = kernels::nanoseconds(began),
                             .end_ns = kernels::nanoseconds(Clock::now()),
                             .lane = kernels::Interval::Lane::kTransfer,
                             .layer = op.layer,
                             .sequence = op.sequence};
  interval.set_name(op.what);
  for (const Part& part : parts) {
    (part.sending ? interval.sent_bytes : interval.received_bytes) += part.bytes;
  }
  return interval;
}

// A hop is over for the timeline when that is noticed, between two tasks of what runs beside it.
template <class Wire>
void MessageCommunicator<Wire>::record(Flight& flight) {
  kernels::Interval interval = interval_of(flight.op, flight.of_use(), flight.began);
  interval.hop = flight.op.hop + 1;
  for (const Part& part : flight.of_use()) {
    (part.sending ? interval.to : interval.from) = members_[index(part.peer)];
  }
  std::exchange(flight.timeline, nullptr)->add(interval);
}

template <class Wire>
void MessageCommunicator<Wire>::begin(Queue& queue, const OpId& op) {
  if (queue.phases().timeline() != nullptr) [[unlikely]]
    began_ = Clock::now();
  if (wire_.abort_flag().raised()) [[unlikely]]
    fail(op, nullptr, "aborted: " + wire_.abort_flag().why());
}

template <class Wire>
bool MessageCommunicator<Wire>::settled(std::span<Part> parts, const OpId& op) {
  bool all = true;
  for (Part& part : parts) {
    if (part.finished) continue;
    try {
      part.finished = wire_.done(part.request);
    } catch (const WireError& error) {
      fail(op, &part, error.what());
    }
    all = all && part.finished;
  }
  return all;
}

template <class Wire>
void MessageCommunicator<Wire>::wait(Queue& queue, std::span<Part> parts, const OpId& op) {
  constexpr auto kSpin = std::chrono::microseconds(20), kGone = std::chrono::microseconds(50);
  constexpr auto kPatience = std::chrono::milliseconds(1);
  constexpr int kRemember = 128;  // waits for which a core counts as shared
  constexpr int kRoundsPerClock = 8, kFruitless = 32;
  constexpr auto kShortest = std::chrono::milliseconds(1), kLongest = std::chrono::milliseconds(5);
  constexpr auto kPause = std::chrono::milliseconds(500);  // more between two looks: not running
  if (settled(parts, op)) return;
  const kernels::InPhase phase(queue, kernels::Phase::kWait);
  const Clock::time_point began = Clock::now();
  Clock::time_point start = began, looked = began;  // start moves by pauses
  Clock::time_point spin_until = began + kSpin;
  const Clock::time_point patient_until = began + kPatience;
  if (shared_waits_ > 0) --shared_waits_;
  auto sleep = kShortest;
  int fruitless = 0;  // wake-ups in a row after which nothing moved
  for (;;) {
    bool all = false, moved = false;
    for (int round = 0; round < kRoundsPerClock && !all; ++round) {
      moved = wire_.progress() || moved;
      all = settled(parts, op);
    }
    const Clock::time_point now = Clock::now();
    if (all) {
      waited_us_ += std::chrono::duration<double, std::micro>(now - start).count();
      return;
    }
    const Part& stuck =
        *std::find_if(parts.begin(), parts.end(), [](const Part& part) { return !part.finished; });
    if (wire_.abort_flag().raised()) fail(op, &stuck, "aborted: " + wire_.abort_flag().why());
    for (const Part& part : parts) {
      if (part.finished) continue;
      if (std::string why = wire_.lost(members_[index(part.peer)]); !why.empty())
        fail(op, &part, why);
    }
    // A pause of this process (a suspended job) is not its peers' delay.
    if (now - looked > kPause && deadline_ != Clock::time_point::max()) {
      const Clock::duration pause = now - looked;
      start += pause;
      deadline_ += pause;
      deadline_set_ += pause;
    }
    looked = now;
    // Whoever comes late itself waits a little before it blames a peer.
    if (now >= deadline_ && now - start >= (deadline_ - deadline_set_) / 4) {
      const double waited = std::chrono::duration<double>(now - start).count();
      const double given = std::chrono::duration<double>(deadline_ - deadline_set_).count();
      fail(op, &stuck,
           kernels::concat("deadline of ", given, " s passed, waited ", waited, " s here"));
    }
    if (moved) fruitless = 0;
    if (now >= spin_until) {
      if (now < patient_until && shared_waits_ == 0) {
        std::this_thread::yield();
        // Others had the core: they may be the peers that this wait is for.
        if (Clock::now() - now > kGone) shared_waits_ = kRemember;
        continue;
      }
      // A TCP connection that waits for its peer's first answer keeps the event raised.
      if (fruitless > kFruitless) std::this_thread::sleep_for(kShortest);
      if (wire_.block(sleep)) {
        spin_until = Clock::now() + kSpin / 4;  // what woke us is often the first of a few steps
        sleep = kShortest;
        ++fruitless;
      } else {
        sleep = std::min(2 * sleep, kLongest);
      }
    }
  }
}

template <class Wire>
void MessageCommunicator<Wire>::fail(const OpId& op, const Part* part, const std::string& reason) {
  std::string text = where(op);
  if (part != nullptr) {
    text += kernels::concat(part->sending ? ": sending " : ": receiving ", part->bytes,
                            part->sending ? " bytes to peer rank " : " bytes from peer rank ",
                            part->peer, " (world rank ", members_[index(part->peer)], ")");
  }
  text += ": " + reason;
  for (Part& other : parts_) {
    if (!other.finished) wire_.cancel(other.request);
  }
  for (Flight& flight : flights_) {
    for (size_t i = 0; flight.live && i < flight.count; ++i) {
      if (!flight.parts[i].finished) wire_.cancel(flight.parts[i].request);
    }
    flight.live = false;
    flight.timeline = nullptr;
  }
  flights_in_use_ = 0;
  parts_.clear();
  wire_.abort_flag().raise(reason);
  throw kernels::DeviceError(text);
}

}  // namespace annulus::parallel
