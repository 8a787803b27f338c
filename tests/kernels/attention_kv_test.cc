// SPDX-License-Identifier: Apache-2.0
// Writing and packing cache rows: exact, so compared with ==.
#include "tests/kernels/attention_problem.h"

namespace annulus::kernels {
namespace {

class KvTest : public testing::TestWithParam<Target> {
 protected:
  CpuQueue queue_{2, GetParam().isa};
};

TEST_P(KvTest, AppendRoundsToNearestEvenAndTouchesNoOtherRow) {
  const KvFormat format{GetParam().dtype, 3, 24, 16};
  const int64_t width = 72, rows = 150, slots = 640;
  std::vector<float> k(static_cast<size_t>(rows * width)), v(k.size());
  std::mt19937 random(3);
  for (std::vector<float>* x : {&k, &v})
    for (float& e : *x)
      e = std::bit_cast<float>(static_cast<uint32_t>((random() & 0x87ffffffu) | 0x38000000u));
  k[0] = std::bit_cast<float>(0x3f808000u);  // ties: to even, down
  k[1] = std::bit_cast<float>(0x3f818000u);  // and up
  k[2] = -0.0f;
  k[3] = std::numeric_limits<float>::infinity();
  std::vector<int64_t> slot_rows(static_cast<size_t>(slots));
  std::iota(slot_rows.begin(), slot_rows.end(), 0);
  std::shuffle(slot_rows.begin(), slot_rows.end(), random);
  slot_rows.resize(static_cast<size_t>(rows));

  const auto untouched = std::byte{0x5a};
  std::vector<std::byte> store(static_cast<size_t>(slots * format.row_bytes()), untouched);
  std::vector<std::byte> want = store;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < 2 * width; ++i) {
      const std::vector<float>& from = i < width ? k : v;
      put(want, slot_rows[static_cast<size_t>(r)] * 2 * width + i,
          from[static_cast<size_t>(r * width + i % width)], format.dtype);
    }
  kv_append(queue_, matrix(k.data(), rows, width), matrix(v.data(), rows, width), store.data(),
            slot_rows, format);
  EXPECT_EQ(store, want);
  if (format.dtype == DType::kBF16) {
    const auto* first = reinterpret_cast<const bf16*>(
        &store[static_cast<size_t>(slot_rows[0] * format.row_bytes())]);
    EXPECT_EQ(first[0].bits, 0x3f80);
    EXPECT_EQ(first[1].bits, 0x3f82);
    EXPECT_EQ(first[2].bits, 0x8000);
    EXPECT_EQ(first[3].bits, 0x7f80);
  }
}

TEST_P(KvTest, PackIsTheRowsOneAfterTheOther) {
  const Problem p({4, 2, 40}, GetParam().dtype,
                  {prefill(1, 100), {{}, {}}, prefill(1, 15), prefill(1, 16), prefill(1, 300)});
  for (bool paged : {true, false}) {
    std::vector<KvRows> rows;
    std::vector<std::byte> want;
    for (const Segment& s : paged ? p.paged : p.packed) {
      rows.push_back(s.kv);
      for (int32_t r = 0; r < s.kv.count; ++r) {
        const std::byte* row = kv_row(s.kv, p.format, r);
        want.insert(want.end(), row, row + p.format.row_bytes());
      }
    }
    std::vector<std::byte> out(want.size() + 8, std::byte{0x5a});
    kv_pack(queue_, out.data(), rows, p.format);
    want.insert(want.end(), 8, std::byte{0x5a});
    EXPECT_EQ(out, want);
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, KvTest, testing::ValuesIn(targets()), target_name);

}  // namespace
}  // namespace annulus::kernels
