// SPDX-License-Identifier: Apache-2.0
// Attention on a GPU, or on the emulated one, against double precision: the problems of the CPU's
// tests, with everything that a kernel may read copied to the device.
#include "kernels/cuda/attention.h"

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/kernels/attention_problem.h"
#include "tests/kernels/cuda/device_array.h"

namespace annulus::kernels {
namespace {

constexpr Shape kSmol = {9, 3, 64};
constexpr AttentionKernel kOnTensorCores[] = {AttentionKernel::kMma, AttentionKernel::kWgmma};

std::string described(AttentionKernel kernel, int32_t splits, Shape shape) {
  return std::string(kernel == AttentionKernel::kWgmma ? "wgmma, " : "mma, ") +
         std::to_string(splits) + " splits, " + std::to_string(shape.heads) + "/" +
         std::to_string(shape.kv_heads) + " heads of " + std::to_string(shape.head_dim);
}

// Tensor cores round probabilities to bf16, as vdpbf16ps does.
Tolerance allowed(const KvFormat& format) {
  return tolerance(tensor_cores_take(format) ? CpuIsa::kAvx512Bf16 : CpuIsa::kPortable,
                   format.dtype);
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

// What a tile of keys may be: absent, hidden from all, from some, cut, full of padding, older or
// younger than every query, in any order.
TEST_F(CudaAttention, TensorCoresOddTiles) {
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
  for (const Shape shape : {Shape{2, 1, 64}, Shape{3, 1, 128}}) {
    for (const auto& [what, sequence] : std::vector<std::pair<std::string, Sequence>>{
             {"one row, one key", {{0}, {0}}},
             {"a tile to the row", {range(128, 64), range(0, 128)}},
             {"a key more than a tile", {range(200, 3), range(0, 129)}},
             {"nothing is seen", {range(0, 70), range(1000, 300)}},
             {"any order",
              {std::vector<int32_t>(shuffled.begin(), shuffled.begin() + 90), shuffled}},
             {"padding", {range(0, 129), padded}},
             {"padding alone", {range(0, 5), std::vector<int32_t>(200, kPaddingKeyPos)}},
             {"tiles that are hidden", {range(200, 66), late}},
             {"queries that see nothing", {some_queries, range(0, 140)}}}) {
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
      Segment piece = whole;
      piece.kv.base += first * p.format.row_bytes();
      piece.kv.positions += first;
      piece.kv.count = count;
      pieces.push_back(piece);
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
