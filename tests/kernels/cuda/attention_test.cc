// SPDX-License-Identifier: Apache-2.0
// Attention on a GPU, or on the emulated one, against double precision: the problems of the CPU's
// tests, with everything that a kernel may read copied to the device.
#include "kernels/cuda/attention.h"

#include <string>
#include <utility>
#include <vector>

#include "tests/kernels/cuda/attention_on_device.h"

namespace annulus::kernels {
namespace {

constexpr Shape kSmol = {9, 3, 64};
constexpr AttentionKernel kOnTensorCores[] = {AttentionKernel::kMma, AttentionKernel::kWgmma};

std::string described(AttentionKernel kernel, int32_t splits, Shape shape) {
  return std::string(kernel == AttentionKernel::kWgmma ? "wgmma, " : "mma, ") +
         std::to_string(splits) + " splits, " + std::to_string(shape.heads) + "/" +
         std::to_string(shape.kv_heads) + " heads of " + std::to_string(shape.head_dim);
}

class CudaAttention : public CudaTest {
 protected:
  void check(Shape shape, const std::vector<Sequence>& sequences, const std::string& what) {
    for (const DType dtype : {DType::kF32, DType::kBF16})
      for (const bool paged : {true, false}) {
        const Problem p(shape, dtype, sequences);
        OnDevice problem(queue(), p, paged);
        const OwnedPartial got = problem.attend_to(problem.segments, OwnedPartial(p));
        expect_near(got, p.reference(), allowed(p.format),
                    what + (paged ? ", paged " : ", packed ") + name(dtype));
      }
  }
  // By both kernels on tensor cores: paged in one piece, packed in three.
  void check_tensor_cores(const Problem& p, const std::string& what) {
    const ReferencePartial want = p.reference();
    for (const int32_t splits : {1, 3}) {
      OnDevice problem(queue(), p, splits == 1);
      for (const AttentionKernel kernel : kOnTensorCores) {
        expect_near(problem.attend_in_splits(kernel, splits, OwnedPartial(p)), want,
                    allowed(p.format), what + ", " + described(kernel, splits, p.shape()));
      }
    }
  }
};

TEST_F(CudaAttention, Shapes) {
  for (const Shape shape : {kSmol, Shape{2, 2, 64}, Shape{8, 1, 128}, Shape{2, 1, 8},
                            Shape{3, 1, 24}, Shape{2, 1, 256}})
    check(shape, {prefill(5, 13)}, "head_dim " + std::to_string(shape.head_dim));
}

TEST_F(CudaAttention, PrefillsAndDecodes) {
  check(kSmol, {prefill(1)}, "one token");
  check(kSmol, {prefill(35)}, "causal");
  check(kSmol, {prefill(1, 170)}, "decode");
  check(kSmol, {prefill(3, 1), {{}, range(0, 20)}, prefill(1), {{5, 6}, {}}, prefill(2, 90)},
        "ragged, with empty sides");
  check(kSmol, {{range(2, 10, 3), range(1, 50, 4)}, {{7, 3, 9}, {8, 2, 3, 9, 1, 100}}},
        "any order of positions");
  check(kSmol,
        {{{3, kPaddingQueryPos, 4}, {0, kPaddingKeyPos, 2, kPaddingKeyPos}},
         {{1, 2}, {kPaddingKeyPos, 5}}},
        "padding, and rows that see nothing");
}

// Many tiles of rows and of keys, groups of every size, keys in one piece and in many: some splits
// see nothing, some more than one tile.
TEST_F(CudaAttention, TensorCores) {
  for (const Shape shape : {kSmol, Shape{2, 2, 64}, Shape{8, 1, 128}}) {
    const Problem p(shape, DType::kBF16,
                    {prefill(70, 80),
                     prefill(1, 333),
                     {range(100, 3), range(0, 190)},
                     {range(64, 40, 2), range(0, 65)}});
    OnDevice problem(queue(), p, true);
    const ReferencePartial want = p.reference();
    for (const AttentionKernel kernel : kOnTensorCores)
      for (const int32_t splits : {1, 5}) {
        expect_near(problem.attend_in_splits(kernel, splits, OwnedPartial(p)), want,
                    allowed(p.format), described(kernel, splits, shape));
      }
  }
}

TEST_F(CudaAttention, TensorCoresOddTiles) {
  for (const Shape shape : {Shape{2, 1, 64}, Shape{3, 1, 128}}) {
    for (const auto& [what, sequence] : odd_sequences()) {
      check_tensor_cores(Problem(shape, DType::kBF16, {sequence}), what);
    }
  }
}

// A tile's boxes are pages, parts of a page, or none, where pages do not fit into tiles.
TEST_F(CudaAttention, TensorCoresPages) {
  for (const int32_t page_tokens : {8, 12, 64, 128, 256}) {
    for (const Shape shape : {Shape{4, 2, 64}, Shape{2, 2, 128}}) {
      const Problem p(shape, DType::kBF16, {prefill(40, 300), prefill(70, 17)}, 1, page_tokens);
      OnDevice problem(queue(), p, true);
      expect_near(problem.attend_in_splits(AttentionKernel::kWgmma, 1, OwnedPartial(p)),
                  p.reference(), allowed(p.format), "pages of " + std::to_string(page_tokens));
    }
  }
}

// More keys than are summed up between two flushes into acc.
TEST_F(CudaAttention, TensorCoresFlush) {
  const Problem p(Shape{2, 1, 64}, DType::kBF16, {{range(20000, 33), range(0, (1 << 14) + 200)}});
  OnDevice problem(queue(), p, false);
  expect_near(problem.attend_in_splits(AttentionKernel::kWgmma, 1, OwnedPartial(p)), p.reference(),
              allowed(p.format), "wgmma");
}

// Whatever comes first or late, a row's bits are the same.
TEST_F(CudaAttention, TimesDoNotMatter) {
  const Problem p(Shape{4, 1, 64}, DType::kBF16, {prefill(60, 600)});
  OnDevice problem(queue(), p, true);
  const OwnedPartial first = problem.attend_in_splits(AttentionKernel::kWgmma, 1, OwnedPartial(p));
  expect_near(first, p.reference(), allowed(p.format), "wgmma");
  for (int i = 0; i < 8; ++i) {
    EXPECT_TRUE(problem.attend_in_splits(AttentionKernel::kWgmma, 1, OwnedPartial(p)) == first);
  }
}

// What tensor cores are compared with where there is no double precision.
TEST_F(CudaAttention, Plain) {
  const Problem p(kSmol, DType::kBF16, {prefill(5, 20), prefill(1, 90)});
  OnDevice problem(queue(), p, true);
  expect_near(problem.attend_plainly(OwnedPartial(p)), p.reference(),
              tolerance(CpuIsa::kPortable, DType::kBF16), "plain");
}

// One token of many sequences: what decode is.
TEST_F(CudaAttention, TensorCoresDecode) {
  for (const Shape shape : {kSmol, Shape{16, 1, 128}}) {
    std::vector<Sequence> sequences;
    for (const int32_t cached : {0, 31, 32, 500, 63, 64}) sequences.push_back(prefill(1, cached));
    const Problem p(shape, DType::kBF16, sequences);
    OnDevice problem(queue(), p, true);
    for (const AttentionKernel kernel : kOnTensorCores)
      for (const int32_t splits : {0, 1, 4}) {
        expect_near(problem.attend_in_splits(kernel, splits, OwnedPartial(p)), p.reference(),
                    allowed(p.format), described(kernel, splits, shape));
      }
  }
}

// A ring's hops: the keys in pieces, in any order, carried on in acc; and the same by merge. Few
// rows and many, in one piece and in several.
TEST_F(CudaAttention, PiecesCarryOn) {
  for (const auto& [n_new, n_cached] : {std::pair{4, 60}, {70, 400}}) {
    const Problem p(kSmol, DType::kBF16, {prefill(n_new, n_cached)});
    OnDevice problem(queue(), p, false);
    const Segment whole = problem.segments[0];
    std::vector<Segment> pieces;
    const int32_t keys = whole.kv.count;
    for (const auto& [first, count] : {std::pair{40, keys - 40}, {0, 1}, {1, 39}}) {
      pieces.push_back(piece_of(whole, p.format, first, count));
    }
    OwnedPartial carried(p), merged(p);
    for (const Segment& piece : pieces) {
      carried = problem.attend_to({&piece, 1}, carried);
      const OwnedPartial alone = problem.attend_to({&piece, 1}, OwnedPartial(p));
      const DeviceArray<float> o(queue(), merged.o), lse(queue(), merged.lse);
      const DeviceArray<float> from_o(queue(), alone.o), from_lse(queue(), alone.lse);
      Partial into = merged.view(), from = into;
      into.o = o.data();
      into.lse = lse.data();
      from.o = from_o.data();
      from.lse = from_lse.data();
      merge(queue(), into, from);
      merged.o = o.host();
      merged.lse = lse.host();
    }
    const Tolerance once = allowed(p.format);
    expect_near(carried, p.reference(), {3 * once.o, 3 * once.lse}, "carried");
    expect_near(merged, p.reference(), {3 * once.o, 3 * once.lse}, "merged");
  }
}

TEST_F(CudaAttention, ClearIsEmpty) {
  const DeviceArray<float> o(queue(), std::vector<float>(2 * 3 * 8, 5.0f));
  const DeviceArray<float> lse(queue(), std::vector<float>(2 * 3, 5.0f));
  clear(queue(), Partial{o.data(), lse.data(), 2, 3, 8});
  EXPECT_EQ(o.host(), std::vector<float>(2 * 3 * 8, 0.0f));
  EXPECT_EQ(lse.host(), std::vector<float>(2 * 3, kMinusInfinity));
}

// Rows are written where they belong, rounded, and packed from there in the order of the list.
TEST_F(CudaAttention, AppendAndPack) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const KvFormat format = {dtype, 2, 6, 4};
    const int64_t cols = 12, rows = 5;
    std::vector<float> k(rows * cols), v(rows * cols);
    for (size_t i = 0; i < k.size(); ++i) {
      k[i] = static_cast<float>(i) + 0.125f;
      v[i] = -static_cast<float>(i);
    }
    const std::vector<int64_t> slot_rows = {9, 0, 4, 5, 11};
    const DeviceArray<float> on_k(queue(), k), on_v(queue(), v);
    const DeviceArray<int64_t> where(queue(), slot_rows);
    const DeviceArray<std::byte> store(
        queue(),
        std::vector<std::byte>(static_cast<size_t>(3 * format.page_bytes()), std::byte{7}));
    kv_append(queue(), matrix(on_k.data(), rows, cols), matrix(on_v.data(), rows, cols),
              store.data(), where.span(), format);

