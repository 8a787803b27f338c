// SPDX-License-Identifier: Apache-2.0
// This rank's keys and values: pages of rows shared out to slots, the same page ids in every layer.
// Rows of a slot lie in append order; their positions ascend. Pages are counted, so that a fork
// shares whole pages and copies the last, open one. A page that one step gives up the next may take
// while the device still runs the first: kernels read and write pages on the queue's stream alone
// (what travels is packed beside them), so that who takes it writes after its last reader. Pages
// live in the memory of the queue's device, reserved for the capacity (on CPUs the operating system
// commits it at first touch); page tables and positions are kept by the host and mirrored there.
// One thread; used by Rank only. Row and page geometry: kernels/attention.h. A full store throws
// DeviceError: the scheduler admits only what fits. Defined in kv_store_inl.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "kernels/core/mirror.h"

namespace annulus::parallel {

template <class Queue>
class KvStore {
 public:
  // The queue outlives the store.
  KvStore(Queue& queue, const kernels::KvFormat& format, int32_t layers, int64_t capacity_rows);

  void admit(int32_t slot);
  void truncate(int32_t slot, int64_t length);  // keeps rows of positions below length
  void fork(int32_t from, int32_t to, int64_t length);
  void release(int32_t slot);

  // Takes rows for these positions; returns where each row lies (page * page_tokens + offset), the
  // same in every layer.
  std::vector<int64_t> append(int32_t slot, std::span<const int32_t> positions);

  // The slot's rows in one layer, as the device reads them. Valid until the next change of the
  // slot.
  kernels::KvRows rows(int32_t slot, int32_t layer) const;
  std::byte* layer(int32_t layer) const { return memory_.data() + layer * layer_bytes_; }

  const kernels::KvFormat& format() const { return format_; }
  int64_t capacity_rows() const { return pages_ * format_.page_tokens; }
  int64_t rows_used() const;   // rows that hold a token, each fork's counted
  int64_t bytes_used() const;  // of pages taken, all layers

 private:
  struct Slot {
    kernels::Mirror<Queue, int32_t> pages, positions;
    void sync(Queue& queue) {
      pages.sync(queue);
      positions.sync(queue);
    }
  };
  Slot& at(int32_t slot);
  int32_t take_page();
  void drop_page(int32_t page);
  void copy_rows(int32_t from_page, int32_t to_page, int64_t rows);  // the first, in every layer

  Queue& queue_;
  kernels::KvFormat format_;
  int32_t layers_;
  int64_t pages_, layer_bytes_ = 0;
  typename Queue::Memory memory_;
  std::vector<int32_t> users_;  // per page
  std::vector<int32_t> free_;
  std::map<int32_t, Slot> slots_;
};

}  // namespace annulus::parallel
