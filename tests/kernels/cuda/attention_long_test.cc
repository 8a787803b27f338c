// SPDX-License-Identifier: Apache-2.0
// Attention over 2^20 keys on a GPU (2^16 on the emulated one) against double precision: few rows
// by mma, many by wgmma.
#include <gtest/gtest.h>

#include <string>

#include "kernels/cuda/attention.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/long_problem.h"

namespace annulus::kernels {
namespace {

struct Rows {
  Shape shape;
  int32_t queries;
};
// The decode kernel; the one of 128 rows, with a tail.
constexpr Rows kFew = {{4, 1, 64}, 1}, kMany = {{13, 1, 64}, 5};

class CudaLongAttention : public CudaTest {
 protected:
  int32_t keys() const { return find_cuda_device(0)->name == "emulated" ? 1 << 16 : 1 << 20; }
  void check(const LongProblem& p, Tolerance tolerance) {
    const float scale = 1 / std::sqrt(static_cast<float>(p.shape().head_dim));
    Segment on_device = p.segments().front();
    const auto* const q_data = static_cast<const std::byte*>(p.q().data);
    const DeviceArray<std::byte> q(
        queue(), std::span(q_data, static_cast<size_t>(p.q().rows * p.q().cols * 2)));
    const DeviceArray<std::byte> cache(queue(), p.cache());
    const DeviceArray<int32_t> pages(queue(), p.pages()), positions(queue(), p.key_positions());
    const DeviceArray<int32_t> q_positions(
        queue(), std::span(on_device.q_positions, static_cast<size_t>(p.q_count())));
    on_device.q_positions = q_positions.data();
    on_device.kv.base = cache.data();
    on_device.kv.pages = pages.data();
    on_device.kv.positions = positions.data();
    OwnedPartial got(p.q_count(), p.shape());
    const DeviceArray<float> o(queue(), got.o), lse(queue(), got.lse);
    Partial view = got.view();
    view.o = o.data();
    view.lse = lse.data();
    ConstTensor on_device_q = p.q();
    on_device_q.data = q.data();
    attend(queue(), on_device_q, std::span(&on_device, 1), p.format, scale, view);
    got.o = o.host();
    got.lse = lse.host();
    ReferencePartial want(p.q_count(), p.shape().heads, p.shape().head_dim);
    reference_attend(p.q(), p.segments(), p.format, static_cast<double>(scale), want);
    expect_near(got, want, tolerance, std::to_string(p.q_count()) + " queries");
  }
};

// Errors do not grow with the number of keys: the tolerance of short sequences.
TEST_F(CudaLongAttention, RandomKeys) {
  for (const Rows& rows : {kFew, kMany}) {
    LongProblem p(rows.shape, DType::kBF16, rows.queries, keys());
    p.fill_random();
    check(p, tolerance(CpuIsa::kAvx512Bf16, DType::kBF16));
  }
}

// The worst case for sums: equal terms of one sign. P is rounded to bf16 for the second product,
// 2^-9 of it, the same for all keys but the first page's. At most 2^14 keys are summed before they
// go into the fp32 result: of P V by wgmma's tensor cores, which cut off up to 2^-13 of the sum in
// all; of exponentials in fp32, 2^9 tiles of 32 one after the other. Then 2^6 such sums and 2^9
// splits at most are joined, with 2 roundings each.
TEST_F(CudaLongAttention, EqualKeys) {
  for (const Rows& rows : {kFew, kMany}) {
    LongProblem p(rows.shape, DType::kBF16, rows.queries, keys());
    p.fill_equal();
    const double joined = 2 * (64 + 512) * 0x1p-24;
    check(p, {0x1p-9 + 0x1p-13 + joined, (512 + 32) * 0x1p-24 + joined});
  }
}

}  // namespace
}  // namespace annulus::kernels
