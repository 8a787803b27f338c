// SPDX-License-Identifier: Apache-2.0
#include "parallel/ring_policy.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "kernels/core/check.h"
#include "kernels/core/math.h"

namespace annulus::parallel {

using kernels::ceil_div;
namespace {

constexpr int64_t kUncut = std::numeric_limits<int64_t>::max();
// Prompts are shorter; a chunk of this length ends every search.
constexpr int64_t kLargestChunk = int64_t{1} << 31;

double real(int64_t x) {
  return static_cast<double>(x);
}
double rate(double per_us) {
  return std::max(per_us, 1e-9);
}

// (query, key) pairs under the causal mask.
double pairs(const Load& load) {
  return real(load.n_new) * (real(load.n_cached) + (real(load.n_new) + 1) / 2);
}

// Rows that one rank, the fullest, holds or sends in one layer.
struct Rows {
  int64_t q = 0;      // new rows
  int64_t q_all = 0;  // of all ranks
  int64_t kv = 0;
  int64_t small = 0;  // of q_all: rows of items with fewer rows than ranks
};

Rows rows_of(const PolicyInput& in, std::span<const Load> items) {
  Rows rows;
  for (const Load& load : items) {
    rows.q_all += load.n_new;
    rows.kv += ceil_div(load.n_new + load.n_cached, in.cp);
    if (load.n_new < in.cp) {
      rows.small += load.n_new;
    } else {
      rows.q += ceil_div(load.n_new, in.cp);
    }
  }
  // Owners of decode rows are spread over the ranks (decode bases), whoever has them.
  rows.q += ceil_div(rows.small, in.cp);
  return rows;
}

double flop_us(const PolicyInput& in, double query_key_pairs) {
  return 4.0 * in.shape.heads * in.shape.head_dim * query_key_pairs /
         rate(in.profile.attend_flops_per_us);
}

double read_us(const PolicyInput& in, int64_t kv_rows) {
  return real(kv_rows * in.shape.kv_row_bytes()) / rate(in.profile.kv_read_bytes_per_us);
}

// Attention of one layer on one rank, without the overhead of calls.
double work_us(const PolicyInput& in, std::span<const Load> items, Variant variant,
               int32_t blocks) {
  const double n = in.cp;
  double us = 0;
  std::vector<double> lone_rows;  // pass-KV: a row of a small item meets all KV on its owner
  for (const Load& load : items) {
    const int64_t total = load.n_new + load.n_cached;
    const bool small = load.n_new < in.cp;
    if (variant == Variant::kPassKv && small) {
      const double row = std::max(flop_us(in, pairs(load)) / real(load.n_new), read_us(in, total));
      lone_rows.insert(lone_rows.end(), static_cast<size_t>(load.n_new), row);
      continue;
    }
    // How often a rank reads a share of this item's KV: once for each set of rows that meets it.
    const int64_t reads = small ? load.n_new : int64_t{in.cp} * blocks;
    const double fullest = variant == Variant::kPassKv
                               ? real(ceil_div(load.n_new, in.cp) * in.cp) / real(load.n_new)
                               : 1.0;
    us += std::max(flop_us(in, pairs(load)) * fullest / n,
                   read_us(in, total) / n * real(std::min(reads, load.n_new)));
  }
  // The fullest rank has ceil(rows / N) of them; which, is not known here: the dearest.
  const auto share =
      static_cast<std::ptrdiff_t>(ceil_div(static_cast<int64_t>(lone_rows.size()), int64_t{in.cp}));
  std::partial_sort(lone_rows.begin(), lone_rows.begin() + share, lone_rows.end(),
                    std::greater<>());
  return std::accumulate(lone_rows.begin(), lone_rows.begin() + share, us);
}

double flight_us(const PolicyInput& in, int64_t bytes) {
  return in.profile.link_latency_us + real(bytes) / rate(in.profile.link_bytes_per_us);
}

// `calls` of them, which send these bytes together.
double collectives_us(const PolicyInput& in, int32_t calls, int64_t bytes) {
  return calls * in.profile.collective_overhead_us +
         real(bytes) / rate(in.profile.collective_bytes_per_us);
}

// Bytes for one row of each rank in a block of pass-Q or gather-Q: q rows in flight, partials made
// for all ranks and partials come back from all ranks.
int64_t block_row_bytes(const PolicyInput& in, Variant variant) {
  const int64_t q_rows = variant == Variant::kPassQ ? 2 : in.cp;
  return q_rows * in.shape.q_row_bytes() + 2 * in.cp * in.shape.partial_row_bytes();
}

int64_t pass_kv_workspace(const PolicyInput& in, int64_t kv_rows) {
  return 3 * kv_rows * in.shape.kv_row_bytes();
}

struct LayerCost {
  double attend = 0, exposed = 0;
  int64_t bytes = 0;
  double visit = 0, flight = 0;  // of the ring
};

LayerCost pass_kv(const PolicyInput& in, std::span<const Load> items, const Rows& rows) {
  const MachineProfile& m = in.profile;
  const int64_t payload = rows.kv * in.shape.kv_row_bytes(), hops = in.cp - 1;
  LayerCost cost;
  cost.attend = work_us(in, items, Variant::kPassKv, 1) + in.cp * m.attend_overhead_us;
  cost.visit = cost.attend / in.cp;
  if (hops == 0) return cost;
  cost.flight = flight_us(in, payload);
  cost.attend += m.op_overhead_us + real(payload) / rate(m.pack_bytes_per_us);
  cost.exposed = real(hops) * exposed_hop_us(m, cost.flight, cost.visit);
  cost.bytes = hops * payload;
  return cost;
}

// pass-Q and gather-Q: the queries go to the KV, partials come back.
LayerCost pass_q(const PolicyInput& in, std::span<const Load> items, const Rows& rows,
                 Variant variant, int32_t blocks) {
  const MachineProfile& m = in.profile;
  const bool ring = variant == Variant::kPassQ;
  const int64_t hops = in.cp - 1, block_rows = ceil_div(rows.q, blocks);
  // A rank forwards, and returns partials for, no more rows than the others have.
  const int64_t foreign = std::min(hops * rows.q, rows.q_all);
  const int64_t visits = std::min<int64_t>(in.cp, rows.q_all);
  LayerCost cost;
  cost.attend = work_us(in, items, variant, blocks) + real(visits * blocks) * m.attend_overhead_us;
  cost.visit = cost.attend / (in.cp * blocks);
  if (hops == 0) return cost;
  if (ring) {
    cost.flight = flight_us(in, block_rows * in.shape.q_row_bytes());
    cost.exposed = real(hops * blocks) * exposed_hop_us(m, cost.flight, cost.visit);
  } else {
    cost.exposed = collectives_us(in, blocks, foreign * in.shape.q_row_bytes());
  }
  cost.exposed += collectives_us(in, blocks, foreign * in.shape.partial_row_bytes());
  // A partial of each other rank is cleared before its visit, and one is merged when it returns.
  cost.attend += real(2 * (visits - 1) * blocks) * m.op_overhead_us +
                 real(hops * rows.q * in.shape.partial_row_bytes()) / rate(m.merge_bytes_per_us);
  cost.bytes = foreign * (in.shape.q_row_bytes() + in.shape.partial_row_bytes());
  return cost;
}

LayerCost layer_cost(const PolicyInput& in, std::span<const Load> items, const Rows& rows,
                     Variant variant, int32_t blocks) {
  return variant == Variant::kPassKv ? pass_kv(in, items, rows)
                                     : pass_q(in, items, rows, variant, blocks);
}

Prediction predict_one(const PolicyInput& in, std::span<const Load> items, const Rows& rows,
                       Variant variant) {
  Prediction p;
  p.variant = variant;
  if (items.empty()) return p;
  if (in.cp > 1 && variant == Variant::kPassKv) {
    p.workspace_bytes = pass_kv_workspace(in, rows.kv);
  } else if (in.cp > 1) {
    const int64_t block_rows = std::min(rows_per_block(in, variant, rows.kv), rows.q);
    p.blocks = static_cast<int32_t>(ceil_div(rows.q, block_rows));
    p.workspace_bytes = block_rows * block_row_bytes(in, variant);
  }
  p.fits = p.workspace_bytes <= in.workspace_limit_bytes;
  const LayerCost layer = layer_cost(in, items, rows, variant, p.blocks);
  p.attend_us = layer.attend * in.shape.layers;
  p.exposed_us = layer.exposed * in.shape.layers;
  p.us = p.attend_us + p.exposed_us;
  p.bytes_sent = layer.bytes * in.shape.layers;
  return p;
}

// Where one rank has everything, all variants are one.
Variant best(const PolicyInput& in, const std::array<Prediction, kVariants>& predictions,
             bool without_pass_kv = false) {
  if (in.cp == 1) return Variant::kPassKv;
  const Prediction* found = nullptr;
  // NOLINTNEXTLINE(clang-analyzer-core.NullDereference): it loses track of std::array.
  for (const Prediction& p : predictions) {
    if (without_pass_kv && p.variant == Variant::kPassKv) continue;
    const auto better = [&](const Prediction& q) {
      if (p.fits != q.fits) return p.fits;
      return p.fits ? p.us < q.us : p.workspace_bytes < q.workspace_bytes;
    };
    if (found == nullptr || better(*found)) found = &p;
  }
  ANNULUS_CHECK(found != nullptr, "no variant of ", predictions.size());
  return found->variant;
}

double miss_rate(std::span<const Load> items, const Group& group) {
  Load sum;
  for (const int32_t i : group.items) {
    sum.n_new += items[static_cast<size_t>(i)].n_new;
    sum.n_cached += items[static_cast<size_t>(i)].n_cached;
  }
  return sum.miss_rate();
}

// Sends the longest pass-KV items to their next best variant until the rest fit together.
void make_fit(const PolicyInput& in, std::span<const Load> items, std::vector<Variant>& choice) {
  std::vector<size_t> longest;
  int64_t kv_rows = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    if (choice[i] != Variant::kPassKv) continue;
    longest.push_back(i);
    kv_rows += rows_of(in, items.subspan(i, 1)).kv;
  }
  const auto total = [&](size_t i) { return items[i].n_new + items[i].n_cached; };
  std::stable_sort(longest.begin(), longest.end(),
                   [&](size_t a, size_t b) { return total(a) > total(b); });
  for (const size_t i : longest) {
    if (pass_kv_workspace(in, kv_rows) <= in.workspace_limit_bytes) return;
    choice[i] = best(in, predict(in, items.subspan(i, 1)), true);
    kv_rows -= rows_of(in, items.subspan(i, 1)).kv;
  }
}

void check(const PolicyInput& in, std::span<const Load> items) {
  ANNULUS_CHECK(in.cp >= 1, "cp ", in.cp);
  for (const Load& load : items) {
    ANNULUS_CHECK(load.n_new >= 1 && load.n_cached >= 0, "new ", load.n_new, " cached ",
                  load.n_cached);
  }
}

// Eq. 2 of the paper: the chunk from which pass-KV hides its hops.
double paper_chunk(const PolicyInput& in) {
  const double element = real(kernels::size_bytes(in.shape.dtype));
  return in.cp * in.profile.attend_flops_per_us * in.shape.kv_heads * element /
         (2.0 * in.shape.heads * rate(in.profile.link_bytes_per_us));
}

}  // namespace

