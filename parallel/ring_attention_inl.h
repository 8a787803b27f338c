// SPDX-License-Identifier: Apache-2.0
// ring_attend() and upload(), instantiated for each queue in on_<device>.cc.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "kernels/core/phase.h"
#include "parallel/kv_store.h"
#include "parallel/ring.h"
#include "parallel/ring_attention.h"

namespace annulus::parallel {
namespace ring_attention {

using kernels::ConstTensor;
using kernels::KvFormat;
using kernels::KvRows;
using kernels::Partial;
using kernels::Segment;

inline size_t index(int64_t i) {
  return static_cast<size_t>(i);
}

template <class T>
Bytes bytes_of(T* data, int64_t bytes) {
  return {reinterpret_cast<std::byte*>(data), index(bytes)};
}

inline int64_t largest_other(const std::vector<int64_t>& values, int32_t me) {
  int64_t most = 0;
  for (size_t r = 0; r < values.size(); ++r) {
    if (static_cast<int32_t>(r) != me) most = std::max(most, values[r]);
  }
  return most;
}

// Rows of a block that one rank contributes: rows [block * size, ...) of its total.
inline int64_t rows_in_block(int64_t total, int64_t block, int64_t size) {
  return std::clamp<int64_t>(total - block * size, 0, size);
}

// The part of an item's query rows that falls into [first, first + count) of its rank's rows.
inline Segment segment_of(const ItemRows& item, int64_t first, int64_t count) {
  const int64_t begin = std::max(item.q_first, first);
  const int64_t end =
      std::min(item.q_first + static_cast<int64_t>(item.q_positions.size()), first + count);
  Segment segment;
  if (begin >= end) return segment;
  segment.q_first = static_cast<int32_t>(begin - first);
  segment.q_count = static_cast<int32_t>(end - begin);
  segment.q_positions = item.device_q_positions + (begin - item.q_first);
  return segment;
}

template <class Queue>
void pass_kv(Queue& queue, const GroupLayout& group, AttentionCall<Queue>& call, ConstTensor q,
             Partial out) {
  typename Queue::Mark mark(queue);
  const KvFormat& format = call.store.format();
  const int32_t me = call.ring.rank(), ranks = call.ring.size();
  std::vector<int64_t> bytes;
  for (const int64_t rows : group.kv_rows) bytes.push_back(rows * format.row_bytes());
  std::vector<KvRows> own;
  for (const int32_t slot : group.slots) own.push_back(call.store.rows(slot, call.layer));

  ConstBytes packed = bytes_of(static_cast<std::byte*>(nullptr), 0);
  PingPong buffers;
  if (ranks > 1) {
    const Bytes payload =
        bytes_of(queue.template scratch<std::byte>(bytes[index(me)]), bytes[index(me)]);
    const kernels::InPhase phase(queue, kernels::Phase::kSend);
    kernels::kv_pack(queue, payload.data(), own, format);
    packed = payload;
    const int64_t room = largest_other(bytes, me);
    for (Bytes& buffer : buffers.buffer) {
      buffer = bytes_of(queue.template scratch<std::byte>(room), room);
    }
    call.workspace_bytes = std::max(call.workspace_bytes, bytes[index(me)] + 2 * room);
  } else {
    packed = {own.empty() ? nullptr : own[0].base,
              index(bytes[0])};  // never read: the own visit uses the cache
  }
  const auto visit = [&](int32_t origin, ConstBytes payload) {
    const int32_t hop = (me + ranks - origin) % ranks;
    const kernels::AtHop at_hop(queue, hop);
    if (call.on_visit) call.on_visit(hop);
    std::vector<Segment> segments;
    for (size_t i = 0; i < group.slots.size(); ++i) {
      Segment segment = segment_of(group.ranks[index(me)][i], 0, q.rows);
      const ItemRows& theirs = group.ranks[index(origin)][i];
      if (origin == me) {
        segment.kv = own[i];
      } else {
        segment.kv = {payload.data() + theirs.kv_first * format.row_bytes(), nullptr,
                      theirs.device_kv_positions, static_cast<int32_t>(theirs.kv_positions.size())};
      }
      if (segment.q_count > 0 && segment.kv.count > 0) segments.push_back(segment);
    }
    kernels::attend(queue, q, segments, format, call.scale, out);
  };
  call.op.what = "kv ring";
  rotate(call.ring, queue, packed, bytes, buffers, call.op, visit);
  ++call.op.sequence;
}

// A partial in one contiguous range, o then lse, so that it travels as one message.
inline Partial partial_at(float* data, int64_t rows, const Partial& like) {
  return {data, data + rows * like.heads * like.head_dim, rows, like.heads, like.head_dim};
}

// pass-Q and gather-Q: queries visit the KV where it lies, partials return and are merged in rank
// order.
template <class Queue>
void pass_q_block(Queue& queue, const GroupLayout& group, AttentionCall<Queue>& call, ConstTensor q,
                  Partial out, int64_t block) {
  typename Queue::Mark mark(queue);
  const KvFormat& format = call.store.format();
  const int32_t me = call.ring.rank(), ranks = call.ring.size();
  const int64_t row_bytes = q.cols * kernels::size_bytes(q.dtype);
  const int64_t partial_bytes = int64_t{out.heads} * (out.head_dim + 1) * 4;
  const int64_t first = block * group.block_rows;
  std::vector<int64_t> rows, bytes;
  int64_t total = 0;
  for (const int64_t n : group.q_rows) {
    rows.push_back(rows_in_block(n, block, group.block_rows));
    bytes.push_back(rows.back() * row_bytes);
    total += rows.back();
  }
  const int64_t mine = rows[index(me)];
  const ConstBytes own = {
      static_cast<const std::byte*>(q.data) + (mine > 0 ? first * row_bytes : 0),
      index(mine * row_bytes)};
  const Partial result =
      mine > 0 ? out.slice(first, mine) : Partial{nullptr, nullptr, 0, out.heads, out.head_dim};

  std::vector<Partial> partial(index(ranks));
  std::vector<ConstBytes> send(index(ranks));
  std::vector<Bytes> receive(index(ranks));
  std::vector<Partial> returned(index(ranks));
  for (int32_t r = 0; r < ranks; ++r) {
    if (r == me) continue;
    float* data = queue.template scratch<float>(rows[index(r)] * partial_bytes / 4);
    partial[index(r)] = partial_at(data, rows[index(r)], out);
    send[index(r)] = bytes_of(data, rows[index(r)] * partial_bytes);
    float* back = queue.template scratch<float>(mine * partial_bytes / 4);
    returned[index(r)] = partial_at(back, mine, out);
    receive[index(r)] = bytes_of(back, mine * partial_bytes);
  }
  partial[index(me)] = result;
  const int64_t partials = (total - mine + (ranks - 1) * mine) * partial_bytes;

  const auto visit = [&](int32_t origin, ConstBytes payload) {
    const int32_t hop = (me + ranks - origin) % ranks;
    const kernels::AtHop at_hop(queue, hop);
    if (call.on_visit) call.on_visit(hop);
    if (rows[index(origin)] == 0) return;
    if (origin != me) kernels::clear(queue, partial[index(origin)]);
    std::vector<Segment> segments;
    for (size_t i = 0; i < group.slots.size(); ++i) {
      Segment segment = segment_of(group.ranks[index(origin)][i], first, rows[index(origin)]);
      segment.kv = call.store.rows(group.slots[i], call.layer);
      if (segment.q_count > 0 && segment.kv.count > 0) segments.push_back(segment);
    }
    const ConstTensor theirs = {payload.data(), q.dtype, rows[index(origin)], q.cols, q.cols};
    kernels::attend(queue, theirs, segments, format, call.scale, partial[index(origin)]);
  };
  if (group.variant == Variant::kPassQ) {
    PingPong buffers;
    const int64_t room = largest_other(bytes, me);
    for (Bytes& buffer : buffers.buffer) {
      buffer = bytes_of(queue.template scratch<std::byte>(room), room);
    }
    call.workspace_bytes = std::max(call.workspace_bytes, partials + 2 * room);
    call.op.what = "q ring";
    rotate(call.ring, queue, own, bytes, buffers, call.op, visit);
  } else {
    const Bytes all =
        bytes_of(queue.template scratch<std::byte>(total * row_bytes), total * row_bytes);
    call.workspace_bytes = std::max(call.workspace_bytes, partials + total * row_bytes);
    call.op.what = "q gather";
    call.ring.all_gather(queue, own, all, bytes, call.op);
    int64_t at = 0;
    for (int32_t r = 0; r < ranks; ++r) {
      visit(r, all.subspan(index(at), index(bytes[index(r)])));
      at += bytes[index(r)];
    }
  }
  ++call.op.sequence;
  if (ranks > 1) {
    call.op.what = "partials";
    const double waited = call.ring.waited_us();
    call.ring.all_to_all(queue, send, receive, call.op);
    call.all_to_all_us += call.ring.waited_us() - waited;
    ++call.op.sequence;
    const kernels::InPhase phase(queue, kernels::Phase::kMerge);
    for (int32_t r = 0; r < ranks; ++r) {
      if (r != me && mine > 0) kernels::merge(queue, result, returned[index(r)]);
    }
  }
}

}  // namespace ring_attention

template <class Queue>
void upload(Queue& queue, std::span<GroupLayout> layouts) {
  if constexpr (Queue::kHostMemory) {
    for (GroupLayout& group : layouts) {
      for (std::vector<ItemRows>& rank : group.ranks) {
        for (ItemRows& item : rank) {
          item.device_q_positions = item.q_positions.data();
          item.device_kv_positions = item.kv_positions.data();
        }
      }
    }
  } else {
    // One transfer: a decode step has many short lists.
    std::vector<int32_t> all;
    const auto each = [&](const auto& visit) {
      for (GroupLayout& group : layouts) {
        for (std::vector<ItemRows>& rank : group.ranks) {
          for (ItemRows& item : rank) {
            visit(std::span<const int32_t>(item.q_positions), item.device_q_positions);
            visit(item.kv_positions, item.device_kv_positions);
          }
        }
      }
    };
    each([&](std::span<const int32_t> list, const int32_t*&) {
      all.insert(all.end(), list.begin(), list.end());
    });
    const int32_t* at = queue.upload(std::span<const int32_t>(all)).data();
    each([&](std::span<const int32_t> list, const int32_t*& place) {
      place = at;
      at += list.size();
    });
  }
}

template <class Queue>
void ring_attend(Queue& queue, const GroupLayout& group, AttentionCall<Queue>& call,
                 kernels::ConstTensor q, kernels::Partial out) {
  using namespace ring_attention;
  ANNULUS_CHECK(q.rows == out.rows && q.rows == group.q_rows[index(call.ring.rank())], q.rows,
                " query rows, ", out.rows, " of output");
  ANNULUS_CHECK(q.row_stride == q.cols, "queries must be contiguous: they are sent as they lie");
  kernels::clear(queue, out);
  if (group.variant == Variant::kPassKv || call.ring.size() == 1) {  // alone all are one visit
    pass_kv(queue, group, call, q, out);
    return;
  }
  const int64_t most = *std::max_element(group.q_rows.begin(), group.q_rows.end());
  for (int64_t block = 0; block * group.block_rows < most; ++block) {
    pass_q_block(queue, group, call, q, out, block);
  }
}

}  // namespace annulus::parallel
