// SPDX-License-Identifier: Apache-2.0
// cuDNN's attention, of one sequence without positions, against our plain kernel, which computes in
// fp32.
#include "kernels/cuda/sdpa.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cuda/attention.h"
#include "tests/kernels/cuda/cudnn_test.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/weight_problem.h"

namespace annulus::kernels {
namespace {

class CudnnAttention : public CudnnTest {
 protected:
  std::vector<bf16> random(int64_t count, uint32_t seed) {
    const std::vector<float> values = random_floats(count, false, seed);
    std::vector<bf16> out(values.size());
    std::transform(values.begin(), values.end(), out.begin(), to_bf16);
    return out;
  }

  void expect_as_ours(const SdpaShape& s) {
    SCOPED_TRACE(std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + " heads of " +
                 std::to_string(s.head_dim) + ", " + std::to_string(s.queries) + " queries of " +
                 std::to_string(s.keys) + (s.mask == SdpaMask::kCausal ? ", causal" : ""));
    const int64_t width = int64_t{s.heads} * s.head_dim;
    const KvFormat format = {DType::kBF16, s.kv_heads, s.head_dim, 64};
    const std::vector<bf16> kv_rows = random(s.keys * format.row_elements(), 2);
    float largest = 0;
    for (const bf16 x : kv_rows) largest = std::max(largest, std::abs(to_float(x)));
    std::vector<int32_t> positions(static_cast<size_t>(s.keys)),
        asked(static_cast<size_t>(s.queries));
    std::iota(positions.begin(), positions.end(), 0);
    std::iota(asked.begin(), asked.end(), static_cast<int32_t>(s.keys - s.queries));
    if (s.mask == SdpaMask::kNone)
      std::fill(asked.begin(), asked.end(), static_cast<int32_t>(s.keys));
    const DeviceArray<bf16> q(queue(), random(s.queries * width, 1)), kv(queue(), kv_rows);
    const DeviceArray<int32_t> at(queue(), positions), of(queue(), asked);
    const auto zeros = [](int64_t n) { return std::vector<float>(static_cast<size_t>(n)); };
    const DeviceArray<float> o(queue(), zeros(s.queries * width)),
        lse(queue(), zeros(s.queries * s.heads)), their_lse(queue(), zeros(s.queries * s.heads)),
        their_o(queue(), zeros(s.queries * width));
    const float scale = 1 / std::sqrt(static_cast<float>(s.head_dim));
    const Partial acc = {o.data(), lse.data(), s.queries, s.heads, s.head_dim};
    const Segment segment = {0,
                             static_cast<int32_t>(s.queries),
                             of.data(),
                             {reinterpret_cast<std::byte*>(kv.data()), nullptr, at.data(),
                              static_cast<int32_t>(s.keys)}};
    clear(queue(), acc);
    attend_plain(queue(), ConstTensor{q.data(), DType::kBF16, s.queries, width, width},
                 {&segment, 1}, format, scale, acc);
    Sdpa sdpa(*api_, s);
    sdpa.attend(queue(), q.data(), kv.data(), scale, their_o.data(), their_lse.data());

    // Probabilities are rounded to bf16 for the second product, o once more where it is bf16: two
    // halves of 2^-8, relative to the largest value.
    const std::vector<float> want = o.host(), got = their_o.host();
    for (size_t i = 0; i < want.size(); ++i) {
      const float x =
          s.output == DType::kF32 ? got[i] : to_float(reinterpret_cast<const bf16*>(got.data())[i]);
      ASSERT_NEAR(x, want[i], 1.1 * 0x1p-8 * largest) << i;
    }
    // Sums of head_dim products of bf16, then of exponentials, in fp32.
    const std::vector<float> want_lse = lse.host(), got_lse = their_lse.host();
    for (size_t i = 0; i < want_lse.size(); ++i) ASSERT_NEAR(got_lse[i], want_lse[i], 1e-3) << i;
  }
};

TEST_F(CudnnAttention, IsOurs) {
  for (const DType output : {DType::kBF16, DType::kF32}) {
    for (const int32_t head_dim : {64, 128}) {
      expect_as_ours({8, 2, head_dim, 300, 300, SdpaMask::kCausal, output});
      expect_as_ours({8, 1, head_dim, 77, 1001, SdpaMask::kCausal, output});
      expect_as_ours({6, 3, head_dim, 128, 513, SdpaMask::kNone, output});
      expect_as_ours({8, 2, head_dim, 1, 4099, SdpaMask::kNone, output});
    }
  }
}

}  // namespace
}  // namespace annulus::kernels