double exposed_hop_us(const MachineProfile& profile, double flight_us, double visit_us) {
  const double beside = profile.overlap * flight_us;
  return profile.hop_overhead_us + flight_us - beside + std::max(0.0, beside - visit_us);
}

std::array<Prediction, kVariants> predict(const PolicyInput& input, std::span<const Load> items) {
  check(input, items);
  const Rows rows = rows_of(input, items);
  return {predict_one(input, items, rows, Variant::kPassKv),
          predict_one(input, items, rows, Variant::kPassQ),
          predict_one(input, items, rows, Variant::kGatherQ)};
}

Variant choose(const PolicyInput& input, std::span<const Load> items) {
  return best(input, predict(input, items));
}

std::vector<Group> make_groups(const PolicyInput& input, std::span<const Load> items,
                               const Variant* forced) {
  check(input, items);
  std::vector<Variant> choice;
  for (size_t i = 0; i < items.size(); ++i) {
    choice.push_back(forced != nullptr ? *forced : choose(input, items.subspan(i, 1)));
  }
  if (forced == nullptr && input.cp > 1) make_fit(input, items, choice);
  std::vector<Group> groups;
  for (int32_t v = 0; v < kVariants; ++v) {
    Group group{static_cast<Variant>(v), {}};
    for (size_t i = 0; i < items.size(); ++i) {
      if (choice[i] == group.variant) group.items.push_back(static_cast<int32_t>(i));
    }
    if (!group.items.empty()) groups.push_back(std::move(group));
  }
  std::stable_sort(groups.begin(), groups.end(), [&](const Group& a, const Group& b) {
    return miss_rate(items, a) > miss_rate(items, b);
  });
  return groups;
}

