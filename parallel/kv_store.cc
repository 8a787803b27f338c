// SPDX-License-Identifier: Apache-2.0
#include "parallel/kv_store.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "kernels/core/check.h"

namespace annulus::parallel {

KvStore::KvStore(const kernels::KvFormat& format, int32_t layers, int64_t capacity_rows)
    : format_(format),
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
  void* memory = mmap(nullptr, static_cast<size_t>(layer_bytes_ * layers_), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw kernels::DeviceError(kernels::concat("cannot reserve ", layer_bytes_ * layers_,
                                               " bytes of KV cache: lower --kv-rows or --context"));
  }
  memory_ = static_cast<std::byte*>(memory);
  users_.assign(static_cast<size_t>(pages_), 0);
  for (int64_t page = pages_ - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

KvStore::~KvStore() {
  munmap(memory_, static_cast<size_t>(layer_bytes_ * layers_));
}

KvStore::Slot& KvStore::at(int32_t slot) {
  const auto it = slots_.find(slot);
  ANNULUS_CHECK(it != slots_.end(), "no slot ", slot);
  return it->second;
}

int32_t KvStore::take_page() {
  if (free_.empty()) {
    throw kernels::DeviceError(kernels::concat("the plan needs more than this rank's KV cache of ",
                                               capacity_rows(), " rows"));
  }
  const int32_t page = free_.back();
  free_.pop_back();
  users_[static_cast<size_t>(page)] = 1;
  return page;
}

void KvStore::drop_page(int32_t page) {
  if (--users_[static_cast<size_t>(page)] == 0) free_.push_back(page);
}

void KvStore::admit(int32_t slot) {
  ANNULUS_CHECK(slots_.emplace(slot, Slot{}).second, "slot ", slot, " is taken");
}

void KvStore::truncate(int32_t slot, int64_t length) {
  Slot& s = at(slot);
  const auto end = std::lower_bound(s.positions.begin(), s.positions.end(), length);
  s.positions.erase(end, s.positions.end());
  const int64_t keep =
      (static_cast<int64_t>(s.positions.size()) + format_.page_tokens - 1) / format_.page_tokens;
  while (static_cast<int64_t>(s.pages.size()) > keep) {
    drop_page(s.pages.back());
    s.pages.pop_back();
  }
}

void KvStore::fork(int32_t from, int32_t to, int64_t length) {
  admit(to);
  const Slot& source = at(from);
  Slot& copy = at(to);
  const auto end = std::lower_bound(source.positions.begin(), source.positions.end(), length);
  copy.positions.assign(source.positions.begin(), end);
  const int64_t rows = static_cast<int64_t>(copy.positions.size());
  const int64_t whole = rows / format_.page_tokens, rest = rows % format_.page_tokens;
  for (int64_t i = 0; i < whole; ++i) {
    const int32_t page = source.pages[static_cast<size_t>(i)];
    ++users_[static_cast<size_t>(page)];
    copy.pages.push_back(page);
  }
  if (rest == 0) return;
  const int32_t open = source.pages[static_cast<size_t>(whole)], page = take_page();
  for (int32_t l = 0; l < layers_; ++l) {
    std::memcpy(layer(l) + page * format_.page_bytes(), layer(l) + open * format_.page_bytes(),
                static_cast<size_t>(rest * format_.row_bytes()));
  }
  copy.pages.push_back(page);
}

void KvStore::release(int32_t slot) {
  for (const int32_t page : at(slot).pages) drop_page(page);
  slots_.erase(slot);
}

std::vector<int64_t> KvStore::append(int32_t slot, std::span<const int32_t> positions) {
  Slot& s = at(slot);
  std::vector<int64_t> where;
  where.reserve(positions.size());
  for (const int32_t position : positions) {
    ANNULUS_CHECK(s.positions.empty() || s.positions.back() < position, "slot ", slot,
                  ": position ", position, " after ", s.positions.back());
    const int64_t row = static_cast<int64_t>(s.positions.size());
    const int64_t offset = row % format_.page_tokens;
    if (offset == 0) {
      s.pages.push_back(take_page());
    } else if (users_[static_cast<size_t>(s.pages.back())] > 1) {
      // A truncated slot may end inside a page that a fork shares: write to a copy of it.
      const int32_t shared = s.pages.back(), page = take_page();
      for (int32_t l = 0; l < layers_; ++l) {
        std::memcpy(layer(l) + page * format_.page_bytes(),
                    layer(l) + shared * format_.page_bytes(),
                    static_cast<size_t>(offset * format_.row_bytes()));
      }
      drop_page(shared);
      s.pages.back() = page;
    }
    s.positions.push_back(position);
    where.push_back(int64_t{s.pages.back()} * format_.page_tokens + offset);
  }
  return where;
}

kernels::KvRows KvStore::rows(int32_t slot, int32_t layer_index) const {
  const auto it = slots_.find(slot);
  ANNULUS_CHECK(it != slots_.end(), "no slot ", slot);
  const Slot& s = it->second;
  return {layer(layer_index), s.pages.data(), s.positions.data(),
          static_cast<int32_t>(s.positions.size())};
}

int64_t KvStore::rows_used() const {
  int64_t rows = 0;
  for (const auto& [slot, s] : slots_) rows += static_cast<int64_t>(s.positions.size());
  return rows;
}

int64_t KvStore::bytes_used() const {
  return (pages_ - static_cast<int64_t>(free_.size())) * format_.page_bytes() * layers_;
}

}  // namespace annulus::parallel
