// SPDX-License-Identifier: Apache-2.0
// CudaGraphs: what a queue has captured of work that comes again, each as an executable CUDA graph
// beside the log of its launches: what it runs is known to be what would be enqueued, byte for byte
// (CudaQueue::repeat). Bounded: the least recently used goes. Any thread may call: a communicator's
// transfers are part of a graph, and NCCL's abort waits until no graph holds them, so that end()
// comes before it (NCCL user guide, "Using NCCL with CUDA Graphs"; docs of ncclCommAbort). Errors:
// DeviceError.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace annulus::kernels {

class CudaGraphs {
 public:
  using Log = std::vector<std::byte>;  // of launches, copies and transfers, with all arguments

  CudaGraphs() = default;
  ~CudaGraphs() { end(); }
  CudaGraphs(const CudaGraphs&) = delete;
  CudaGraphs& operator=(const CudaGraphs&) = delete;

  // Whether this key has been asked for before, as far as the last kMostKeys of them tell: which
  // the order of calls alone decides, so that ranks that ask alike hear alike.
  bool seen(uint64_t key);
  // Launches the graph of the key that does what the log says; false: there is none.
  bool launch(uint64_t key, const Log& log, cudaStream_t stream);
  // Makes the captured graph executable, launches it and keeps it. Takes `captured`.
  void add(uint64_t key, Log log, cudaGraph_t captured, cudaStream_t stream);
  // Gives all of them up; nothing is launched from now on. What runs of them runs to its end.
  void end();

  struct Counts {
    int64_t captured = 0, replayed = 0;  // so far
    int64_t kept = 0;                    // now
  };
  Counts counts() const;

 private:
  struct Graph {
    uint64_t key;
    Log log;
    cudaGraphExec_t graph;
    int64_t used;  // when
  };
  void check_open() const;
  template <class Which>
  void drop(const Which& which);

  mutable std::mutex mutex_;          // guards the rest
  std::map<uint64_t, int64_t> keys_;  // when each was asked for last
  std::vector<Graph> graphs_;
  int64_t clock_ = 0;  // calls
  bool ended_ = false;
  int64_t captured_ = 0, replayed_ = 0;
};

}  // namespace annulus::kernels