int64_t rows_per_block(const PolicyInput& input, Variant variant, int64_t largest_kv_rows) {
  ANNULUS_CHECK(largest_kv_rows >= 0, largest_kv_rows);
  if (variant == Variant::kPassKv || input.cp == 1) return kUncut;
  const int64_t row_bytes = std::max<int64_t>(block_row_bytes(input, variant), 1);
  return std::max<int64_t>(input.workspace_limit_bytes / row_bytes, 1);
}

int64_t smallest_efficient_chunk(const PolicyInput& input, int64_t cached, int64_t least) {
  const int64_t unit = int64_t{2} * input.cp;
  const int64_t first = std::max<int64_t>(ceil_div(least, unit), 1);
  if (input.cp == 1) return first * unit;
  // In units of 2 * cp rows: the first whose visits are as long as its flights. A visit grows
  // faster with the chunk than a flight does, so the search is for one boundary.
  const auto boundary = [&](Variant variant) {
    const auto hides = [&](int64_t units) {
      const Load load = {units * unit, cached};
      const std::span<const Load> items(&load, 1);
      const Rows rows = rows_of(input, items);
      const Prediction p = predict_one(input, items, rows, variant);
      const LayerCost layer = layer_cost(input, items, rows, variant, p.blocks);
      return layer.visit >= layer.flight;
    };
    int64_t low = first, high = first;
    while (!hides(high) && high * unit < kLargestChunk) {
      low = high + 1;
      high *= 2;
    }
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (hides(middle)) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return high * unit;
  };
  int64_t chunk = 0;
  const int64_t pass_kv_chunk = boundary(Variant::kPassKv);
  for (const auto& [variant, n] : {std::pair(Variant::kPassKv, pass_kv_chunk),
                                   std::pair(Variant::kPassQ, boundary(Variant::kPassQ))}) {
    const Load load = {n, cached};
    if (choose(input, {&load, 1}) == variant) chunk = chunk == 0 ? n : std::min(chunk, n);
  }
  return chunk == 0 ? pass_kv_chunk : chunk;
}

Variant paper_algorithm_1(const PolicyInput& input, const Load& load) {
  const double kv_share = 2.0 * input.shape.kv_heads / input.shape.heads;
  const bool pass_kv = real(load.n_new) >= paper_chunk(input) || load.miss_rate() >= kv_share;
  return pass_kv ? Variant::kPassKv : Variant::kPassQ;
}

Variant paper_algorithm_5(const PolicyInput& input, const Load& load) {
  const double element = real(kernels::size_bytes(input.shape.dtype));
  const double all_to_all = 4.0 * real(load.n_new) * input.profile.link_bytes_per_us /
                            (input.cp * rate(input.profile.attend_flops_per_us) * element);
  const double kv_share = 2.0 * input.shape.kv_heads / input.shape.heads - all_to_all;
  const bool pass_kv = real(load.n_new) >= paper_chunk(input) || load.miss_rate() >= kv_share;
  return pass_kv ? Variant::kPassKv : Variant::kPassQ;
}

}  // namespace annulus::parallel
