// SPDX-License-Identifier: Apache-2.0
// Computes: sample, resolve_ids (kernels/sampling.h), the same bits as cpu/sampling.cc.
// Tensors: logits f32, where the head and the gathering of vocabulary shards have left them.
// Mapping: one block a row. Every question is put to a prefix of the candidates in order: "where
//   does a sum over the best ones, of weights or of ones, exceed a target?". find() descends to
//   that candidate's logit by four bits a pass over the row; candidates of equal logits weigh the
//   same, so that a division says which of them it is.
// Tiles: a column of 16 sums a thread, 64 KiB of shared memory; nothing is sorted or stored.
// Numerics: exact sums of integers; weights in double without fused operations (-fmad=false).
// Limits: 2^31 - 1 candidates. A row is one SM's work: some ten passes over 4 bytes a candidate and
//   two exponentials a candidate and question, a tenth of a millisecond for 128,256 (calculated).
#include "kernels/sampling.h"

#include <algorithm>

#include "kernels/core/weights_of_logits.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/queue.h"
#include "kernels/cuda/tensor_core.cuh"

namespace annulus::kernels {
namespace {

using device::kWarp;

constexpr int kThreads = 512, kDigitBits = 4, kDigits = 1 << kDigitBits;
static_assert(kThreads / kWarp == kDigits);  // a warp adds up a digit

struct Shared {
  uint64_t columns[kDigits][kThreads];
  uint64_t sums[kDigits];
  int32_t id;
};

// A row of logits. Threads take turns.
struct Row {
  const float* first;
  int64_t stride;  // between pieces
  int32_t pieces, width;

