// SPDX-License-Identifier: Apache-2.0
// Attention, merge and packing as kernels/attention.h defines them, in double precision and by the
// shortest loops: the oracle of the kernels. Two passes per row (maximum, then sum), so that
// nothing here shares the online softmax's algebra. Linked by tests and bench only; one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention.h"

namespace annulus::kernels {

struct ReferencePartial {
  ReferencePartial(int64_t rows, int32_t heads, int32_t head_dim);  // empty

  int64_t rows;
  int32_t heads, head_dim;
  std::vector<double> o;    // [rows, heads, head_dim]
  std::vector<double> lse;  // [rows, heads]
};

// Row r of kv (K of every KV head, then V), by page table or packed.
const std::byte* kv_row(const KvRows& kv, const KvFormat& format, int32_t r);

void reference_attend(ConstTensor q, std::span<const Segment> segments, const KvFormat& format,
                      double scale, ReferencePartial& acc);

void reference_merge(ReferencePartial& into, const ReferencePartial& from);

}  // namespace annulus::kernels
