// SPDX-License-Identifier: Apache-2.0
// Communicator: the only abstract class on the data path; one object per rank and group (tp, cp,
// world) and epoch. Ranks are group-local. Backends: threads (tests), UCX (CPU), NCCL (GPU). All
// calls but abort() come from the thread that owns the queue; abort() comes from any thread and
// makes every present and future wait throw. Calls only enqueue where the device can; a CPU backend
// may finish at the call. Every rank of a group issues the same operations in the same order, with
// byte counts that follow from the plan: sizes never travel, and a side of zero bytes is skipped by
// both ranks. Errors: DeviceError (lost peer, abort, deadline), worded with rank, peer, step,
// layer, op and hop.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace annulus::parallel {

using ConstBytes = std::span<const std::byte>;
using Bytes = std::span<std::byte>;

// Names one operation: unique within (epoch, group, step), equal on all its ranks. Packed into
// message tags, so that a late message of an aborted step matches nothing, and worded into errors.
struct OpId {
  int64_t step = 0;
  int32_t layer = 0;  // < 1024; the layers' own, then those of head and sampling
  int32_t sequence =
      0;  // < 4096; counts the operations of this group within the layer, skipped ones too
  int32_t hop = 0;        // < 4096; set by rotate()
  const char* what = "";  // "kv ring", "partials"; for people
};

// A hop in flight. Must be awaited exactly once.
class [[nodiscard]] Transfer {
 public:
  Transfer() = default;
  explicit Transfer(uint64_t id) : id_(id) {}
  Transfer(Transfer&& other) noexcept : id_(std::exchange(other.id_, 0)) {}
  Transfer& operator=(Transfer&& other) noexcept {
    id_ = std::exchange(other.id_, 0);
    return *this;
  }
  uint64_t release() { return std::exchange(id_, 0); }

 private:
  uint64_t id_ = 0;  // 0: nothing in flight
};

template <class Queue>
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int32_t rank() const = 0;
  virtual int32_t size() const = 0;

  // data[i] = sum over ranks of data[i]: every rank gets the same bits. Added in rank order, save
  // by NCCL, whose order depends on the size.
  virtual void all_reduce(Queue& queue, std::span<float> data, const OpId& op) = 0;
  // Memory of the device in which all_reduce takes the least time: one piece, the same at every
  // call, that lives as long as the communicator and that whoever enqueues work shares in the
  // queue's order. Null where there is none or the sum is too large for it: on all ranks of the
  // group alike, as `bytes` is.
  virtual std::byte* symmetric_memory(int64_t bytes) {
    (void)bytes;
    return nullptr;
  }
  // out = payloads of ranks 0..size-1, one after the other; bytes[r] = size of rank r's; own = this
  // rank's payload.
  virtual void all_gather(Queue& queue, ConstBytes own, Bytes out, std::span<const int64_t> bytes,
                          const OpId& op) = 0;
  // send[r] goes to rank r and lands in its recv[this rank]; sizes agree pairwise; the own part is
  // copied.
  virtual void all_to_all(Queue& queue, std::span<const ConstBytes> send,
                          std::span<const Bytes> recv, const OpId& op) = 0;
  // Starts sending to `to` and receiving from `from` (may be the same rank). Buffers stay valid and
  // untouched until await.
  virtual Transfer exchange(Queue& queue, ConstBytes send, int32_t to, Bytes recv, int32_t from,
                            const OpId& op) = 0;
  virtual void await(Queue& queue, Transfer transfer) = 0;
  // Moves transfers along while the device computes; cheap when nothing is in flight.
  virtual void progress() = 0;

  // Waits later than this throw.
  virtual void set_deadline(std::chrono::steady_clock::time_point deadline) = 0;
  virtual void abort(const std::string& why) = 0;

  // Payload bytes this rank has sent to others since construction (a self copy is free).
  virtual int64_t bytes_sent() const = 0;
  // Time this rank has spent waiting for peers (exposed communication), microseconds since
  // construction.
  virtual double waited_us() const = 0;
};

// The groups of one rank in one epoch. Groups of size 1 are real communicators whose operations are
// copies.
template <class Queue>
struct Groups {
  Communicator<Queue>* tp = nullptr;
  Communicator<Queue>* cp = nullptr;
  Communicator<Queue>* world = nullptr;
};

}  // namespace annulus::parallel
