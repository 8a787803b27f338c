// SPDX-License-Identifier: Apache-2.0
// How fast hops and collectives of this ring are, for ring_policy. Collective: every rank of the
// ring calls it at the same point; at most about 0.4 s (more only where one megabyte takes longer
// than 50 ms). Every rank returns the same numbers, those of the worst rank. A ring of one has no
// link: no latency, 1e6 bytes/us, overlap 1; in a ring of two a collective is a hop. Uses
// operations of step `step`, layer 1023. Errors: DeviceError. Defined in measure_link_inl.h.
#pragma once

#include <cstdint>

#include "parallel/communicator.h"

namespace annulus::parallel {

struct LinkMeasure {
  double overhead_us = 0;     // of a hop of 8 bytes: what computing beside it does not hide
  double latency_us = 0;      // the rest of that hop, all ranks at once
  double bytes_per_us = 1e6;  // a hop of 1 MiB to the next rank while one comes from the previous
  double overlap = 1;  // share of such a hop that hides behind computing that polls: 0 none, 1 all
  double collective_overhead_us = 0;     // an all-to-all of 8 bytes for each
  double collective_bytes_per_us = 1e6;  // sent to all others
  double small_hop_us() const { return overhead_us + latency_us; }
};

template <class Queue>
LinkMeasure measure_link(Communicator<Queue>& ring, Queue& queue, int64_t step = 0);

}  // namespace annulus::parallel
