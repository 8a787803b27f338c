// SPDX-License-Identifier: Apache-2.0
// KV rows as TMA sees them: a matrix of rows of the cache, of which it copies boxes of 64 columns
// (128 bytes, swizzled so in shared memory) by box_rows() rows.
#pragma once

#include <cuda.h>

#include <algorithm>
#include <cstdint>

#include "kernels/attention.h"

namespace annulus::kernels {

// Rows of a box for tiles of `keys` keys (a power of two): those of a tile that lie one after the
// other, by whole swizzled groups of 8; 0 where a tile is not made of such boxes.
constexpr int32_t box_rows(const KvFormat& format, bool paged, int32_t keys) {
  if (!paged) return keys;
  const int32_t page = format.page_tokens;
  if (page % 8 != 0 || (keys % page != 0 && page % keys != 0)) return 0;
  return std::min(page, keys);
}

// map = these rows; what is behind the last is zeros where kv is packed, and the caller's care
// where it is paged. kv.base must be aligned to 16 bytes, row_bytes() is a multiple of 16. Not by
// value: compilers forget to align temporaries to the 64 bytes that the driver asks for.
// DeviceError where the driver has no such function or refuses.
void make_tensor_map(CUtensorMap& map, const KvRows& kv, const KvFormat& format, int32_t box_rows);

}  // namespace annulus::kernels
