// SPDX-License-Identifier: Apache-2.0
// TMA, barriers and wgmma by themselves, with small whole numbers, whose sums are exact; and what
// decides between kernels and ways of copying, on the host.
#include <algorithm>
#include <random>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/tensor_map.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/cuda/hopper_kernel.h"

namespace annulus::kernels {
namespace {

class CudaHopper : public CudaTest {};

constexpr size_t kD = 128, kRows = 64, kKeys = 128;

std::vector<bf16> whole_numbers(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<bf16> out(count);
  for (bf16& x : out) x = to_bf16(static_cast<float>(random() % 3) - 1.0f);
  return out;
}

TEST_F(CudaHopper, TwoProductsAreExact) {
  constexpr size_t kStored = 192;
  const std::vector<bf16> q = whole_numbers(kRows * kD, 1), k = whole_numbers(kStored * kD, 2),
                          v = whole_numbers(kStored * kD, 3);
  for (const size_t first : {size_t{0}, size_t{57}, size_t{100}}) {  // the last: zeros behind it
    const TwoProducts got = two_products(queue(), q, k, v, static_cast<int32_t>(first));
    const auto at = [&](const std::vector<bf16>& rows, size_t r, size_t c) {
      return first + r < kStored ? to_float(rows[(first + r) * kD + c]) : 0.0f;
    };
    std::vector<float> scores(kRows * kKeys), output(kRows * kD);
    for (size_t i = 0; i < kRows; ++i) {
      for (size_t j = 0; j < kKeys; ++j) {
        float& sum = scores[i * kKeys + j];
        for (size_t c = 0; c < kD; ++c) sum += to_float(q[i * kD + c]) * at(k, j, c);
        for (size_t c = 0; c < kD; ++c) output[i * kD + c] += sum * at(v, j, c);
      }
    }
    EXPECT_EQ(got.scores, scores) << "rows from " << first;
    EXPECT_EQ(got.output, output) << "rows from " << first;
  }
}

TEST(AttentionKernels, ManyRowsOfBf16TakeWgmma) {
  const auto kernel = [](DType dtype, int32_t head_dim, int64_t rows) {
    return attention_kernel({dtype, 2, head_dim, 64}, rows);
  };
  for (const int32_t head_dim : {64, 128}) {
    EXPECT_EQ(kernel(DType::kBF16, head_dim, 1), AttentionKernel::kMma);
    EXPECT_EQ(kernel(DType::kBF16, head_dim, 64), AttentionKernel::kMma);
    EXPECT_EQ(kernel(DType::kBF16, head_dim, 65), AttentionKernel::kWgmma);
    EXPECT_EQ(kernel(DType::kBF16, head_dim, int64_t{1} << 33), AttentionKernel::kWgmma);
    EXPECT_EQ(kernel(DType::kF32, head_dim, 1000), AttentionKernel::kPlain);
  }
  for (const int32_t head_dim : {8, 96, 256}) {
    EXPECT_EQ(kernel(DType::kBF16, head_dim, 1000), AttentionKernel::kPlain);
  }
}

TEST(TensorMap, BoxesAreWhatLiesTogether) {
  const auto rows = [](int32_t page_tokens, bool paged) {
    return box_rows({DType::kBF16, 2, 64, page_tokens}, paged, 128);
  };
  EXPECT_EQ(rows(64, true), 64);
  EXPECT_EQ(rows(8, true), 8);
  EXPECT_EQ(rows(128, true), 128);
  EXPECT_EQ(rows(256, true), 128);
  for (const int32_t page_tokens : {1, 4, 12, 24, 48, 192}) EXPECT_EQ(rows(page_tokens, true), 0);
  EXPECT_EQ(rows(24, false), 128);
}

TEST_F(CudaHopper, TheDriverRefusesRowsThatAreNotAligned) {
  const DeviceArray<std::byte> store(queue(), std::vector<std::byte>(4096));
  const KvFormat format = {DType::kBF16, 1, 64, 64};
  KvRows kv;
  kv.count = 8;
  kv.base = store.data();
  CUtensorMap map;
  make_tensor_map(map, kv, format, 128);
  kv.base += 8;
  EXPECT_THROW(make_tensor_map(map, kv, format, 128), DeviceError);
}

}  // namespace
}  // namespace annulus::kernels