  __device__ int32_t vocab() const { return pieces * width; }
  __device__ float logit(int32_t id) const { return first[id / width * stride + id % width]; }
  template <class Body>
  __device__ void each(const Body& body) const {  // of this thread's (logit, id)
    for (int32_t p = 0; p < pieces; ++p) {
      for (int32_t c = static_cast<int32_t>(threadIdx.x); c < width; c += kThreads)
        body(first[p * stride + c], p * width + c);
    }
  }
};

struct Weight {
  float best;
  double inverse_temperature;
  int shift;
  __device__ uint64_t operator()(float logit) const {
    return weight_of(logit, best, inverse_temperature, shift);
  }
};
struct One {
  __device__ uint64_t operator()(float) const { return 1; }
};
struct Sum {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};
struct Least {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a < b ? a : b; }
};

// Every thread gets it. Sixteen threads join 32 numbers each, in an order without bank conflicts.
template <class Join>
__device__ uint64_t over_block(Shared& shared, uint64_t x, const Join& join) {
  const unsigned thread = threadIdx.x;
  shared.columns[0][thread] = x;
  __syncthreads();
  if (thread < kDigits) {
    uint64_t some = shared.columns[0][thread * kWarp + thread];
    for (unsigned i = 1; i < kWarp; ++i)
      some = join(some, shared.columns[0][thread * kWarp + (thread + i) % kWarp]);
    shared.sums[thread] = some;
  }
  __syncthreads();
  uint64_t all = shared.sums[0];
  for (int i = 1; i < kDigits; ++i) all = join(all, shared.sums[i]);
  return all;
}

// Sum of x over the threads before this one.
__device__ uint64_t over_earlier_threads(Shared& shared, uint64_t x) {
  shared.columns[0][threadIdx.x] = x;
  __syncthreads();
  uint64_t sum = 0;
  for (unsigned i = 0; i < kThreads; ++i) sum += i < threadIdx.x ? shared.columns[0][i] : 0;
  __syncthreads();
  return sum;
}

// Weight of the candidates that come before those of this order.
__device__ uint64_t weight_before(const Row& row, Shared& shared, uint64_t order,
                                  const Weight& weight) {
  uint64_t sum = 0;
  row.each([&](float logit, int32_t) {
    if (order_of(logit) < order) sum += weight(logit);
  });
  return over_block(shared, sum, Sum{});
}
constexpr uint64_t kAll = uint64_t{1} << 32;  // an order behind every other

// The order of the first candidate with which measure(), summed from the best one on, exceeds the
// target, which is below the sum of all; and that sum before all candidates of its order.
struct Found {
  uint32_t order;
  uint64_t before;
};
template <class Measure>
__device__ Found find(const Row& row, Shared& shared, uint64_t target, const Measure& measure) {
  Found found = {0, 0};
  for (int bit = 32 - kDigitBits; bit >= 0; bit -= kDigitBits) {
    for (auto& column : shared.columns) column[threadIdx.x] = 0;
    row.each([&](float logit, int32_t) {
      const uint64_t order = order_of(logit);
      if (order >> bit >> kDigitBits != uint64_t{found.order} >> bit >> kDigitBits) return;
      shared.columns[order >> bit & (kDigits - 1)][threadIdx.x] += measure(logit);
    });
    __syncthreads();
    // A warp adds up to 32 sums of a digit, where each thread overwrites what it alone has read.
    const unsigned thread = threadIdx.x, lane = thread % kWarp;
    uint64_t* const of_warp = shared.columns[thread / kWarp];
    uint64_t sum = 0;
    for (unsigned i = lane; i < kThreads; i += kWarp) sum += of_warp[i];
    of_warp[lane] = sum;
    __syncthreads();
    if (thread < kDigits) {
      sum = 0;
      for (unsigned i = 0; i < kWarp; ++i) sum += shared.columns[thread][(thread + i) % kWarp];
      shared.sums[thread] = sum;
    }
    __syncthreads();
    uint32_t digit = 0;
    while (digit < kDigits - 1 && target - found.before >= shared.sums[digit])
      found.before += shared.sums[digit++];
    found.order |= digit << bit;
  }
  return found;
}

// Ids in order, a part for each thread.
struct Part {
  int32_t begin, end;
};
__device__ Part part_of_thread(const Row& row) {
  const int32_t each = (row.vocab() + kThreads - 1) / kThreads;
  const auto begin = min(row.vocab(), static_cast<int32_t>(threadIdx.x) * each);
  return {begin, min(row.vocab(), begin + each)};
}

// The id of candidate `number`, from 0, of those of this order.
__device__ int32_t id_of(const Row& row, Shared& shared, uint32_t order, uint64_t number) {
  const Part part = part_of_thread(row);
  uint64_t mine = 0;
  for (int32_t id = part.begin; id < part.end; ++id) mine += order_of(row.logit(id)) == order;
  uint64_t at = over_earlier_threads(shared, mine);
  if (at <= number && number < at + mine) {
    for (int32_t id = part.begin; id < part.end; ++id) {
      if (order_of(row.logit(id)) == order && at++ == number) shared.id = id;
    }
  }
  __syncthreads();
  return shared.id;
}

__device__ int32_t draw(const Row& row, Shared& shared, const LogitWish& wish,
                        const Weight& weight) {
  // The weight of the first candidates up to the one at which `target` is exceeded, it included.
  const auto weight_up_to = [&](uint64_t target) {
    const Found found = find(row, shared, target, weight);
    const uint64_t each = weight(logit_of(found.order));
    return found.before + ((target - found.before) / each + 1) * each;
  };
  uint64_t total = 0;
  if (wish.top_k > 0 && wish.top_k < row.vocab()) {
    const auto k = static_cast<uint64_t>(wish.top_k);
    const Found last = find(row, shared, k - 1, One{});
    total = weight_before(row, shared, last.order, weight) +
            (k - last.before) * weight(logit_of(last.order));
  } else {
    total = weight_before(row, shared, kAll, weight);
  }
  uint64_t pass = total;
  if (wish.top_p < 1) pass = std::min(pass, weight_up_to(held_by_top_p(wish.top_p, total) - 1));
  if (wish.min_p > 0) {
    uint64_t first = kAll;  // that fails
    row.each([&](float logit, int32_t) {
      const uint64_t order = order_of(logit);
      if (order < first && fails_min_p(weight(logit), wish.min_p, weight.shift)) first = order;
    });
    first = over_block(shared, first, Least{});
    pass = std::min(pass, weight_before(row, shared, first, weight));
  }
  pass = std::max(pass, uint64_t{1} << weight.shift);  // the best one passes everything
  const uint64_t target = multiply_high(wish.random, pass);
  const Found found = find(row, shared, target, weight);
  const uint64_t each = weight(logit_of(found.order));
  return id_of(row, shared, found.order, (target - found.before) / each);
}

// The best k, by id, those of the last one's logit behind the others.
__device__ void write_top(const Row& row, Shared& shared, uint64_t k, Candidate* top) {
  const Found last = find(row, shared, k - 1, One{});
  const Part part = part_of_thread(row);
  constexpr int kHigh = 32;  // two counts in one number
  uint64_t mine = 0;
  for (int32_t id = part.begin; id < part.end; ++id) {
    const uint32_t order = order_of(row.logit(id));
    mine += order < last.order ? uint64_t{1} << kHigh : order == last.order;
  }
  const uint64_t earlier = over_earlier_threads(shared, mine);
  uint64_t at = earlier >> kHigh, equal_at = last.before + (earlier & 0xffffffffu);
  for (int32_t id = part.begin; id < part.end; ++id) {
    const float logit = cleaned(row.logit(id));
    const uint32_t order = order_of(logit);
    if (order < last.order) top[at++] = {logit, id};
    if (order == last.order && equal_at < k) top[equal_at++] = {logit, id};
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    sample_row(Logits logits, const LogitWish* wishes, SampleOut out) {
  auto& shared = *reinterpret_cast<Shared*>(device::launch_memory());
  const int64_t r = blockIdx.x;
  const LogitWish wish = wishes[r];
  const Row row = {logits.data + r * logits.width, logits.rows * logits.width, logits.pieces,
                   logits.width};
  uint64_t first = ~uint64_t{0};  // order, then id
  row.each([&](float logit, int32_t id) {
    first = std::min(first, uint64_t{order_of(logit)} << 32 | static_cast<uint32_t>(id));
  });
  first = over_block(shared, first, Least{});
  LogitAnswer answer;
  answer.best = logit_of(static_cast<uint32_t>(first >> 32));
  const int shift = weight_shift(row.vocab());
  if (wish.mass) answer.mass = weight_before(row, shared, kAll, Weight{answer.best, 1, shift});
  if (wish.id_at >= 0) {
    answer.token = static_cast<int32_t>(first & 0xffffffffu);
    if (!wish.greedy) {
      answer.token = draw(row, shared, wish, Weight{answer.best, wish.inverse_temperature, shift});
    }
    answer.token_logit = row.logit(answer.token);
  }
  if (wish.target >= 0) answer.target_logit = row.logit(wish.target);
  if (wish.top > 0) {
    write_top(row, shared, static_cast<uint64_t>(min(wish.top, row.vocab())),
              out.top + r * out.top_room);
  }
  if (threadIdx.x != 0) return;
  out.answers[r] = answer;
  if (wish.id_at >= 0) out.ids[wish.id_at] = answer.token;
}

__global__ void __launch_bounds__(device::kBlock)
    resolve(int64_t count, int32_t* out, const int32_t* ids, const int32_t* known) {
  const int64_t i = int64_t{blockIdx.x} * device::kBlock + threadIdx.x;
  if (i < count) out[i] = ids[i] >= 0 ? ids[i] : known[~ids[i]];
}

}  // namespace

template <>
void sample<CudaQueue>(CudaQueue& queue, const Logits& logits, std::span<const LogitWish> wishes,
                       const SampleOut& out) {
  ANNULUS_CHECK(static_cast<int64_t>(wishes.size()) == logits.rows && logits.vocab() > 0,
                wishes.size(), " wishes for ", logits.rows, " x ", logits.vocab());
  static const bool allowed = [] {
    allow_memory(sample_row, sizeof(Shared));
    return true;
  }();
  static_cast<void>(allowed);
  launch_with_memory(queue, {blocks_for(logits.rows, 1)}, {kThreads}, sizeof(Shared), sample_row,
                     logits, wishes.data(), out);
}

template <>
void resolve_ids<CudaQueue>(CudaQueue& queue, std::span<int32_t> out, std::span<const int32_t> ids,
                            const int32_t* known) {
  ANNULUS_CHECK(out.size() == ids.size(), out.size(), " of ", ids.size());
  launch(queue, {blocks_for(static_cast<int64_t>(out.size()), device::kBlock)}, {device::kBlock},
         resolve, static_cast<int64_t>(out.size()), out.data(), ids.data(), known);
}

}  // namespace annulus::kernels
