// SPDX-License-Identifier: Apache-2.0
// How the ranks of an epoch come by their weights: a rank holds them from an earlier epoch, reads
// them from the model's file, or is sent them, packed as the device holds them, by a CP rank of the
// same TP slice. Senders form a chain: each rank hands on what it receives in pieces while the next
// ones arrive, and the first one sends a matrix while it reads the next, so that all of it takes
// about as long as the slower of one read and one transfer, whatever the number of ranks. Pieces go
// from and to the memory where the weights stay; nothing else is held. Called by the thread that
// owns the communicators, before the epoch's first step. Errors: what load_weights() returns;
// FailedPrecondition (weights differ); DeviceError (peer lost, abort, memory), after which
// `weights` and the queue must outlive the communicators. Defined in weight_transfer_inl.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "parallel/communicator.h"
#include "parallel/model/weights.h"
#include "parallel/topology.h"

namespace annulus::parallel {

// Of one rank; both are CP ranks of its TP slice.
struct WeightRoute {
  int32_t from = -1;   // who sends it the weights; -1: it holds or reads them
  int32_t to = -1;     // whom it sends them on to; -1: nobody
  bool table = false;  // to ranks without a file: the embedding table comes first
  friend bool operator==(const WeightRoute&, const WeightRoute&) = default;
};

struct WeightWish {              // what is to be got
  const Checkpoint& checkpoint;  // of a rank with `from`: need have no file
  int32_t tp_rank = 0, tp = 1;
  kernels::Precision precision = kernels::Precision::kDefault;
  WeightRoute route;
  LoadProgress progress;  // from the thread that reads, receives, or sends what is held
};

// To route.to, what this rank holds.
template <class Queue>
void send_weights(Queue& queue, Communicator<Queue>& cp, const WeightWish& wish,
                  const LlamaWeights<Queue>& weights);

// From route.from, and on to route.to.
template <class Queue>
absl::Status receive_weights(Queue& queue, Communicator<Queue>& cp, const WeightWish& wish,
                             LlamaWeights<Queue>& weights);

// From the file, and to route.to. loader() makes the queue to read with, on the thread that reads.
// Where a receiver is lost, reading goes on and `weights` are whole when DeviceError is thrown.
template <class Queue>
absl::Status read_weights(Queue& queue, const std::function<std::unique_ptr<Queue>()>& loader,
                          Communicator<Queue>& cp, const WeightWish& wish,
                          LlamaWeights<Queue>& weights);

// Waits until every rank of the world has its weights: the front end ends an epoch in which no rank
// moves. FailedPrecondition where ranks of one TP slice hold different ones.
template <class Queue>
absl::Status compare_weights(Queue& queue, Communicator<Queue>& world, const Topology& topology,
                             uint64_t digest);

}  // namespace annulus::parallel
