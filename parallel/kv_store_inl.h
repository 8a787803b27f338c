// SPDX-License-Identifier: Apache-2.0
// KvStore's definitions, instantiated for each queue in on_<device>.cc.
#pragma once

#include <algorithm>

#include "kernels/core/check.h"
#include "kernels/core/math.h"
#include "parallel/kv_store.h"

namespace annulus::parallel {

// How many of the ascending positions are below `length`.
inline size_t below(const std::vector<int32_t>& positions, int64_t length) {
  return static_cast<size_t>(std::lower_bound(positions.begin(), positions.end(), length) -
                             positions.begin());
}

template <class Queue>
KvStore<Queue>::KvStore(Queue& queue, const kernels::KvFormat& format, int32_t layers,
                        int64_t capacity_rows)
    : queue_(queue),
      format_(format),
      layers_(layers),
      pages_((capacity_rows + format.page_tokens - 1) / format.page_tokens) {
  ANNULUS_CHECK(layers > 0 && pages_ > 0, layers, " layers, ", pages_, " pages");
  // Before anything is allocated or multiplied: no machine maps more than 2^47 bytes.
  const double wanted = static_cast<double>(pages_) * static_cast<double>(format.page_bytes()) *
                        static_cast<double>(layers);
  if (wanted > 0x1p47 || pages_ > INT32_MAX) {
    throw kernels::DeviceError(kernels::concat("a KV cache of ", capacity_rows, " rows (", wanted,
                                               " bytes) is more than a machine can address: lower "
                                               "--kv-rows or --context"));
  }
  layer_bytes_ = pages_ * format.page_bytes();
  memory_ =
      typename Queue::Memory(layer_bytes_ * layers_, " of KV cache: lower --kv-rows or --context");
  users_.assign(static_cast<size_t>(pages_), 0);
  for (int64_t page = pages_ - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

template <class Queue>
typename KvStore<Queue>::Slot& KvStore<Queue>::at(int32_t slot) {
  const auto it = slots_.find(slot);
  ANNULUS_CHECK(it != slots_.end(), "no slot ", slot);
  return it->second;
}

template <class Queue>
int32_t KvStore<Queue>::take_page() {
  if (free_.empty()) {
    throw kernels::DeviceError(kernels::concat("the plan needs more than this rank's KV cache of ",
                                               capacity_rows(), " rows"));
  }
  const int32_t page = free_.back();
  free_.pop_back();
  users_[static_cast<size_t>(page)] = 1;
  return page;
}

template <class Queue>
void KvStore<Queue>::drop_page(int32_t page) {
  if (--users_[static_cast<size_t>(page)] == 0) free_.push_back(page);
}

template <class Queue>
void KvStore<Queue>::admit(int32_t slot) {
  ANNULUS_CHECK(slots_.emplace(slot, Slot{}).second, "slot ", slot, " is taken");
}

template <class Queue>
void KvStore<Queue>::truncate(int32_t slot, int64_t length) {
  Slot& s = at(slot);
  s.positions.truncate(below(s.positions.host(), length));
  const auto rows = static_cast<int64_t>(s.positions.host().size());
  const auto keep = static_cast<size_t>(kernels::ceil_div(rows, format_.page_tokens));
  for (size_t i = keep; i < s.pages.host().size(); ++i) drop_page(s.pages.host()[i]);
  s.pages.truncate(keep);
  s.sync(queue_);
}

template <class Queue>
void KvStore<Queue>::fork(int32_t from, int32_t to, int64_t length) {
  admit(to);
  const Slot& source = at(from);
  Slot& copy = at(to);
  const std::span<const int32_t> kept =
      std::span(source.positions.host()).first(below(source.positions.host(), length));
  copy.positions = kernels::Mirror<Queue, int32_t>({kept.begin(), kept.end()});
  const auto rows = static_cast<int64_t>(kept.size());
  const int64_t whole = rows / format_.page_tokens, rest = rows % format_.page_tokens;
  for (int64_t i = 0; i < whole; ++i) {
    const int32_t page = source.pages.host()[static_cast<size_t>(i)];
    ++users_[static_cast<size_t>(page)];
    copy.pages.push_back(page);
  }
  if (rest > 0) {
    const int32_t page = take_page();
    copy_rows(source.pages.host()[static_cast<size_t>(whole)], page, rest);
    copy.pages.push_back(page);
  }
  copy.sync(queue_);
}

template <class Queue>
void KvStore<Queue>::copy_rows(int32_t from_page, int32_t to_page, int64_t rows) {
  for (int32_t l = 0; l < layers_; ++l) {
    queue_.copy(layer(l) + to_page * format_.page_bytes(),
                layer(l) + from_page * format_.page_bytes(), rows * format_.row_bytes());
  }
}

template <class Queue>
void KvStore<Queue>::release(int32_t slot) {
  Slot& s = at(slot);
  for (const int32_t page : s.pages.host()) drop_page(page);
  s.pages.retire(queue_);
  s.positions.retire(queue_);
  slots_.erase(slot);
}

template <class Queue>
std::vector<int64_t> KvStore<Queue>::append(int32_t slot, std::span<const int32_t> positions) {
  Slot& s = at(slot);
  std::vector<int64_t> where;
  where.reserve(positions.size());
  for (const int32_t position : positions) {
    const std::vector<int32_t>& before = s.positions.host();
    ANNULUS_CHECK(before.empty() || before.back() < position, "slot ", slot, ": position ",
                  position, " after ", before.back());
    const int64_t offset = static_cast<int64_t>(before.size()) % format_.page_tokens;
    if (offset == 0) {
      s.pages.push_back(take_page());
    } else if (const int32_t last = s.pages.host().back(); users_[static_cast<size_t>(last)] > 1) {
      // A truncated slot may end inside a page that a fork shares: write to a copy of it.
      const int32_t page = take_page();
      copy_rows(last, page, offset);
      drop_page(last);
      s.pages.set_back(page);
    }
    s.positions.push_back(position);
    where.push_back(int64_t{s.pages.host().back()} * format_.page_tokens + offset);
  }
  s.sync(queue_);
  return where;
}

template <class Queue>
kernels::KvRows KvStore<Queue>::rows(int32_t slot, int32_t layer_index) const {
  const auto it = slots_.find(slot);
  ANNULUS_CHECK(it != slots_.end(), "no slot ", slot);
  const Slot& s = it->second;
  return {layer(layer_index), s.pages.data(), s.positions.data(),
          static_cast<int32_t>(s.positions.host().size())};
}

template <class Queue>
int64_t KvStore<Queue>::rows_used() const {
  int64_t rows = 0;
  for (const auto& [slot, s] : slots_) rows += static_cast<int64_t>(s.positions.host().size());
  return rows;
}

template <class Queue>
int64_t KvStore<Queue>::bytes_used() const {
  return (pages_ - static_cast<int64_t>(free_.size())) * format_.page_bytes() * layers_;
}

}  // namespace annulus::parallel
