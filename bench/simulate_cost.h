// SPDX-License-Identifier: Apache-2.0
// Prices: what one op or transfer takes on a machine, in microseconds. Rooflines with measured
// rates for ops, alpha-beta for links, where ranks that send at the same time share what they
// share: the TP ranks of a CP rank step alike, so a hop between nodes has their number on the NICs
// of a node; in a collective every rank of the node is on them. PURE. Ranks are CP ranks; rank r of
// TP group size t is the GPUs [r t, (r + 1) t).
#pragma once

#include <cstdint>
#include <span>

#include "bench/simulate_machine.h"
#include "kernels/attention.h"
#include "parallel/ring_policy.h"
#include "parallel/topology.h"

namespace annulus::bench {

class Cost {
 public:
  Cost(const Machine& machine, parallel::Topology topology) : m_(machine), topology_(topology) {}
  const Machine& machine() const { return m_; }

  // A decode step under a graph has no launches.
  void set_graph(bool graph) { graph_ = graph && m_.graph_decode > 0; }

  double matmul_us(double rows, double n, double k, double bytes_per_weight) const;
  double attend_us(double flops, double bytes) const;
  double rows_us(double activations, double bytes) const;
  double all_reduce_us(double activations) const;  // over the TP group
  double tp_gather_us(double bytes) const;         // each rank's share

  double hop_us() const;  // of the queue, beside what `overlap` leaves to it
  // In flight, of a message between two CP ranks.
  double wire_us(double bytes, int32_t from, int32_t to) const;
  double collective_us() const;  // without the bytes
  // Own bytes to (or from) ranks of the same node, and to the others.
  double collective_wire_us(double local_bytes, double net_bytes) const;

  bool same_node(int32_t a, int32_t b) const;
  // What a rank of this machine would measure, for the policy.
  parallel::MachineProfile profile(double linear_us_per_row) const;

 private:
  double launch(double us) const { return graph_ ? 0 : us; }

  const Machine& m_;
  parallel::Topology topology_;
  bool graph_ = false;
};

// (query, key) pairs with key <= query; both ascending.
double visible_pairs(std::span<const int32_t> queries, std::span<const int32_t> keys);

}  // namespace annulus::bench
