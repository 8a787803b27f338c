// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/graphs.h"

#include <algorithm>
#include <utility>

#include "kernels/cuda/launch.h"

namespace annulus::kernels {
namespace {

// A decode step of 126 layers is some 2,000 nodes, 1 to 2 KB each. CP ranks take turns as owners,
// so that one batch has as many graphs as there are CP ranks.
constexpr size_t kMostKeys = 256, kMostGraphs = 128;

}  // namespace

bool CudaGraphs::seen(uint64_t key) {
  const std::lock_guard lock(mutex_);
  const bool is_new = keys_.insert_or_assign(key, ++clock_).second;
  if (keys_.size() > kMostKeys) {
    const auto oldest =
        std::min_element(keys_.begin(), keys_.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    drop([&](const Graph& graph) { return graph.key == oldest->first; });
    keys_.erase(oldest);
  }
  return !is_new;
}

bool CudaGraphs::launch(uint64_t key, const Log& log, cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  check_open();
  for (Graph& graph : graphs_) {
    if (graph.key != key || graph.log != log) continue;
    check_cuda(cudaGraphLaunch(graph.graph, stream), "a graph's launch");
    graph.used = ++clock_;
    ++replayed_;
    return true;
  }
  return false;
}

void CudaGraphs::add(uint64_t key, Log log, cudaGraph_t captured, cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  cudaGraphExec_t graph = nullptr;
  // With the priorities of the streams that were captured: hops have theirs (parallel/comm_nccl.h).
  const cudaError_t error =
      ended_ ? cudaSuccess
             : cudaGraphInstantiate(&graph, captured, cudaGraphInstantiateFlagUseNodePriority);
  cudaGraphDestroy(captured);
  check_open();
  check_cuda(error, "a CUDA graph (serve --cuda-graphs off does without)");
  graphs_.push_back({key, std::move(log), graph, ++clock_});
  ++captured_;
  check_cuda(cudaGraphLaunch(graph, stream), "a graph's launch");
  if (graphs_.size() <= kMostGraphs) return;
  const auto oldest =
      std::min_element(graphs_.begin(), graphs_.end(),
                       [](const Graph& a, const Graph& b) { return a.used < b.used; });
  drop([used = oldest->used](const Graph& each) { return each.used == used; });
}

void CudaGraphs::end() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  drop([](const Graph&) { return true; });
  keys_.clear();
}

CudaGraphs::Counts CudaGraphs::counts() const {
  const std::lock_guard lock(mutex_);
  return {captured_, replayed_, std::ssize(graphs_)};
}

void CudaGraphs::check_open() const {
  if (ended_) throw DeviceError("aborted: this epoch's graphs are gone");
}

template <class Which>
void CudaGraphs::drop(const Which& which) {
  std::erase_if(graphs_, [&](const Graph& graph) {
    if (!which(graph)) return false;
    cudaGraphExecDestroy(graph.graph);
    return true;
  });
}

}  // namespace annulus::kernels
