// SPDX-License-Identifier: Apache-2.0
#include "parallel/measure.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <numeric>
#include <vector>

#include "kernels/ops.h"
#include "parallel/measure_link.h"

namespace annulus::parallel {
namespace {

using kernels::CpuQueue;
using kernels::matrix;
using kernels::Tensor;

// Decode reads more keys than a cache holds, as it will in a model of many layers.
constexpr int64_t kQueryRows = 128, kPrefillKeys = 1024, kDecodeKeys = 65536, kLinearRows = 64;
constexpr int kRepeats = 5;

// Least microseconds of a few runs, after one that warms up: the profile is frozen for an epoch,
// and what else the machine does at this moment should not be.
double least_us(const std::function<void()>& body) {
  body();
  double least = 1e12;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    least = std::min(
        least, std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
                   .count());
  }
  return std::max(least, 1e-3);
}

// Every value becomes the worst over the ranks: times, so the largest.
void take_slowest(CpuQueue& queue, Communicator<CpuQueue>& world, int32_t sequence,
                  std::span<double> times) {
  const int64_t bytes = static_cast<int64_t>(times.size_bytes());
  const std::vector<int64_t> sizes(static_cast<size_t>(world.size()), bytes);
  std::vector<double> all(times.size() * sizes.size());
  world.all_gather(queue, std::as_bytes(times), std::as_writable_bytes(std::span(all)), sizes,
                   {0, 1023, sequence, 0, "machine profile"});
  for (size_t i = 0; i < all.size(); ++i) {
    times[i % times.size()] = std::max(times[i % times.size()], all[i]);
  }
}

}  // namespace

MachineProfile measure_machine(CpuQueue& queue, Groups<CpuQueue> groups,
                               const AttentionShape& shape, const LlamaWeights& weights) {
  const CpuQueue::Mark mark(queue);
  const kernels::KvFormat format{shape.dtype, shape.kv_heads, shape.head_dim, 64};
  const int64_t q_cols = int64_t{shape.heads} * shape.head_dim;
  std::byte* kv = queue.scratch<std::byte>(kDecodeKeys * format.row_bytes());
  std::fill_n(kv, kDecodeKeys * format.row_bytes(), std::byte{0});
  std::byte* packed = queue.scratch<std::byte>(kPrefillKeys * format.row_bytes());
  const Tensor q = {queue.scratch<std::byte>(kQueryRows * shape.q_row_bytes()), shape.dtype,
                    kQueryRows, q_cols, q_cols};
  std::fill_n(q.row<std::byte>(0), kQueryRows * shape.q_row_bytes(), std::byte{0});
  const auto partial = [&] {
    kernels::Partial p{queue.scratch<float>(kQueryRows * q_cols),
                       queue.scratch<float>(kQueryRows * shape.heads), kQueryRows, shape.heads,
                       shape.head_dim};
    kernels::clear(queue, p);
    return p;
  };
  const kernels::Partial acc = partial(), other = partial();
  std::vector<int32_t> key_positions(kDecodeKeys), query_positions(kQueryRows, kDecodeKeys);
  std::iota(key_positions.begin(), key_positions.end(), 0);
  const auto attend = [&](int64_t rows, int64_t keys) {
    const kernels::Segment segment{0,
                                   static_cast<int32_t>(rows),
                                   query_positions.data(),
                                   {kv, nullptr, key_positions.data(), static_cast<int32_t>(keys)}};
    kernels::attend(queue, q.slice_rows(0, rows), {&segment, 1}, format, 1.0f, acc.slice(0, rows));
  };

  const kernels::KvRows rows{kv, nullptr, key_positions.data(), kPrefillKeys};
  int64_t widest = 0;
  const LayerWeights& layer = weights.layers.at(0);
  const kernels::PackedMatrix* linear[] = {&layer.qkv, &layer.o, &layer.gate_up, &layer.down};
  for (const auto* w : linear) widest = std::max({widest, w->n(), w->k()});
  float* x = queue.scratch<float>(kLinearRows * widest);
  float* y = queue.scratch<float>(kLinearRows * widest);
  std::fill_n(x, kLinearRows * widest, 0.0f);
  std::fill_n(y, kLinearRows * widest, 0.0f);

  double times[] = {
      least_us([&] { attend(kQueryRows, kPrefillKeys); }),
      least_us([&] { attend(1, kDecodeKeys); }),
      least_us([&] { attend(1, 1); }),
      least_us([&] { kernels::merge(queue, acc, other); }),
      least_us([&] {
        kernels::kv_pack(queue, packed, {&rows, 1}, format);
      }),
      least_us([&] {
        for (const auto* w : linear) {
          kernels::matmul(queue, matrix(y, kLinearRows, w->n()),
                          kernels::ConstTensor(matrix(x, kLinearRows, w->k())), *w);
        }
      }),
  };
  take_slowest(queue, *groups.world, 0, times);
  const LinkMeasure link = measure_link(*groups.cp, queue);
  double link_times[] = {1 / link.bytes_per_us, link.latency_us, -link.overlap};
  take_slowest(queue, *groups.world, 1, link_times);

  MachineProfile profile;
  const double overhead = times[2];
  const auto above = [&](double us) { return std::max(us - overhead, us / 10); };
  profile.attend_overhead_us = overhead;
  profile.attend_flops_per_us =
      4.0 * static_cast<double>(kQueryRows * kPrefillKeys * q_cols) / above(times[0]);
  profile.kv_read_bytes_per_us =
      static_cast<double>(kDecodeKeys * format.row_bytes()) / above(times[1]);
  profile.merge_bytes_per_us =
      static_cast<double>(kQueryRows * shape.partial_row_bytes()) / times[3];
  profile.pack_bytes_per_us = static_cast<double>(kPrefillKeys * format.row_bytes()) / times[4];
  profile.linear_us_per_row = times[5] * shape.layers / static_cast<double>(kLinearRows);
  profile.link_bytes_per_us = 1 / link_times[0];
  profile.link_latency_us = link_times[1];
  profile.overlap = -link_times[2];
  return profile;
}

}  // namespace annulus::parallel
