// SPDX-License-Identifier: Apache-2.0
#include "bench/simulate_cost.h"

#include <algorithm>
#include <cmath>

namespace annulus::bench {
namespace {

// Per microsecond.
double flops(double tflops) {
  return tflops * 1e6;
}
double bytes_of(double gb_s) {
  return gb_s * 1e3;
}

struct Run {
  int64_t first, count;
};

// The longest run of consecutive positions from `at`: ascending, so its last one says it all.
int64_t run_length(std::span<const int32_t> p, size_t at) {
  size_t low = 1, step = 1;
  const auto consecutive = [&](size_t n) {
    return at + n <= p.size() && p[at + n - 1] - p[at] == static_cast<int32_t>(n - 1);
  };
  while (consecutive(low + step)) {
    low += step;
    step *= 2;
  }
  for (; step > 0; step /= 2) {
    if (consecutive(low + step)) low += step;
  }
  return static_cast<int64_t>(low);
}

double pairs(const Run& q, const Run& k) {
  // Query q.first + i sees clamp(q.first + i - k.first + 1, 0, k.count) keys.
  const int64_t none = std::clamp<int64_t>(k.first - q.first, 0, q.count);
  const int64_t all_from = std::clamp<int64_t>(k.first + k.count - 1 - q.first, none, q.count);
  const double some = static_cast<double>(all_from - none);
  const double least = static_cast<double>(q.first + none - k.first + 1);
  return some * least + some * (some - 1) / 2 +
         static_cast<double>(q.count - all_from) * static_cast<double>(k.count);
}

}  // namespace

double visible_pairs(std::span<const int32_t> queries, std::span<const int32_t> keys) {
  double total = 0;
  for (size_t i = 0; i < queries.size();) {
    const Run q{queries[i], run_length(queries, i)};
    i += static_cast<size_t>(q.count);
    if (q.count == 1) {
      total += static_cast<double>(
          std::upper_bound(keys.begin(), keys.end(), static_cast<int32_t>(q.first)) - keys.begin());
      continue;
    }
    for (size_t j = 0; j < keys.size();) {
      const Run k{keys[j], run_length(keys, j)};
      if (k.first >= q.first + q.count) break;
      total += pairs(q, k);
      j += static_cast<size_t>(k.count);
    }
  }
  return total;
}

double Cost::matmul_us(double rows, double n, double k, double bytes_per_weight) const {
  const double rate = bytes_per_weight < 2 ? m_.gemm_8bit_tflops : m_.gemm_16bit_tflops;
  const double read = n * k * bytes_per_weight / bytes_of(m_.weight_read_gb_s) +
                      rows * (n + k) * m_.activation_bytes / bytes_of(m_.rows_gb_s);
  return std::max(2 * rows * n * k / flops(rate), read) + m_.op_us + launch(m_.op_launch_us);
}

double Cost::attend_us(double flop, double bytes) const {
  return std::max(flop / flops(m_.attend_tflops), bytes / bytes_of(m_.kv_read_gb_s)) +
         m_.attend_us + launch(m_.op_launch_us);
}

double Cost::rows_us(double activations, double bytes) const {
  return (activations * m_.activation_bytes + bytes) / bytes_of(m_.rows_gb_s) + m_.op_us +
         launch(m_.op_launch_us);
}

double Cost::all_reduce_us(double activations) const {
  const double n = topology_.tp;
  return 2 * (n - 1) / n * activations * m_.activation_bytes / bytes_of(m_.all_reduce_gb_s) +
         m_.all_reduce_us + launch(m_.op_launch_us);
}

double Cost::tp_gather_us(double bytes) const {
  return (topology_.tp - 1) * bytes / bytes_of(m_.all_reduce_gb_s) + m_.all_reduce_us +
         launch(m_.op_launch_us);
}

double Cost::hop_us() const {
  return m_.hop_us + launch(m_.hop_launch_us);
}

bool Cost::same_node(int32_t a, int32_t b) const {
  const auto node = [&](int32_t rank) {
    return rank * topology_.tp / static_cast<int32_t>(m_.gpus_per_node);
  };
  return node(a) == node(b);
}

double Cost::wire_us(double bytes, int32_t from, int32_t to) const {
  if (same_node(from, to)) return m_.local_us + bytes / bytes_of(m_.local_gb_s);
  const double on_each_nic =
      std::max(1.0, std::min<double>(topology_.tp, m_.gpus_per_node) / m_.nics_per_node);
  return m_.net_us + bytes * on_each_nic / bytes_of(m_.net_gb_s);
}

double Cost::collective_us() const {
  if (topology_.cp == 1) return 0;
  return m_.collective_us + launch(m_.collective_launch_us) +
         m_.collective_peer_us * (topology_.cp - 1);
}

double Cost::collective_wire_us(double local_bytes, double net_bytes) const {
  const double on_each_nic =
      std::max(1.0, std::min<double>(topology_.world(), m_.gpus_per_node) / m_.nics_per_node);
  return std::max(local_bytes / bytes_of(m_.local_gb_s),
                  net_bytes * on_each_nic / bytes_of(m_.collective_gb_s));
}

parallel::MachineProfile Cost::profile(double linear_us_per_row) const {
  constexpr double kBytes = 1e6;
  const double rows = bytes_of(m_.rows_gb_s), op = m_.op_us + m_.op_launch_us;
  parallel::MachineProfile p;
  p.attend_flops_per_us = flops(m_.attend_tflops);
  p.kv_read_bytes_per_us = bytes_of(m_.kv_read_gb_s);
  p.attend_overhead_us = m_.attend_us + m_.op_launch_us;
  p.op_overhead_us = op;
  // A merge moves three bytes for each of a partial, clearing it (fp32) writes it once.
  p.merge_bytes_per_us = rows / (3 + 4 / m_.partial_bytes);
  p.pack_bytes_per_us = rows / 2;
  // The slowest hop of the ring: the one that leaves the node, where any does.
  const int32_t last = topology_.cp - 1;
  const int32_t far = same_node(0, last) ? 0 : last;
  p.hop_overhead_us = m_.hop_us + m_.hop_launch_us;
  p.link_latency_us = wire_us(0, 0, far);
  p.link_bytes_per_us = kBytes / (wire_us(kBytes, 0, far) - p.link_latency_us);
  p.overlap = m_.overlap;
  p.collective_overhead_us = collective_us();
  // The ranks with the fewest others on their node are those at the ends.
  double local = 0;
  for (int32_t r = 0; r < last; ++r) local += same_node(r, last) ? 1 : 0;
  const double wire = collective_wire_us(local * kBytes, (last - local) * kBytes);
  p.collective_bytes_per_us = last > 0 ? last * kBytes / wire : kBytes;
  p.linear_us_per_row = linear_us_per_row;
  return p;
}

}  // namespace annulus::bench
