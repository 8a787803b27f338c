// SPDX-License-Identifier: Apache-2.0
// measure_machine(), instantiated for each queue in on_<device>.cc.
#pragma once

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

#include "kernels/ops.h"
#include "parallel/measure.h"
#include "parallel/measure_link_inl.h"

namespace annulus::parallel {
namespace machine_measurement {

// Decode reads more keys than a cache holds, as it will in a model of many layers.
constexpr int64_t kQueryRows = 128, kPrefillKeys = 1024, kDecodeKeys = 65536, kLinearRows = 64;
constexpr int64_t kMostTunedRows = 1024;
constexpr int kRepeats = 5;
constexpr int kSmallOps = 16;  // at a time, where one is too short for the clock

// Least microseconds of a few runs, after one that warms up: the profile is frozen for an epoch,
// and what else the machine does at this moment should not be.
template <class Queue, class Body>
double least_us(Queue& queue, const Body& body) {
  const auto run = [&] {
    body();
    queue.finish(std::chrono::steady_clock::now() + std::chrono::seconds(60));
  };
  run();
  double least = 1e12;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    least = std::min(
        least, std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
                   .count());
  }
  return std::max(least, 1e-3);
}

}  // namespace machine_measurement

template <class Queue>
void tune_products(Queue& queue, const LlamaWeights<Queue>& weights) {
  using namespace machine_measurement;
  if constexpr (requires { queue.gemm(); }) {
    if (queue.gemm() == nullptr) return;
    const auto tune = [&](const typename Queue::Matrix& w, int64_t most_rows) {
      const typename Queue::Mark mark(queue);
      float* const x = queue.template scratch<float>(most_rows * w.k());
      float* const y = queue.template scratch<float>(most_rows * w.n());
      queue.fill(reinterpret_cast<std::byte*>(x), std::byte{0}, most_rows * w.k() * 4);
      for (int64_t rows = 1; rows <= most_rows; rows *= 4) {
        kernels::matmul(queue, kernels::matrix(y, rows, w.n()),
                        kernels::ConstTensor(kernels::matrix(x, rows, w.k())), w);
      }
      queue.finish(std::chrono::steady_clock::now() + std::chrono::seconds(60));
    };
    queue.gemm()->set_tuning(true);
    const size_t layers = weights.layers.size();
    for (const size_t l : {size_t{0}, layers / 2}) {  // the first may be of another type
      const LayerWeights<Queue>& layer = weights.layers.at(l);
      for (const auto* w : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
        tune(*w, kMostTunedRows);
    }
    tune(weights.head, kLinearRows);  // logits are computed of as many rows at a time
    queue.gemm()->set_tuning(false);
  }
}

template <class Queue>
MachineProfile measure_machine(Queue& queue, Groups<Queue> groups, const AttentionShape& shape,
                               const LlamaWeights<Queue>& weights) {
  using namespace machine_measurement;
  using kernels::matrix;
  using kernels::Tensor;
  const typename Queue::Mark mark(queue);
  const kernels::KvFormat format{shape.dtype, shape.kv_heads, shape.head_dim, 64};
  const int64_t q_cols = int64_t{shape.heads} * shape.head_dim;
  // Rates are per row. cuDNN fills a block up with rows that cost what others do, and a small block
  // does not fill a GPU: there it is a large one, as prompts have them.
  int64_t query_rows = kQueryRows;
  if constexpr (requires { queue.cudnn(); }) {  // whose plans no later step compiles
    const int32_t full = queue.cudnn() == nullptr ? 0 : queue.cudnn()->prepare(shape.heads, format);
    query_rows = std::max<int64_t>(query_rows, full);
  }
  std::byte* kv = queue.template scratch<std::byte>(kDecodeKeys * format.row_bytes());
  queue.fill(kv, std::byte{0}, kDecodeKeys * format.row_bytes());
  std::byte* packed = queue.template scratch<std::byte>(kPrefillKeys * format.row_bytes());
  const Tensor q = {queue.template scratch<std::byte>(query_rows * shape.q_row_bytes()),
                    shape.dtype, query_rows, q_cols, q_cols};
  queue.fill(q.template row<std::byte>(0), std::byte{0}, query_rows * shape.q_row_bytes());
  const auto partial = [&] {
    kernels::Partial p{queue.template scratch<float>(query_rows * q_cols),
                       queue.template scratch<float>(query_rows * shape.heads), query_rows,
                       shape.heads, shape.head_dim};
    kernels::clear(queue, p);
    return p;
  };
  const kernels::Partial acc = partial(), other = partial();
  std::vector<int32_t> key_positions(kDecodeKeys), query_positions(query_rows, kDecodeKeys);
  std::iota(key_positions.begin(), key_positions.end(), 0);
  const int32_t* const keys_at = queue.upload(std::span<const int32_t>(key_positions)).data();
  const int32_t* const queries_at = queue.upload(std::span<const int32_t>(query_positions)).data();
  const auto attend = [&](int64_t rows, int64_t keys) {
    const kernels::Segment segment{0,
                                   static_cast<int32_t>(rows),
                                   queries_at,
                                   {kv, nullptr, keys_at, static_cast<int32_t>(keys)}};
    kernels::attend(queue, q.slice_rows(0, rows), {&segment, 1}, format, 1.0f, acc.slice(0, rows));
  };

  const kernels::KvRows rows{kv, nullptr, keys_at, kPrefillKeys};
  int64_t widest = 0;
  const LayerWeights<Queue>& layer = weights.layers.at(0);
  const typename Queue::Matrix* linear[] = {&layer.qkv, &layer.o, &layer.gate_up, &layer.down};
  for (const auto* w : linear) widest = std::max({widest, w->n(), w->k()});
  const auto zeros = [&] {
    const int64_t count = kLinearRows * widest;
    float* const data = queue.template scratch<float>(count);
    queue.fill(reinterpret_cast<std::byte*>(data), std::byte{0}, count * 4);
    return data;
  };
  float *const x = zeros(), *const y = zeros();

  const auto small_us = [&](const auto& op) {
    return least_us(queue,
                    [&] {
                      for (int i = 0; i < kSmallOps; ++i) op();
                    }) /
           kSmallOps;
  };
  double times[] = {
      least_us(queue, [&] { attend(query_rows, kPrefillKeys); }),
      least_us(queue, [&] { attend(1, kDecodeKeys); }),
      small_us([&] { attend(1, 1); }),
      small_us([&] { kernels::merge(queue, acc.slice(0, 1), other.slice(0, 1)); }),
      least_us(queue,
               [&] {
                 kernels::clear(queue, acc);
                 kernels::merge(queue, acc, other);
               }),
      least_us(queue,
               [&] {
                 kernels::kv_pack(queue, packed, {&rows, 1}, format);
               }),
      least_us(queue,
               [&] {
                 for (const auto* w : linear) {
                   kernels::matmul(queue, matrix(y, kLinearRows, w->n()),
                                   kernels::ConstTensor(matrix(x, kLinearRows, w->k())), *w);
                 }
               }),
  };
  take_worst(queue, *groups.world, times, {0, 1023, 0, 0, "machine profile"});
  const LinkMeasure link = measure_link(*groups.cp, queue);
  double link_times[] = {link.overhead_us,
                         link.latency_us,
                         1 / link.bytes_per_us,
                         -link.overlap,
                         link.collective_overhead_us,
                         1 / link.collective_bytes_per_us};
  take_worst(queue, *groups.world, link_times, {0, 1023, 1, 0, "machine profile"});

  MachineProfile profile;
  const double attend_overhead = times[2], op_overhead = times[3];
  const auto above = [](double us, double overhead) { return std::max(us - overhead, us / 10); };
  profile.attend_overhead_us = attend_overhead;
  profile.op_overhead_us = op_overhead;
  profile.attend_flops_per_us = 4.0 * static_cast<double>(query_rows * kPrefillKeys * q_cols) /
                                above(times[0], attend_overhead);
  profile.kv_read_bytes_per_us =
      static_cast<double>(kDecodeKeys * format.row_bytes()) / above(times[1], attend_overhead);
  profile.merge_bytes_per_us = static_cast<double>(query_rows * shape.partial_row_bytes()) /
                               above(times[4], 2 * op_overhead);
  profile.pack_bytes_per_us =
      static_cast<double>(kPrefillKeys * format.row_bytes()) / above(times[5], op_overhead);
  profile.linear_us_per_row = times[6] * shape.layers / static_cast<double>(kLinearRows);
  profile.hop_overhead_us = link_times[0];
  profile.link_latency_us = link_times[1];
  profile.link_bytes_per_us = 1 / link_times[2];
  profile.overlap = -link_times[3];
  profile.collective_overhead_us = link_times[4];
  profile.collective_bytes_per_us = 1 / link_times[5];
  return profile;
}

}  // namespace annulus::parallel
