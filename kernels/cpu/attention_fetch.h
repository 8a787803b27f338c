// SPDX-License-Identifier: Apache-2.0
// How the cache's rows reach a core before few-row attention computes on them: it reads each byte
// once, so memory sets its pace. Two ways, each the faster where it was measured (bench/attention
// and throughput --profile, decode behind a long prompt):
//   Burst  AVX-512 and portable: loads of a tile or two (128 KiB) in the order of addresses, then
//          computing on them. On Zen 4 only such loads make the hardware's streams run at the speed
//          of memory; strided loads of one head, and hints at any pace, got a third of it.
//   Hints  AVX2: each byte read is a hint for a byte one tile ahead. On Zen 3 attention at 4,096
//          keys takes 0.72 of the time: loads and computing overlap. Half a tile ahead is too
//          late, two tiles gain nothing. Hints run on into the keys that are taken up next.
// Included by attention_impl.cc only.
#pragma once

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/attention_tiles.h"

namespace annulus::kernels::ANNULUS_ISA {

inline constexpr int64_t kLine = 64;

// Rows [first, last) of keys as far as they lie in one piece.
struct KvRun {
  const char* begin;
  int64_t bytes;
  int32_t keys;
};
ANNULUS_INLINE KvRun run_at(const AttendBlock& block, int32_t first, int32_t last) {
  int64_t row = first;
  int32_t keys = last - first;
  if (block.pages != nullptr) {
    const int32_t within = first % block.page_tokens;
    row = int64_t{block.pages[first / block.page_tokens]} * block.page_tokens + within;
    if (block.page_tokens - within < keys) keys = block.page_tokens - within;
  }
  return {reinterpret_cast<const char*>(block.base + row * block.row_bytes), keys * block.row_bytes,
          keys};
}

// Loads the rows of keys [first, last) in the order of addresses.
static void stream(const AttendBlock& block, int32_t first, int32_t last) {
  while (first < last) {
    const KvRun run = run_at(block, first, last);
    const volatile char* p = run.begin;
    for (int64_t i = 0; i < run.bytes; i += kLine) {
      __builtin_prefetch(run.begin + i + 4096);
      static_cast<void>(p[i]);
    }
    first += run.keys;
  }
}

#if defined(__AVX2__) && !defined(__AVX512F__)

class Fetch {
 public:
  explicit Fetch(const AttendBlock& block)
      : block_(block), next_(block.first_key), last_(block.last_key) {
    next_ += kTile;
    if (next_ > last_) next_ = last_;
    stream(block, block.first_key, next_);
  }
  void tile(int32_t) {}
  // So many bytes are being read: hints for as many, whole lines.
  void read(int64_t bytes) {
    if (left_ < bytes && !refill()) return;
    for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(p_ + i);
    p_ += bytes;
    left_ -= bytes;
  }

 private:
  bool refill() {
    if (next_ == last_ && !beyond_) {
      beyond_ = true;
      next_ = block_.soon_first_key;
      last_ = block_.soon_last_key - next_ < kTile ? block_.soon_last_key : next_ + kTile;
    }
    if (next_ == last_) return false;
    const KvRun run = run_at(block_, next_, last_);
    p_ = run.begin;
    left_ = run.bytes;
    next_ += run.keys;
    return true;
  }

  const AttendBlock& block_;
  int32_t next_, last_;  // keys still to be hinted at
  bool beyond_ = false;
  const char* p_ = nullptr;
  int64_t left_ = 0;  // bytes of the run at p_
};

#else

class Fetch {
 public:
  explicit Fetch(const AttendBlock& block) : block_(block) {
    const int64_t tiles = (int64_t{128} << 10) / (kTile * block.row_bytes);
    burst_ = kTile * static_cast<int32_t>(tiles < 1 ? 1 : tiles);
  }
  void tile(int32_t first) {
    if ((first - block_.first_key) % burst_ != 0) return;
    stream(block_, first, block_.last_key - first < burst_ ? block_.last_key : first + burst_);
  }

 private:
  const AttendBlock& block_;
  int32_t burst_;
};

#endif

}  // namespace annulus::kernels::ANNULUS_ISA
