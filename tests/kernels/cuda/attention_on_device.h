// SPDX-License-Identifier: Apache-2.0
// Attention problems (tests/kernels/attention_problem.h) with everything that a kernel may read
// copied to a GPU, real or emulated.
#pragma once

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/cudnn_attention.h"
#include "tests/kernels/attention_problem.h"
#include "tests/kernels/cuda/device_array.h"

namespace annulus::kernels {

// Tensor cores round probabilities to bf16, as vdpbf16ps does.
inline Tolerance allowed(const KvFormat& format) {
  return tolerance(tensor_cores_take(format) ? CpuIsa::kAvx512Bf16 : CpuIsa::kPortable,
                   format.dtype);
}

// What a tile of keys may be: absent, hidden from all, from some, cut, full of padding, older or
// younger than every query, in any order.
inline std::vector<std::pair<std::string, Sequence>> odd_sequences() {
  std::vector<int32_t> shuffled = range(0, 260);
  std::shuffle(shuffled.begin(), shuffled.end(), std::mt19937(3));
  std::vector<int32_t> padded = range(0, 300);
  for (size_t i = 0; i < padded.size(); ++i) {
    if (i % 7 == 3 || (i >= 128 && i < 256)) padded[i] = kPaddingKeyPos;
  }
  std::vector<int32_t> late = range(0, 256);  // a whole tile before a hidden one
  for (size_t i = 128; i < late.size(); ++i) late[i] += 100000;
  std::vector<int32_t> some_queries = range(0, 130);
  for (size_t i = 0; i < some_queries.size(); i += 3) some_queries[i] = kPaddingQueryPos;
  return {{"one row, one key", {{0}, {0}}},
          {"a tile to the row", {range(128, 64), range(0, 128)}},
          {"a key more than a tile", {range(200, 3), range(0, 129)}},
          {"nothing is seen", {range(0, 70), range(1000, 300)}},
          {"any order", {std::vector<int32_t>(shuffled.begin(), shuffled.begin() + 90), shuffled}},
          {"padding", {range(0, 129), padded}},
          {"padding alone", {range(0, 5), std::vector<int32_t>(200, kPaddingKeyPos)}},
          {"tiles that are hidden", {range(200, 66), late}},
          {"queries that see nothing", {some_queries, range(0, 140)}}};
}

// Some of the keys of a packed segment, as a hop of the ring brings them.
inline Segment piece_of(Segment whole, const KvFormat& format, int32_t first, int32_t count) {
  whole.kv.base += first * format.row_bytes();
  whole.kv.positions += first;
  whole.kv.count = count;
  return whole;
}

// A problem on the device.
class OnDevice {
 public:
  OnDevice(CudaQueue& queue, const Problem& p, bool paged)
      : queue_(queue),
        p_(p),
        q_(queue, p.q_bytes()),
        kv_(queue, paged ? p.store() : p.packed_rows()) {
    const std::byte* base = paged ? p.store().data() : p.packed_rows().data();
    for (Segment segment : paged ? p.paged : p.packed) {
      segment.q_positions = copy(segment.q_positions, segment.q_count);
      KvRows& kv = segment.kv;
      kv.positions = copy(kv.positions, kv.count);
      kv.base = kv_.data() + (kv.base - base);
      const int32_t pages = (kv.count + p.format.page_tokens - 1) / p.format.page_tokens;
      if (paged) kv.pages = copy(kv.pages, pages);
      segments.push_back(segment);
    }
  }
  ConstTensor q() const {
    ConstTensor view = p_.q();
    view.data = q_.data();
    return view;
  }
  // acc as it stands after attending to these segments.
  OwnedPartial attend_to(std::span<const Segment> some, OwnedPartial acc) {
    return with_acc(acc,
                    [&](Partial view) { attend(queue_, q(), some, p_.format, p_.scale, view); });
  }
  // By cuDNN, which the queue has, however few rows they are.
  OwnedPartial attend_by_cudnn(std::span<const Segment> some, OwnedPartial acc) {
    return with_acc(acc, [&](Partial view) {
      queue_.cudnn()->attend(queue_, q(), some, p_.format, p_.scale, view);
    });
  }
  OwnedPartial attend_plainly(OwnedPartial acc) {
    return with_acc(
        acc, [&](Partial view) { attend_plain(queue_, q(), segments, p_.format, p_.scale, view); });
  }
  OwnedPartial attend_in_splits(AttentionKernel kernel, int32_t splits, OwnedPartial acc) {
    const auto& attend_so = kernel == AttentionKernel::kWgmma ? attend_wgmma : attend_mma;
    return with_acc(acc, [&](Partial view) {
      attend_so(queue_, q(), segments, p_.format, p_.scale, view, splits);
    });
  }

  std::vector<Segment> segments;

 private:
  template <class Attend>
  OwnedPartial with_acc(OwnedPartial acc, const Attend& attend_into) {
    const DeviceArray<float> o(queue_, acc.o), lse(queue_, acc.lse);
    Partial view = acc.view();
    view.o = o.data();
    view.lse = lse.data();
    attend_into(view);
    acc.o = o.host();
    acc.lse = lse.host();
    return acc;
  }
  const int32_t* copy(const int32_t* from, int32_t count) {
    ints_.push_back(std::make_unique<DeviceArray<int32_t>>(
        queue_, std::span<const int32_t>(from, static_cast<size_t>(count))));
    return ints_.back()->data();
  }
  CudaQueue& queue_;
  const Problem& p_;
  DeviceArray<std::byte> q_, kv_;
  std::vector<std::unique_ptr<DeviceArray<int32_t>>> ints_;
};

}  // namespace annulus::kernels