    const DeviceArray<int32_t> pages(queue(), std::vector<int32_t>{1, 2});
    const KvRows lists[] = {{store.data(), pages.data(), nullptr, 2},  // rows 4, 5
                            {store.data(), nullptr, nullptr, 0},
                            {store.data(), nullptr, nullptr, 1},            // row 0
                            {store.data(), pages.data() + 1, nullptr, 4}};  // rows 8 to 11
    const DeviceArray<std::byte> out(
        queue(), std::vector<std::byte>(static_cast<size_t>(7 * format.row_bytes())));
    kv_pack(queue(), out.data(), lists, format);
    const std::vector<std::byte> got = out.host();
    const auto element = [&](size_t row, int64_t c) {
      const std::byte* at =
          got.data() + static_cast<int64_t>(row) * format.row_bytes() + c * size_bytes(dtype);
      return dtype == DType::kF32 ? *reinterpret_cast<const float*>(at)
                                  : to_float(*reinterpret_cast<const bf16*>(at));
    };
    const std::vector<int> sources = {2, 3, 1, -1, 0, -1, 4};  // -1: never written
    for (size_t r = 0; r < sources.size(); ++r)
      for (int64_t c = 0; c < 2 * cols && sources[r] >= 0; ++c) {
        const auto i = static_cast<size_t>(sources[r] * cols + c % cols);
        const float want = c < cols ? k[i] : v[i];
        ASSERT_EQ(element(r, c), dtype == DType::kF32 ? want : to_float(to_bf16(want)))
            << name(dtype) << " row " << r << " column " << c;
      }
  }
}

}  // namespace
}  // namespace annulus::kernels
