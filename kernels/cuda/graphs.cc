// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/graphs.h"

#include <algorithm>
#include <utility>

#include "kernels/cuda/launch.h"

namespace annulus::kernels {
namespace {

// A decode step of 126 layers is some 2,000 nodes, 1 to 2 KB each. CP ranks take turns as owners,
// so that one batch has as many graphs as there are CP ranks.
constexpr size_t kMostKeys = 256;
constexpr int64_t kMostGraphs = 128;

}  // namespace

bool CudaGraphs::seen(uint64_t key) {
  const std::lock_guard lock(mutex_);
  const auto [at, is_new] = keys_.try_emplace(key);
  at->second.used = ++clock_;
  if (keys_.size() > kMostKeys) drop_oldest_key();
  return !is_new;
}

bool CudaGraphs::launch(uint64_t key, const Log& log, cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  check_open();
  for (Graph& graph : keys_.at(key).graphs) {
    if (graph.log != log) continue;
    check_cuda(cudaGraphLaunch(graph.graph, stream), "a graph's launch");
    graph.used = ++clock_;
    ++counts_.replayed;
    return true;
  }
  return false;
}

void CudaGraphs::add(uint64_t key, Log log, cudaGraph_t captured, cudaStream_t stream) {
  Graph graph = {.log = std::move(log)};
  // With the priorities of the streams that were captured: hops have theirs (parallel/comm_nccl.h).
  const std::lock_guard lock(mutex_);
  const cudaError_t error = ended_ ? cudaSuccess
                                   : cudaGraphInstantiate(&graph.graph, captured,
                                                          cudaGraphInstantiateFlagUseNodePriority);
  cudaGraphDestroy(captured);
  check_open();
  check_cuda(error, "a CUDA graph (serve --cuda-graphs off does without)");
  graph.used = ++clock_;
  keys_.at(key).graphs.push_back(std::move(graph));
  ++counts_.kept;
  ++counts_.captured;
  check_cuda(cudaGraphLaunch(keys_.at(key).graphs.back().graph, stream), "a graph's launch");
  if (counts_.kept > kMostGraphs) drop_oldest_graph();
}

void CudaGraphs::end() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  for (const auto& [key, of_key] : keys_) {
    for (const Graph& graph : of_key.graphs) cudaGraphExecDestroy(graph.graph);
  }
  keys_.clear();
  counts_.kept = 0;
}

CudaGraphs::Counts CudaGraphs::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

void CudaGraphs::check_open() const {
  if (ended_) throw DeviceError("aborted: this epoch's graphs are gone");
}

void CudaGraphs::drop_oldest_key() {
  const auto oldest =
      std::min_element(keys_.begin(), keys_.end(),
                       [](const auto& a, const auto& b) { return a.second.used < b.second.used; });
  for (const Graph& graph : oldest->second.graphs) cudaGraphExecDestroy(graph.graph);
  counts_.kept -= std::ssize(oldest->second.graphs);
  keys_.erase(oldest);
}

void CudaGraphs::drop_oldest_graph() {
  Key* of_key = nullptr;
  size_t at = 0;
  for (auto& [key, each] : keys_) {
    for (size_t i = 0; i < each.graphs.size(); ++i) {
      if (of_key != nullptr && each.graphs[i].used >= of_key->graphs[at].used) continue;
      of_key = &each;
      at = i;
    }
  }
  cudaGraphExecDestroy(of_key->graphs[at].graph);
  of_key->graphs.erase(of_key->graphs.begin() + static_cast<std::ptrdiff_t>(at));
  --counts_.kept;
}

}  // namespace annulus::kernels
