// SPDX-License-Identifier: Apache-2.0
// rotate(): the one ring primitive. Shows every rank's payload to visit(origin, payload), own
// first, then the previous rank's, and so on, while the next one is in flight: N visits, N-1
// transfers, two buffers. It knows nothing of attention, zigzag or chunks. bytes[r] is rank r's
// payload size, known to all from the plan; a rank without rows still forwards, and an empty
// payload is neither sent nor received (it is visited, with size 0). Consecutive rotates may share
// buffers: on a device that only enqueues, the first hop waits for the last visit of the rotate
// before.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/core/check.h"
#include "parallel/communicator.h"

namespace annulus::parallel {

// Two receive buffers, each as large as the largest payload of another rank.
struct PingPong {
  Bytes buffer[2];
};

template <class Queue, class Visit>
void rotate(Communicator<Queue>& ring, Queue& queue, ConstBytes own, std::span<const int64_t> bytes,
            PingPong buffers, OpId op, Visit&& visit) {
  const int32_t n = ring.size(), me = ring.rank();
  const int32_t next = (me + 1) % n, previous = (me + n - 1) % n;
  ANNULUS_CHECK(static_cast<int32_t>(bytes.size()) == n, "sizes of ", bytes.size(),
                " ranks, ring of ", n);
  ANNULUS_CHECK(static_cast<int64_t>(own.size()) == bytes[static_cast<size_t>(me)], "own payload");
  ConstBytes payload = own;
  for (int32_t hop = 0; hop < n; ++hop) {
    const int32_t origin = (me + n - hop) % n;
    if (hop == n - 1) {
      visit(origin, payload);
      return;
    }
    const int32_t coming = (origin + n - 1) % n;
    const Bytes room =
        buffers.buffer[hop % 2].first(static_cast<size_t>(bytes[static_cast<size_t>(coming)]));
    op.hop = hop;
    Transfer transfer = ring.exchange(queue, payload, next, room, previous, op);
    visit(origin, payload);
    ring.await(queue, std::move(transfer));
    payload = room;
  }
}

}  // namespace annulus::parallel
