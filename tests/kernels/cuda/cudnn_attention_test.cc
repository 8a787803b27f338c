// SPDX-License-Identifier: Apache-2.0
// attend() by cuDNN against double precision: on a real GPU by the library, on the emulated one by
// a script that interprets its graphs.
#include "kernels/cuda/cudnn_attention.h"

#include <string>
#include <utility>
#include <vector>

#include "tests/kernels/cuda/attention_on_device.h"
#include "tests/kernels/cuda/cudnn_test.h"

namespace annulus::kernels {
namespace {

constexpr Shape kSmol = {9, 3, 64};

// As our kernels on tensor cores: probabilities are rounded to bf16, by 2^-9 of themselves at most,
// and so, in the worst case, is their mean. cuDNN rounds them before it divides by their sum, as
// ours, or after it: the same bound. lse: scores of up to 8, summed up in fp32 in an order of
// cuDNN's, are off by 1e-6, as exponentials and logarithms of the GPU's approximations are.
Tolerance allowed_of_cudnn(const KvFormat& format) {
  return {allowed(format).o, 5e-6};
}

class CudnnAttend : public CudnnTest {
 protected:
  void SetUp() override {
    CudnnTest::SetUp();
    if (!IsSkipped()) queue().use(*api_);
  }
  void check(const Problem& p, const std::string& what, bool paged) {
    OnDevice problem(queue(), p, paged);
    expect_near(problem.attend_by_cudnn(problem.segments, OwnedPartial(p)), p.reference(),
                allowed_of_cudnn(p.format), what + (paged ? ", paged" : ", packed"));
  }
  void check(Shape shape, const std::vector<Sequence>& sequences, const std::string& what,
             bool paged = true) {
    check(Problem(shape, DType::kBF16, sequences),
          what + ", " + std::to_string(shape.heads) + "/" + std::to_string(shape.kv_heads) +
              " heads of " + std::to_string(shape.head_dim),
          paged);
  }
};

TEST_F(CudnnAttend, PrefillsAndDecodes) {
  check({16, 1, 128}, {prefill(35, 9)}, "causal");
  check({4, 4, 64}, {prefill(7)}, "no groups");
  check(kSmol, {prefill(1, 170)}, "decode");
  for (const bool paged : {true, false}) {
    check(kSmol, {prefill(3, 1), {{}, range(0, 20)}, prefill(1), {{5, 6}, {}}, prefill(2, 90)},
          "ragged, with empty sides", paged);
  }
  check(kSmol, {{range(2, 10, 3), range(1, 50, 4)}, {{7, 3, 9, 3}, {8, 2, 3, 9, 1, 100}}},
        "any order of positions");
  check(kSmol,
        {{{3, kPaddingQueryPos, 4}, {0, kPaddingKeyPos, 2, kPaddingKeyPos}},
         {{1, 2}, {kPaddingKeyPos, 5}}},
        "padding, and rows that see nothing");
}

TEST_F(CudnnAttend, OddSequences) {
  for (const Shape shape : {Shape{2, 1, 64}, Shape{3, 1, 128}}) {
    for (const auto& [what, sequence] : odd_sequences()) {
      check(shape, {sequence}, what, shape.head_dim == 64);
    }
  }
}

// Blocks of every size, and what is left for a last one: of queries and of keys.
TEST_F(CudnnAttend, Blocks) {
  const Shape shape = {2, 1, 64};
  check(shape, {prefill(kCudnnQueries.small + 1, kCudnnKeys.small)}, "two small ones each way");
  check(shape, {{range(4000, kCudnnQueries.large + 3), range(0, 600)}}, "queries, large");
  check(shape, {{range(9000, 20), range(0, kCudnnKeys.large + 70)}}, "keys, large and small");
  check(shape, {{range(4900, 20), range(0, kCudnnKeys.large / 2 + 1)}}, "keys, hardly large");
}

// The queries of a block in any order, among keys in any order, more of both than a block has.
TEST_F(CudnnAttend, AnyOrder) {
  std::vector<int32_t> queries = range(0, 700, 3), keys = range(1, 1500, 2);
  std::mt19937 random(5);
  std::shuffle(queries.begin(), queries.end(), random);
  std::shuffle(keys.begin(), keys.end(), random);
  for (size_t i = 0; i < queries.size(); i += 11) queries[i] = queries[0];  // equal ones
  check({4, 2, 64}, {{queries, keys}}, "shuffled", false);
}

// Pages of any size, larger and smaller than a block's keys.
TEST_F(CudnnAttend, Pages) {
  for (const int32_t page_tokens : {12, 64, 2048}) {
    check(Problem({4, 2, 64}, DType::kBF16, {prefill(40, 300), prefill(70, 17)}, 1, page_tokens),
          "pages of " + std::to_string(page_tokens), true);
  }
}

// A ring's hops, carried on in acc: what an earlier one has seen stays, and some see nothing.
TEST_F(CudnnAttend, PiecesCarryOn) {
  const Problem p(kSmol, DType::kBF16, {prefill(70, 400)});
  OnDevice problem(queue(), p, false);
  const Segment whole = problem.segments[0];
  OwnedPartial carried(p);
  for (const auto& [first, count] : {std::pair{440, 30}, {40, 400}, {0, 1}, {1, 39}}) {
    const Segment piece = piece_of(whole, p.format, first, count);
    carried = problem.attend_by_cudnn({&piece, 1}, carried);
  }
  const Tolerance once = allowed_of_cudnn(p.format);
  expect_near(carried, p.reference(), {4 * once.o, 4 * once.lse}, "carried");
}

// A row's bits depend neither on what else is in the batch nor on when it runs.
TEST_F(CudnnAttend, OtherSegmentsDoNotMatter) {
  const Problem p(kSmol, DType::kBF16, {prefill(30, 40), prefill(50, 9)});
  OnDevice problem(queue(), p, true);
  const OwnedPartial both = problem.attend_by_cudnn(problem.segments, OwnedPartial(p));
  OwnedPartial each(p);
  for (size_t i : {1u, 0u}) each = problem.attend_by_cudnn({&problem.segments[i], 1}, each);
  EXPECT_TRUE(both == each);
}

// What attend() leaves to our kernels: few rows, a cache of f32, heads of another size. To the bit
// what they are without cuDNN.
TEST_F(CudnnAttend, OursStayOurs) {
  CudaQueue ours(0);
  for (const auto& [shape, dtype] :
       {std::pair{kSmol, DType::kF32}, {Shape{3, 1, 24}, DType::kBF16}, {kSmol, DType::kBF16}}) {
    const Problem p(shape, dtype, {prefill(1, 90), prefill(20)});
    OnDevice with(queue(), p, true), without(ours, p, true);
    EXPECT_TRUE(with.attend_to(with.segments, OwnedPartial(p)) ==
                without.attend_to(without.segments, OwnedPartial(p)));
  }
}

// attend() of a batch in which some segments are cuDNN's and some ours.
TEST_F(CudnnAttend, TheEnginesBatch) {
  const Problem p({16, 1, 64}, DType::kBF16, {prefill(1, 90), prefill(90, 200), prefill(1, 300)});
  OnDevice problem(queue(), p, true);
  expect_near(problem.attend_to(problem.segments, OwnedPartial(p)), p.reference(),
              allowed_of_cudnn(p.format), "mixed");
}

}  // namespace
}  // namespace annulus::kernels
