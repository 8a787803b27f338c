// SPDX-License-Identifier: Apache-2.0
// How a call of attention becomes blocks of a grid, for every kernel on tensor cores: which rows
// and keys each block has (Work), what is known of the keys' positions (Bounds), and the results of
// keys that were cut into splits (Results), which join_splits() adds to acc.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <type_traits>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cuda/queue.h"

namespace annulus::kernels {

inline constexpr int kBoundKeys = 32;  // keys a pair of bounds stands for

// A segment and its share of a launch. The query heads of a KV head are rows of one product: row m
// is query m / group, head m % group of the KV head's.
struct Work {
  Segment segment;
  int32_t first_bound = 0;  // of its keys in the table of bounds
  int32_t first_block = 0;  // of the grid's x: row tiles, by split
  int32_t row_tiles = 0, splits = 1;
  int64_t first_cell = 0;  // of its splits' results, [split][query][head]; if several
};
struct Bounds {
  int32_t least, most;  // positions of kBoundKeys keys; those that are not there widen neither
};
struct Results {  // of splits
  float* o;       // [cells, head_dim]
  float* lse;     // [cells]
};

// What a kernel's block takes.
struct BlockSize {
  int32_t rows = 0, keys = 0;  // keys: of a tile
  int64_t at_once = 0;         // blocks that the GPU holds
};

// A launch's tables, on the device but for `work`, whose copy there is `on_device`.
struct WorkPlan {
  std::vector<Work> work;
  std::span<const Work> on_device;
  const Bounds* bounds = nullptr;
  Results results = {};
  int64_t blocks = 0;         // the grid's x, the last of which may have no work; its y: KV heads
  int64_t pairs = 0;          // of bounds
  int64_t cells = 0;          // of results
  int32_t longest_split = 0;  // query rows of the longest segment with several splits
};

// enqueue(way, its segments) for each way_of(segment). Where all go one way, as a batch that
// decodes does, they are not copied.
template <class WayOf, class Enqueue>
void each_way(std::span<const Segment> segments, const WayOf& way_of, const Enqueue& enqueue) {
  if (segments.empty()) return;
  const auto first = way_of(segments.front());
  const auto goes_there = [&](const Segment& segment) { return way_of(segment) == first; };
  if (std::all_of(segments.begin(), segments.end(), goes_there)) {
    enqueue(first, segments);
    return;
  }
  std::map<std::decay_t<decltype(first)>, std::vector<Segment>> ways;
  for (const Segment& segment : segments) ways[way_of(segment)].push_back(segment);
  for (const auto& [way, its] : ways) enqueue(way, std::span<const Segment>(its));
}

// plan_work() but for the device's part: work, and exactly what it takes.
WorkPlan cut_work(std::span<const Segment> segments, const KvFormat& format, int32_t heads,
                  BlockSize block, int32_t splits);

// More of everything, so that work that grows by a token a step keeps its grids and addresses for
// many of them (CudaQueue::repeat).
void round_up(WorkPlan& plan);

// Enqueues the tables of these segments, but for those without queries or keys, in scratch of the
// surrounding Mark. splits: of every segment, or 0: as many as fill the GPU.
WorkPlan plan_work(CudaQueue& queue, std::span<const Segment> segments, const KvFormat& format,
                   Partial acc, BlockSize block, int32_t splits);

// acc = merge(acc, the results of every split).
void join_splits(CudaQueue& queue, const WorkPlan& plan, Partial acc);

}  // namespace annulus::kernels
