// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention.h"

#include <algorithm>
#include <thread>

#include "tests/kernels/attention_problem.h"

namespace annulus::kernels {
namespace {

class AttendTest : public testing::TestWithParam<Target> {
 protected:
  OwnedPartial run(const Problem& p, bool paged = true, int threads = 1) {
    CpuQueue queue(threads, GetParam().isa);
    OwnedPartial acc(p);
    attend(queue, p.q(), paged ? p.paged : p.packed, p.format, p.scale, acc.view());
    return acc;
  }
  Problem problem(Shape shape, std::vector<Sequence> sequences, uint32_t seed = 1) {
    return Problem(shape, GetParam().dtype, std::move(sequences), seed);
  }
  void check(Shape shape, std::vector<Sequence> sequences, const std::string& what) {
    const Problem p = problem(shape, std::move(sequences));
    expect_near(run(p), p.reference(), tolerance(GetParam().isa, GetParam().dtype), what);
  }
};

constexpr Shape kSmol = {9, 3, 64};

TEST_P(AttendTest, FullCausal) {
  for (int32_t n : {1, 2, 3, 5, 16, 63, 64, 65, 97, 191, 300})
    check(kSmol, {prefill(n)}, "T " + std::to_string(n));
}

TEST_P(AttendTest, HeadsAndDimensions) {
  for (Shape shape : {Shape{2, 2, 64}, Shape{8, 1, 64}, Shape{16, 2, 128}, Shape{4, 4, 128},
                      Shape{6, 2, 80}, Shape{2, 1, 8}, Shape{3, 1, 24}, Shape{2, 2, 72},
                      Shape{4, 2, 96}, Shape{2, 1, 256}, Shape{4, 2, 248}, Shape{40, 1, 32}})
    for (Sequence s : {prefill(1, 130), prefill(70, 13)})
      check(shape, {s},
            std::to_string(shape.heads) + "/" + std::to_string(shape.kv_heads) + " heads of " +
                std::to_string(shape.head_dim));
}

TEST_P(AttendTest, CachedPrefix) {
  for (auto [n_new, n_cached] : {std::pair{1, 1},
                                 {1, 511},
                                 {1, 512},
                                 {1, 1030},
                                 {2, 700},
                                 {3, 64},
                                 {17, 400},
                                 {64, 64},
                                 {130, 257}})
    check(kSmol, {prefill(n_new, n_cached)},
          std::to_string(n_new) + " after " + std::to_string(n_cached));
}

// Long enough for several key splits of the tiled kernel.
TEST_P(AttendTest, TiledSplits) {
  check({3, 1, 64}, {prefill(9, 4300)}, "9 after 4300");
}

TEST_P(AttendTest, RaggedBatch) {
  check(kSmol,
        {prefill(1, 600),
         prefill(33),
         {{}, range(0, 20)},
         prefill(1),
         {{5, 6}, {}},
         prefill(5, 90),
         prefill(2, 1)},
        "ragged");
}

// Zigzag shards, decode shards (strided) and any other order of positions.
TEST_P(AttendTest, PositionsInAnyOrder) {
  Sequence strided{range(2, 60, 3), range(1, 200, 4)};
  Sequence zigzag{range(0, 40), range(0, 40)};
  for (int32_t pos : range(200, 45)) {
    zigzag.q_positions.push_back(pos);
    zigzag.key_positions.push_back(pos - 3);
  }
  Sequence shuffled = prefill(120, 100);
  std::mt19937 random(7);
  std::shuffle(shuffled.q_positions.begin(), shuffled.q_positions.end(), random);
  std::shuffle(shuffled.key_positions.begin(), shuffled.key_positions.end(), random);
  Sequence one{{150}, shuffled.key_positions};
  check(kSmol, {strided, zigzag, shuffled, one}, "positions");
}

TEST_P(AttendTest, FuturePiecesAreInvisible) {
  const Problem p = problem(kSmol, {{range(0, 50), range(50, 100)}, {{3}, range(4, 700)}});
  EXPECT_EQ(run(p), OwnedPartial(p));
}

TEST_P(AttendTest, Padding) {
  Sequence s = prefill(50, 70), few = prefill(2, 600);
  for (size_t i : {0u, 7u, 49u}) s.q_positions[i] = kPaddingQueryPos;
  for (size_t i : {0u, 3u, 64u, 65u, 119u}) s.key_positions[i] = kPaddingKeyPos;
  for (size_t i = 80; i < 300; ++i) few.key_positions[i] = kPaddingKeyPos;
  few.q_positions[0] = kPaddingQueryPos;
  const Sequence nothing{range(0, 10), std::vector<int32_t>(90, kPaddingKeyPos)};
  check(kSmol, {s, few, nothing, {{9}, nothing.key_positions}}, "padding");
}

TEST_P(AttendTest, PagedAndPackedGiveTheSameBits) {
  const Problem p = problem(kSmol, {prefill(100, 50), prefill(1, 777), prefill(7, 30)});
  EXPECT_EQ(run(p, true), run(p, false));
}

// Keys that kernels take together lie on several pages, sometimes as far from the first to the last
// as if they lay together.
TEST_P(AttendTest, SmallPagesInAnyOrder) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    for (const int32_t page_tokens : {1, 4, 6}) {
      const Problem p(kSmol, GetParam().dtype, {prefill(1, 100), prefill(2, 61), prefill(20, 30)},
                      seed, page_tokens);
      ASSERT_EQ(run(p, true), run(p, false)) << "seed " << seed << ", pages of " << page_tokens;
    }
  }
}

