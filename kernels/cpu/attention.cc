// SPDX-License-Identifier: Apache-2.0
// attend, merge, clear, kv_append and kv_pack on CpuQueue: checks, cutting into work items, and
// dispatch to the instruction set's kernels. How a segment is cut (tiled or few-row kernel, row
// blocks, key splits) is a pure function of its shape, never of the thread count: same bits on any
// number of threads.
#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include "kernels/core/math.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/queue.h"
#include "kernels/cpu/row_kernels.h"

namespace annulus::kernels {
namespace {

constexpr int32_t kTileKeys = 64;       // splits fall on tile edges
constexpr int32_t kFewSplitKeys = 512;  // 400 KiB of bf16 at 3 KV heads of 64: about 20 us
constexpr int32_t kTiledSplitKeys = 2048;
constexpr int32_t kWantedItems = 32;  // per segment, where its keys allow
static_assert(kWantedItems <= kMaxSplits);

// How one segment is cut: blocks of query rows x KV heads x splits of keys.
struct Cut {
  bool few = false;
  int32_t kv_heads = 1;          // of an item: all, so that few rows read the cache in its order
  int32_t rows = 0, blocks = 0;  // query rows of a block
  int32_t split_keys = 0, splits = 1;
};

Cut cut_segment(const Segment& segment, int32_t group, const KvFormat& format, int32_t block_rows) {
  const int32_t n = segment.q_count, keys = segment.kv.count;
  Cut cut;
  cut.few = int64_t{n} * group <= kFewRows && format.head_dim % 32 == 0;
  if (cut.few) {
    cut.kv_heads = format.kv_heads;
    cut.rows = n;
    cut.blocks = 1;
    cut.split_keys = std::max(kFewSplitKeys, ceil_div(keys, kMaxSplits));
    cut.split_keys = ceil_div(cut.split_keys, kTileKeys) * kTileKeys;
  } else {
    cut.blocks = ceil_div(n, std::max(1, block_rows / group));
    cut.rows = ceil_div(n, cut.blocks);
    cut.blocks = ceil_div(n, cut.rows);
    const int32_t wanted = ceil_div(kWantedItems, cut.blocks * format.kv_heads);
    cut.split_keys = std::max(kTiledSplitKeys, ceil_div(keys, wanted));
    cut.split_keys = ceil_div(cut.split_keys, kTileKeys) * kTileKeys;
  }
  cut.splits = std::max(1, ceil_div(keys, cut.split_keys));
  return cut;
}

struct Item {
  int32_t segment, kv_head, kv_heads, first_row, rows, first_key, last_key;
  bool few;
  float* partial_o;  // null: the item merges into acc itself
  float* partial_lse;
};

// Partials of all splits of one row block and its KV heads.
struct Gather {
  int32_t segment, kv_head, kv_heads, first_row, rows, splits;
  float* o;
  float* lse;
};

void check_arguments(const ConstTensor& q, std::span<const Segment> segments,
                     const KvFormat& format, float scale, const Partial& acc) {
  ANNULUS_CHECK(format.kv_heads > 0 && acc.heads % format.kv_heads == 0, "heads ", acc.heads,
                " kv_heads ", format.kv_heads);
  ANNULUS_CHECK(format.head_dim > 0 && format.head_dim % 8 == 0 && format.head_dim <= kMaxHeadDim,
                "head_dim ", format.head_dim);
  ANNULUS_CHECK(acc.head_dim == format.head_dim, acc.head_dim, " ", format.head_dim);
  ANNULUS_CHECK(format.page_tokens > 0, format.page_tokens);
  ANNULUS_CHECK(q.dtype == format.dtype, "q is ", name(q.dtype), ", the cache ",
                name(format.dtype));
  ANNULUS_CHECK(q.rows == acc.rows && q.cols == int64_t{acc.heads} * acc.head_dim, "q ", q.rows,
                "x", q.cols, " acc ", acc.rows, "x", acc.heads, "x", acc.head_dim);
  ANNULUS_CHECK(std::isfinite(scale) && scale > 0, "scale ", scale);
  for (const Segment& segment : segments) {
    ANNULUS_CHECK(segment.q_first >= 0 && segment.q_count >= 0 &&
                      int64_t{segment.q_first} + segment.q_count <= q.rows,
                  "rows ", segment.q_first, "+", segment.q_count, " of ", q.rows);
    ANNULUS_CHECK(segment.kv.count >= 0, segment.kv.count);
  }
}

}  // namespace

template <>
void clear(CpuQueue&, Partial acc) {
  std::fill_n(acc.o, acc.o_elements(), 0.0f);
  std::fill_n(acc.lse, acc.rows * acc.heads, -std::numeric_limits<float>::infinity());
}

template <>
void attend(CpuQueue& queue, ConstTensor q, std::span<const Segment> segments,
            const KvFormat& format, float scale, Partial acc) {
  check_arguments(q, segments, format, scale, acc);
  const AttentionKernels& kernels = ANNULUS_SELECT_ISA(queue.isa(), attention_kernels);
  const int32_t d = format.head_dim, group = acc.heads / format.kv_heads;
  const int64_t size = size_bytes(format.dtype);
  const int32_t block_rows = kernels.block_rows(format.dtype);
  CpuQueue::Mark mark(queue);

  int64_t n_items = 0, n_gathers = 0, split_rows = 0;
  int32_t max_m = 0;
  for (const Segment& segment : segments) {
    if (segment.q_count == 0 || segment.kv.count == 0) continue;
    const Cut cut = cut_segment(segment, group, format, block_rows);
    const int64_t blocks = int64_t{cut.blocks} * (format.kv_heads / cut.kv_heads);
    n_items += blocks * cut.splits;
    max_m = std::max(max_m, cut.rows * group * cut.kv_heads);
    if (cut.splits == 1) continue;
    n_gathers += blocks;
    split_rows += int64_t{segment.q_count} * acc.heads * cut.splits;
  }
  if (n_items == 0) return;

  Item* items = queue.scratch<Item>(n_items);
  Gather* gathers = queue.scratch<Gather>(n_gathers);
  float* split_o = queue.scratch<float>(split_rows * d);
  float* split_lse = queue.scratch<float>(split_rows);
  Item* item = items;
  Gather* gather = gathers;
  for (size_t s = 0; s < segments.size(); ++s) {
    const Segment& segment = segments[s];
    if (segment.q_count == 0 || segment.kv.count == 0) continue;
    const Cut cut = cut_segment(segment, group, format, block_rows);
    const auto index = static_cast<int32_t>(s);
    // Last rows first: under a causal mask they see the most keys, and long items should not start
    // last.
    for (int32_t block = cut.blocks - 1; block >= 0; --block) {
      const int32_t first_row = block * cut.rows;
      const int32_t rows = std::min(cut.rows, segment.q_count - first_row);
      const int64_t m = int64_t{rows} * group * cut.kv_heads;
      for (int32_t head = 0; head < format.kv_heads; head += cut.kv_heads) {
        if (cut.splits > 1)
          *gather++ = {index, head, cut.kv_heads, first_row, rows, cut.splits, split_o, split_lse};
        for (int32_t split = 0; split < cut.splits; ++split) {
          const int32_t first_key = split * cut.split_keys;
          const int32_t last_key = std::min(segment.kv.count, first_key + cut.split_keys);
          const bool direct = cut.splits == 1;
          *item++ = {index,
                     head,
                     cut.kv_heads,
                     first_row,
                     rows,
                     first_key,
                     last_key,
                     cut.few,
                     direct ? nullptr : split_o,
                     direct ? nullptr : split_lse};
          if (direct) continue;
          split_o += m * d;
          split_lse += m;
        }
      }
    }
  }

  const int64_t scratch_bytes = (kernels.scratch_bytes(max_m, d) + 63) / 64 * 64;
  std::byte* scratch = queue.scratch<std::byte>(scratch_bytes * queue.threads());
  const std::thread::id owner = std::this_thread::get_id();
  queue.parallel_for(n_items, [&](int64_t i, int thread) {
    const Item& it = items[i];
    const Segment& segment = segments[static_cast<size_t>(it.segment)];
    AttendBlock block;
    const int64_t row = int64_t{segment.q_first} + it.first_row;
    block.q = static_cast<const std::byte*>(q.data) +
              (row * q.row_stride + int64_t{it.kv_head} * group * d) * size;
    block.q_stride_bytes = q.row_stride * size;
    block.q_positions = segment.q_positions + it.first_row;
    block.rows = it.rows;
    block.group = group;
    block.head_dim = d;
    block.kv_heads = it.kv_heads;
    block.dtype = format.dtype;
    block.scale = scale;
    block.base = segment.kv.base;
    block.pages = segment.kv.pages;
    block.key_positions = segment.kv.positions;
    block.page_tokens = format.page_tokens;
    block.row_bytes = format.row_bytes();
    block.k_offset_bytes = int64_t{it.kv_head} * d * size;
    block.v_offset_bytes = int64_t{format.kv_heads + it.kv_head} * d * size;
    block.first_key = it.first_key;
    block.last_key = it.last_key;
    if (const int64_t soon = i + queue.threads();
        soon < n_items && items[soon].segment == it.segment) {
      block.soon_first_key = items[soon].first_key;
      block.soon_last_key = items[soon].last_key;
    }
    if (it.partial_o != nullptr) {
      block.o = it.partial_o;
      block.lse = it.partial_lse;
      block.out_heads = int64_t{group} * it.kv_heads;
      block.store = true;
    } else {
      const int64_t at = row * acc.heads + int64_t{it.kv_head} * group;
      block.o = acc.o + at * d;
      block.lse = acc.lse + at;
      block.out_heads = acc.heads;
    }
    if (std::this_thread::get_id() == owner) {
      block.poll = [](void* context) { static_cast<CpuQueue*>(context)->poll(); };
      block.poll_context = &queue;
    }
    (it.few ? kernels.attend_few : kernels.attend)(block, scratch + thread * scratch_bytes);
  });
  if (n_gathers == 0) return;
  queue.parallel_for(n_gathers, [&](int64_t i, int) {
    const Gather& g = gathers[i];
    const Segment& segment = segments[static_cast<size_t>(g.segment)];
    const int64_t heads = int64_t{group} * g.kv_heads;
    for (int32_t r = 0; r < g.rows; ++r) {
      const int64_t at =
          (int64_t{segment.q_first} + g.first_row + r) * acc.heads + int64_t{g.kv_head} * group;
      kernels.combine(acc.o + at * d, acc.lse + at, g.o + r * heads * d, g.lse + r * heads,
                      g.splits, g.rows * heads, heads, d);
    }
  });
}

template <>
void merge(CpuQueue& queue, Partial into, Partial from) {
  ANNULUS_CHECK(
      into.rows == from.rows && into.heads == from.heads && into.head_dim == from.head_dim,
      into.rows, "x", into.heads, "x", into.head_dim, " and ", from.rows, "x", from.heads, "x",
      from.head_dim);
  const AttentionKernels& kernels = ANNULUS_SELECT_ISA(queue.isa(), attention_kernels);
  constexpr int64_t kRows = 256;
  const int64_t count = into.rows * into.heads, d = into.head_dim;
  queue.parallel_for((count + kRows - 1) / kRows, [&](int64_t i, int) {
    const int64_t first = i * kRows;
    kernels.merge(into.o + first * d, into.lse + first, from.o + first * d, from.lse + first,
                  std::min(kRows, count - first), into.head_dim);
  });
}

template <>
void kv_append(CpuQueue& queue, ConstTensor k, ConstTensor v, std::byte* base,
               std::span<const int64_t> slot_rows, const KvFormat& format) {
  const int64_t width = int64_t{format.kv_heads} * format.head_dim;
  const auto rows = static_cast<int64_t>(slot_rows.size());
  ANNULUS_CHECK(k.dtype == DType::kF32 && v.dtype == DType::kF32, name(k.dtype), " ",
                name(v.dtype));
  ANNULUS_CHECK(k.rows == rows && v.rows == rows && k.cols == width && v.cols == width, "k ",
                k.rows, "x", k.cols, " v ", v.rows, "x", v.cols, " for ", rows, "x", width);
  const RowKernels& kernels = ANNULUS_SELECT_ISA(queue.isa(), kRowKernels);
  constexpr int64_t kRows = 64;
  queue.parallel_for((rows + kRows - 1) / kRows, [&](int64_t i, int) {
    for (int64_t r = i * kRows; r < std::min(rows, (i + 1) * kRows); ++r) {
      std::byte* out = base + slot_rows[static_cast<size_t>(r)] * format.row_bytes();
      for (const float* from : {k.row<const float>(r), v.row<const float>(r)}) {
        if (format.dtype == DType::kF32) {
          std::memcpy(out, from, static_cast<size_t>(width) * sizeof(float));
        } else {
          kernels.to_bf16(reinterpret_cast<bf16*>(out), from, width);
        }
        out += width * size_bytes(format.dtype);
      }
    }
  });
}

template <>
void kv_pack(CpuQueue& queue, std::byte* out, std::span<const KvRows> rows,
             const KvFormat& format) {
  struct Run {
    const std::byte* from;
    int64_t offset_bytes, bytes;
  };
  const int64_t row_bytes = format.row_bytes();
  // At most as many rows as make a task of some tens of microseconds.
  const int64_t run_rows = std::max<int64_t>(1, (int64_t{256} << 10) / row_bytes);
  const auto next_run = [&](const KvRows& kv, int64_t first) {
    int64_t count = std::min<int64_t>(run_rows, kv.count - first);
    if (kv.pages == nullptr) return Run{kv.base + first * row_bytes, 0, count * row_bytes};
    const int64_t page = first / format.page_tokens, within = first % format.page_tokens;
    count = std::min(count, format.page_tokens - within);
    return Run{kv.base + kv.pages[page] * format.page_bytes() + within * row_bytes, 0,
               count * row_bytes};
  };
  CpuQueue::Mark mark(queue);
  int64_t n_runs = 0;
  for (const KvRows& kv : rows)
    for (int64_t r = 0; r < kv.count; ++n_runs) r += next_run(kv, r).bytes / row_bytes;
  Run* runs = queue.scratch<Run>(n_runs);
  int64_t n = 0, offset_bytes = 0;
  for (const KvRows& kv : rows) {
    for (int64_t r = 0; r < kv.count; ++n) {
      runs[n] = next_run(kv, r);
      runs[n].offset_bytes = offset_bytes;
      offset_bytes += runs[n].bytes;
      r += runs[n].bytes / row_bytes;
    }
  }
  // Pages are small: several of them make a task.
  constexpr int64_t kRuns = 4;
  queue.parallel_for((n_runs + kRuns - 1) / kRuns, [&](int64_t task, int) {
    for (int64_t i = task * kRuns; i < std::min(n_runs, (task + 1) * kRuns); ++i)
      std::memcpy(out + runs[i].offset_bytes, runs[i].from, static_cast<size_t>(runs[i].bytes));
  });
}

}  // namespace annulus::kernels
