// SPDX-License-Identifier: Apache-2.0
#include "parallel/kv_store.h"

#include <gtest/gtest.h>

#include <numeric>

#include "kernels/core/check.h"
#include "kernels/cpu/queue.h"

namespace annulus::parallel {
namespace {

using kernels::matrix;

constexpr kernels::KvFormat kFormat{kernels::DType::kF32, 2, 4, 8};

class KvStoreTest : public ::testing::Test {
 protected:
  // Appends positions whose K and V hold `tag` + position, in both layers.
  void append(int32_t slot, std::vector<int32_t> positions, float tag) {
    const std::vector<int64_t> where = store_.append(slot, positions);
    const int64_t rows = static_cast<int64_t>(positions.size());
    for (int32_t layer = 0; layer < 2; ++layer) {
      std::vector<float> values;
      for (const int32_t p : positions)
        values.insert(values.end(), 8, tag + static_cast<float>(p + layer));
      const kernels::ConstTensor kv = matrix(static_cast<const float*>(values.data()), rows, 8);
      kernels::kv_append(queue_, kv, kv, store_.layer(layer), where, kFormat);
    }
  }
  // What lies in a row of a slot.
  float value(int32_t slot, int32_t layer, int32_t row) const {
    const kernels::KvRows rows = store_.rows(slot, layer);
    const std::byte* at =
        rows.base + rows.pages[row / 8] * kFormat.page_bytes() + row % 8 * kFormat.row_bytes();
    return reinterpret_cast<const float*>(at)[0];
  }
  std::vector<int32_t> range(int32_t first, int32_t count) {
    std::vector<int32_t> v(static_cast<size_t>(count));
    std::iota(v.begin(), v.end(), first);
    return v;
  }

  kernels::CpuQueue queue_{1};
  KvStore<kernels::CpuQueue> store_{queue_, kFormat, 2, 64};
};

TEST_F(KvStoreTest, RowsKeepAppendOrderOverPages) {
  store_.admit(3);
  append(3, range(0, 5), 100);
  append(3, {7, 9, 11, 20, 21, 22, 23}, 100);
  ASSERT_EQ(store_.rows(3, 0).count, 12);
  EXPECT_EQ(store_.rows(3, 0).positions[11], 23);
  EXPECT_EQ(value(3, 0, 4), 104);
  EXPECT_EQ(value(3, 1, 8), 121);
  EXPECT_EQ(store_.rows_used(), 12);
  EXPECT_EQ(store_.bytes_used(), 2 * 2 * kFormat.page_bytes());
}

TEST_F(KvStoreTest, TruncateGivesPagesBackAndContinues) {
  store_.admit(0);
  append(0, range(0, 30), 0);
  store_.truncate(0, 10);
  EXPECT_EQ(store_.rows(0, 0).count, 10);
  EXPECT_EQ(store_.bytes_used(), 2 * 2 * kFormat.page_bytes());
  append(0, range(10, 4), 500);
  EXPECT_EQ(value(0, 0, 9), 9);
  EXPECT_EQ(value(0, 0, 10), 510);
  store_.truncate(0, 0);
  EXPECT_EQ(store_.bytes_used(), 0);
}

TEST_F(KvStoreTest, ForkSharesWholePagesAndNeverWritesIntoThem) {
  store_.admit(0);
  append(0, range(0, 20), 0);
  const int64_t before = store_.bytes_used();
  store_.fork(0, 1, 19);
  EXPECT_EQ(store_.bytes_used(),
            before + 2 * kFormat.page_bytes());  // the open page alone is copied
  append(1, range(19, 3), 700);
  append(0, range(20, 3), 300);
  EXPECT_EQ(value(1, 0, 18), 18);
  EXPECT_EQ(value(1, 1, 19), 720);
  EXPECT_EQ(value(0, 0, 19), 19);
  EXPECT_EQ(value(0, 0, 20), 320);
  // A truncation into a shared page, then an append: the other slot must not see it.
  store_.truncate(0, 4);
  append(0, range(4, 1), 900);
  EXPECT_EQ(value(0, 0, 4), 904);
  EXPECT_EQ(value(1, 0, 4), 4);
  store_.release(0);
  EXPECT_EQ(value(1, 0, 5), 5);
  store_.release(1);
  EXPECT_EQ(store_.bytes_used(), 0);
}

TEST_F(KvStoreTest, EveryPageCanBeUsedAndOneMoreIsRefused) {
  store_.admit(0);
  append(0, range(0, 64), 0);
  EXPECT_EQ(store_.rows_used(), store_.capacity_rows());
  EXPECT_THROW(store_.append(0, range(64, 1)), kernels::DeviceError);
}

}  // namespace
}  // namespace annulus::parallel
