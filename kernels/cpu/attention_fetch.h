// SPDX-License-Identifier: Apache-2.0
// How the cache's rows reach a core before few-row attention computes on them: it reads each byte
// once, so memory sets its pace. Rows are asked for in the order of addresses, a little with every
// step of computing, so that the two overlap. Two ways, each the faster where it was measured
// (bench/attention, and bench/step behind a long prompt):
//   AVX-512, portable  Loads 8 keys ahead of the scores, which start the hardware's streams (hints
//          alone end at the misses that one first cache tracks: a third of memory's rate), hints
//          4 KiB before them; and hints for half a tile while exponentials and products of V run,
//          since the streams rest there. On Zen 5 loads 64 keys ahead take 1.6 times as long, a
//          burst of loads per 128 KiB, then computing, 1.25 times.
//   AVX2   Each byte read is a hint for a byte one tile ahead. On Zen 3 attention at 4,096 keys
//          takes 0.72 of the time of bursts. Half a tile ahead is too late, two tiles gain nothing.
// Hints run on into the keys that are taken up next. Included by attention_impl.cc only.
#pragma once

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/attention_tiles.h"

namespace annulus::kernels::ANNULUS_ISA {

inline constexpr int64_t kLine = 64;

// The rows of a block's keys as cache lines, then a tile of those that are taken up next.
class Lines {
 public:
  explicit Lines(const AttendBlock& block)
      : block_(block), next_(block.first_key), last_(block.last_key) {}

  // f(line) for the lines of the next `bytes`, as far as there are any.
  template <class F>
  __attribute__((always_inline)) void take(int64_t bytes, const F& f) {
    while (bytes > 0) {
      if (left_ == 0 && !refill()) return;
      const int64_t n = bytes < left_ ? bytes : left_;
      for (int64_t i = 0; i < n; i += kLine) f(p_ + i);
      p_ += n;
      left_ -= n;
      bytes -= n;
    }
  }

 private:
  // The next rows that lie in one piece.
  bool refill() {
    if (next_ == last_ && !beyond_) {
      beyond_ = true;
      next_ = block_.soon_first_key;
      last_ = block_.soon_last_key - next_ < kTile ? block_.soon_last_key : next_ + kTile;
    }
    if (next_ == last_) return false;
    int64_t row = next_;
    int32_t keys = last_ - next_;
    if (block_.pages != nullptr) {
      const int32_t within = next_ % block_.page_tokens;
      row = int64_t{block_.pages[next_ / block_.page_tokens]} * block_.page_tokens + within;
      if (block_.page_tokens - within < keys) keys = block_.page_tokens - within;
    }
    p_ = reinterpret_cast<const char*>(block_.base + row * block_.row_bytes);
    left_ = keys * block_.row_bytes;
    next_ += keys;
    return true;
  }

  const AttendBlock& block_;
  int32_t next_, last_;  // keys not begun
  bool beyond_ = false;
  const char* p_ = nullptr;
  int64_t left_ = 0;  // bytes of the piece at p_
};

ANNULUS_INLINE void hint_at(const char* line) {
  __builtin_prefetch(line);
}
ANNULUS_INLINE void load_at(const char* line) {
  static_cast<void>(*static_cast<const volatile char*>(line));
}

#if defined(__AVX2__) && !defined(__AVX512F__)

class Fetch {
 public:
  explicit Fetch(const AttendBlock& block) : hints_(block) {
    hints_.take(kTile * block.row_bytes, load_at);
  }
  // So many bytes of scores' K or of V are about to be read.
  void keys(int64_t bytes) { hints_.take(bytes, hint_at); }
  void values(int64_t bytes) { hints_.take(bytes, hint_at); }
  // The exponentials of one of so many rows of a tile are about to be computed.
  void row(int32_t) {}

 private:
  Lines hints_;
};

#else

class Fetch {
 public:
  explicit Fetch(const AttendBlock& block)
      : hints_(block), loads_(block), tile_bytes_(kTile * block.row_bytes) {
    load(kKeysAhead * block.row_bytes);
  }
  // So many bytes of scores' K or of V are about to be read: K and V have half a tile each.
  void keys(int64_t bytes) { load(2 * bytes); }
  void values(int64_t bytes) { hint(bytes / 2); }
  // The exponentials of one of so many rows of a tile are about to be computed.
  void row(int32_t rows) { hint(tile_bytes_ / 4 / rows); }

 private:
  static constexpr int64_t kKeysAhead = 8, kHintsBefore = 4096;

  void hint(int64_t bytes) {
    if (bytes <= 0) return;
    bytes = (bytes + kLine - 1) / kLine * kLine;
    hints_.take(bytes, hint_at);
    hinted_ += bytes;
  }
  void load(int64_t bytes) {
    hint(loaded_ + bytes + kHintsBefore - hinted_);
    loads_.take(bytes, load_at);
    loaded_ += bytes;
  }

  Lines hints_, loads_;
  int64_t tile_bytes_, hinted_ = 0, loaded_ = 0;
};

#endif

}  // namespace annulus::kernels::ANNULUS_ISA