TEST_P(AttendTest, SameBitsOnAnyNumberOfThreads) {
  const Problem p =
      problem(kSmol, {prefill(150, 50), prefill(1, 2500), prefill(9, 2100), prefill(2, 600)});
  const OwnedPartial one = run(p);
  for (int threads : {2, 3, 5}) EXPECT_EQ(one, run(p, true, threads)) << threads << " threads";
}

// Scores of up to +-1e4 that are exact in fp32 (small integers), so that the softmax alone errs.
TEST_P(AttendTest, ExtremeLogits) {
  const Shape shape{2, 1, 64};
  for (int32_t n_new : {1, 40}) {
    Problem p = problem(shape, {prefill(n_new, 200)});
    p.scale = 0.25f;
    const Segment& s = p.paged[0];
    std::uniform_int_distribution<int> size(-40, 40), sign(0, 1), coordinate(0, 63);
    std::vector<float> pattern(64);
    for (float& x : pattern) x = sign(p.random()) != 0 ? 4.0f : -4.0f;
    for (int32_t r = 0; r < s.q_count; ++r)
      for (int64_t i = 0; i < 128; ++i)
        p.set_q(s.q_first + r, i, (i < 64 ? 1.0f : -1.0f) * pattern[static_cast<size_t>(i % 64)]);
    for (int32_t r = 0; r < s.kv.count; ++r) {
      const float factor = static_cast<float>(size(p.random()));
      for (int64_t i = 0; i < 64; ++i)
        p.set_kv(s, r, i, factor * pattern[static_cast<size_t>(i)] / 4);
      p.set_kv(s, r, coordinate(p.random()), static_cast<float>(size(p.random()) % 4));
    }
    const ReferencePartial want = p.reference();
    EXPECT_GT(*std::max_element(want.lse.begin(), want.lse.end()), 2400.0);
    expect_near(run(p), want, tolerance(GetParam().isa, GetParam().dtype), "extreme");
  }
}

// One key far above all others after many tiles, and a row whose first visible key comes late.
TEST_P(AttendTest, MaximumMovesLate) {
  Problem p = problem(kSmol, {{{500, 130}, range(500, 1, 1)}, prefill(30, 400)});
  const Segment& s = p.paged[1];
  for (int64_t i = 0; i < 3 * 64; ++i) p.set_kv(s, 390, i, 8.0f);
  // Scores near 8 * sum q / 8: about 25 times those of other keys; errors grow alike.
  Tolerance t = tolerance(GetParam().isa, GetParam().dtype);
  expect_near(run(p), p.reference(), {t.o * 8, t.lse * 8}, "late maximum");
}

TEST_P(AttendTest, PollsOftenAndOnTheOwnerThread) {
  const Problem p = problem(kSmol, {prefill(400, 400)});
  CpuQueue queue(2, GetParam().isa);
  OwnedPartial acc(p);
  const std::thread::id owner = std::this_thread::get_id();
  int polls = 0;
  bool foreign = false;
  queue.set_poll([&] {
    ++polls;
    foreign |= std::this_thread::get_id() != owner;
  });
  attend(queue, p.q(), p.paged, p.format, p.scale, acc.view());
  EXPECT_FALSE(foreign);
  EXPECT_GT(polls, 0);
  // Alone, the owner polls at every tile: at least 7 blocks x 3 KV heads x 6 tiles of the prefix.
  CpuQueue alone(1, GetParam().isa);
  polls = 0;
  alone.set_poll([&] { ++polls; });
  attend(alone, p.q(), p.paged, p.format, p.scale, acc.view());
  EXPECT_GE(polls, 7 * 3 * 6);
}

TEST_P(AttendTest, RefusesShapesItCannotCompute) {
  Problem p = problem(kSmol, {prefill(2)});
  CpuQueue queue(1, GetParam().isa);
  OwnedPartial acc(p);
  EXPECT_DEATH(attend(queue, p.q(), p.paged, p.format, -1.0f, acc.view()), "scale");
  p.format.head_dim = 60;
  EXPECT_DEATH(attend(queue, p.q(), p.paged, p.format, p.scale, acc.view()), "head_dim");
  p.format.head_dim = 64;
  p.paged[0].q_count = 100;
  EXPECT_DEATH(attend(queue, p.q(), p.paged, p.format, p.scale, acc.view()), "rows");
}

INSTANTIATE_TEST_SUITE_P(Cpu, AttendTest, testing::ValuesIn(targets()), target_name);

}  // namespace
}  // namespace annulus::kernels
