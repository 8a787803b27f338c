// SPDX-License-Identifier: Apache-2.0
// Partials: merge as a commutative monoid, and attention over any partition of the keys.
#include <algorithm>

#include "tests/kernels/attention_problem.h"

namespace annulus::kernels {
namespace {

class PartialTest : public testing::TestWithParam<Target> {
 protected:
  OwnedPartial merged(OwnedPartial into, OwnedPartial from) {
    merge(queue_, into.view(), from.view());
    return into;
  }
  CpuQueue queue_{2, GetParam().isa};
};

constexpr Shape kShape = {6, 2, 40};

// Rows of all kinds: empty, tiny, huge lse.
OwnedPartial random_partial(uint32_t seed, int64_t rows = 300) {
  OwnedPartial p(rows, kShape);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < p.lse.size(); ++i) {
    const uint32_t kind = random() % 4;
    if (kind == 0) continue;
    p.lse[i] = kind == 1 ? 1000 * normal(random) : 3 * normal(random);
    for (size_t j = 0; j < 40; ++j) p.o[i * 40 + j] = normal(random);
  }
  return p;
}

ReferencePartial as_reference(const OwnedPartial& p, int64_t rows = 300) {
  ReferencePartial r(rows, kShape.heads, kShape.head_dim);
  std::copy(p.o.begin(), p.o.end(), r.o.begin());
  std::copy(p.lse.begin(), p.lse.end(), r.lse.begin());
  return r;
}

TEST_P(PartialTest, EmptyIsTheIdentity) {
  const OwnedPartial empty(300, kShape), a = random_partial(1);
  EXPECT_EQ(merged(empty, empty), empty);
  EXPECT_EQ(merged(a, empty), a);
  EXPECT_EQ(merged(empty, a), a);
}

TEST_P(PartialTest, ClearMakesEmpty) {
  OwnedPartial a = random_partial(2);
  clear(queue_, a.view());
  EXPECT_EQ(a, OwnedPartial(300, kShape));
}

TEST_P(PartialTest, MergeIsCommutativeToTheBit) {
  const OwnedPartial a = random_partial(3), b = random_partial(4);
  EXPECT_EQ(merged(a, b), merged(b, a));
  EXPECT_EQ(merged(a, a), merged(a, OwnedPartial(a)));
}

// A merge rounds four times; exp of a difference of lse errs by eps * |lse| of its own, at most
// 1000 * 4 sigma * 6e-8 where both are huge and near, so weights are compared through the double
// formula on the same fp32 inputs: 1e-6 of |o| < 5.5.
TEST_P(PartialTest, MergeFollowsTheFormula) {
  const OwnedPartial a = random_partial(5), b = random_partial(6);
  ReferencePartial want = as_reference(a);
  reference_merge(want, as_reference(b));
  expect_near(merged(a, b), want, {5.5e-6, 1e-6}, "merge");
}

// The lse in between is rounded to fp32: 2^-24 of 4000 at worst, which moves weights by 2.4e-4.
// Rows of moderate lse alone therefore take part here.
TEST_P(PartialTest, MergeIsAssociative) {
  OwnedPartial parts[3] = {random_partial(7), random_partial(8), random_partial(9)};
  for (OwnedPartial& p : parts)
    for (float& lse : p.lse)
      if (lse != kMinusInfinity) lse = std::clamp(lse, -9.0f, 9.0f);
  const OwnedPartial left = merged(merged(parts[0], parts[1]), parts[2]);
  const OwnedPartial right = merged(parts[0], merged(parts[1], parts[2]));
  // lse up to 10 rounds by 5e-7, twice: weights and o by 1e-6 each.
  expect_near(left, as_reference(right), {5.5 * 2e-6, 1e-6}, "associativity");
}

// Keys split at random into pieces (empty ones too), attended one after the other into acc, or each
// alone and then merged in a random order and grouping: always the attention over all keys.
TEST_P(PartialTest, AnyPartitionOfTheKeys) {
  const Target target = GetParam();
  const Shape shape{6, 2, 64};
  const std::pair<int32_t, int32_t> sizes[] = {{1, 900}, {2, 150}, {37, 90}, {130, 0}};
  for (auto [n_new, n_cached] : sizes) {
    for (size_t pieces : {2u, 3u, 7u}) {
      const Problem p(shape, target.dtype, {prefill(n_new, n_cached)}, 11);
      std::mt19937 random(static_cast<uint32_t>(pieces));
      const Segment& whole = p.packed[0];
      struct Piece {
        std::vector<std::byte> rows;
        std::vector<int32_t> positions;
      };
      std::vector<Piece> parts(pieces);
      std::vector<int32_t> order = range(0, whole.kv.count);
      std::shuffle(order.begin(), order.end(), random);
      for (int32_t key : order) {
        Piece& piece = parts[random() % (pieces - 1)];  // the last one stays empty
        const std::byte* row = kv_row(whole.kv, p.format, key);
        piece.rows.insert(piece.rows.end(), row, row + p.format.row_bytes());
        piece.positions.push_back(whole.kv.positions[key]);
      }
      OwnedPartial in_place(p);
      std::vector<OwnedPartial> alone;
      for (const Piece& piece : parts) {
        Segment s = whole;
        s.kv = {piece.rows.data(), nullptr, piece.positions.data(),
                static_cast<int32_t>(piece.positions.size())};
        attend(queue_, p.q(), {&s, 1}, p.format, p.scale, in_place.view());
        alone.emplace_back(p);
        attend(queue_, p.q(), {&s, 1}, p.format, p.scale, alone.back().view());
      }
      while (alone.size() > 1) {
        std::shuffle(alone.begin(), alone.end(), random);
        OwnedPartial last = alone.back();
        alone.pop_back();
        alone.back() = merged(alone.back(), last);
      }
      // Every merge adds a few eps of o and of lse < 10: seven of them stay below 1e-6 of 5.5.
      Tolerance t = tolerance(target.isa, target.dtype);
      t.o += 5.5e-6;
      const ReferencePartial want = p.reference();
      const std::string what = std::to_string(n_new) + " after " + std::to_string(n_cached) +
                               " in " + std::to_string(pieces);
      expect_near(in_place, want, t, what + ", in place");
      expect_near(alone[0], want, t, what + ", merged");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, PartialTest, testing::ValuesIn(targets()), target_name);

}  // namespace
}  // namespace annulus::kernels
