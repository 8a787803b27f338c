// SPDX-License-Identifier: Apache-2.0
#include "parallel/rank.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/attention.h"
#include "kernels/ops.h"
#include "parallel/kv_store.h"
#include "parallel/measure.h"
#include "parallel/model/llama.h"
#include "parallel/model/rope.h"
#include "parallel/ring_attention.h"
#include "parallel/sampler.h"

namespace annulus::parallel {
namespace {

using kernels::CpuQueue;
using kernels::matrix;
using kernels::Phase;
using kernels::Tensor;
using Clock = std::chrono::steady_clock;

constexpr int32_t kMaxCp = 256;      // hops a message tag can tell apart
constexpr int64_t kLogitRows = 64;   // rows whose logits are held at once
constexpr size_t kSampledSteps = 4;  // steps whose sampled ids may be named by a later plan

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

size_t index(int64_t i) {
  return static_cast<size_t>(i);
}

kernels::KvFormat kv_format(const AttentionShape& shape, int32_t page_tokens) {
  return {shape.dtype, shape.kv_heads, shape.head_dim, page_tokens};
}

void apply_to_store(KvStore& store, const Op& op) {
  switch (op.kind) {
    case Op::Kind::kAdmit: store.admit(op.slot); return;
    case Op::Kind::kSampling:
    case Op::Kind::kRebase: return;
    case Op::Kind::kTruncate: store.truncate(op.slot, op.length); return;
    case Op::Kind::kFork: store.fork(op.from, op.slot, op.length); return;
    case Op::Kind::kRelease: store.release(op.slot); return;
  }
}

// A wanted position that this rank computes.
struct OwnWanted {
  int32_t item = 0;
  int64_t row = 0;  // of this rank's rows of the step
  const Wanted* wanted = nullptr;
};

// This rank's rows of a step, groups and items one after the other.
struct StepRows {
  std::vector<int32_t> ids, positions;
  std::vector<int64_t> slot_rows;  // where each row's KV goes
  std::vector<OwnWanted> wanted;   // by item
};

}  // namespace

AttentionShape attention_shape(const LlamaConfig& config, const Topology& topology,
                               kernels::Precision precision) {
  return {config.heads / topology.tp, config.kv_heads / topology.tp, config.head_dim, config.layers,
          precision == kernels::Precision::kF32 ? kernels::DType::kF32 : kernels::DType::kBF16};
}

struct Rank::Impl {
  Impl(const LlamaConfig& c, std::shared_ptr<const LlamaWeights> w, Groups<CpuQueue> g, Topology t,
       int32_t r, int64_t e, const RankOptions& o, int64_t capacity)
      : config(c),
        weights(std::move(w)),
        groups(g),
        topology(t),
        world_rank(r),
        epoch(e),
        queue(o.threads, o.isa),
        shape(attention_shape(c, t, o.precision)),
        store(kv_format(shape, o.page_tokens), c.layers, capacity),
        frequencies(rope_frequencies(c)) {
    state.cp = t.cp;
    policy = {shape, t.cp, {}, o.workspace_limit_bytes};
    queue.phases().enable(o.profile);
    queue.set_poll([this] {
      groups.cp->progress();
      if (topology.tp > 1) groups.tp->progress();
    });
  }

  int32_t cp_rank() const { return topology.cp_rank(world_rank); }
  absl::Status check(const StepPlan& plan) const;
  int32_t token_of(const Item& item) const;
  StepRows rows_of(const StepPlan& plan);
  void attend(int32_t layer, std::span<const GroupLayout> layouts, const StepRows& rows,
              kernels::ConstTensor q, kernels::ConstTensor k, kernels::ConstTensor v, Tensor out,
              StepResult& result);
  void answer_wanted(const StepPlan& plan, const StepRows& rows, Tensor x, StepResult& result);
  void share_sampled(const StepPlan& plan, const StepResult& result);
  void reached(int32_t at_layer, int32_t at_hop);

  LlamaConfig config;
  std::shared_ptr<const LlamaWeights> weights;
  Groups<CpuQueue> groups;
  Topology topology;
  int32_t world_rank;
  int64_t epoch;
  CpuQueue queue;
  AttentionShape shape;
  PolicyInput policy;
  KvStore store;
  std::vector<double> frequencies;
  ShardState state;
  PositionLists position_lists;                                  // of other ranks' rows
  std::deque<std::pair<int64_t, std::vector<int32_t>>> sampled;  // step, ids by row
  int64_t workspace_peak = 0;                                    // of attention in this step, bytes
  std::atomic<int64_t> step{0}, progress{0};
  std::atomic<int32_t> layer{0}, hop{0};
  Clock::duration patience{};  // of this step, without progress
};

absl::StatusOr<std::unique_ptr<Rank>> Rank::create(const LlamaConfig& config,
                                                   std::shared_ptr<const LlamaWeights> weights,
                                                   Groups<CpuQueue> groups, Topology topology,
                                                   int32_t world_rank, int64_t epoch,
                                                   const RankOptions& options) {
  if (const absl::Status tp = check_tp(config, topology.tp); !tp.ok()) return tp;
  if (topology.cp > kMaxCp) {
    return absl::InvalidArgumentError(
        absl::StrCat("context parallelism ", topology.cp, " is above ", kMaxCp));
  }
  const int64_t context = options.context > 0 ? options.context : config.context;
  int64_t capacity = options.kv_capacity_rows;
  if (capacity <= 0) {
    // A context spread over the CP ranks, an eighth for uneven rows and other sequences, and some
    // open pages.
    capacity = context / topology.cp + context / (8 * topology.cp) + 64 * options.page_tokens;
  }
  try {
    return std::unique_ptr<Rank>(new Rank(std::make_unique<Impl>(
        config, std::move(weights), groups, topology, world_rank, epoch, options, capacity)));
  } catch (const kernels::DeviceError& error) {
    return absl::ResourceExhaustedError(error.what());
  }
}

Rank::Rank(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Rank::~Rank() = default;

MachineProfile Rank::measure() {
  const Clock::time_point deadline = Clock::now() + std::chrono::seconds(60);
  for (auto* group : {impl_->groups.tp, impl_->groups.cp, impl_->groups.world})
    group->set_deadline(deadline);
  impl_->policy.profile =
      measure_machine(impl_->queue, impl_->groups, impl_->shape, *impl_->weights);
  return impl_->policy.profile;
}

Rank::Breadcrumb Rank::breadcrumb() const {
  return {impl_->step.load(), impl_->progress.load(), impl_->layer.load(), impl_->hop.load()};
}
int64_t Rank::kv_capacity_rows() const {
  return impl_->store.capacity_rows();
}
const ShardState& Rank::state() const {
  return impl_->state;
}

// A breadcrumb, and a new deadline: a peer that is slow is not gone while this rank moves on.
void Rank::Impl::reached(int32_t at_layer, int32_t at_hop) {
  layer.store(at_layer, std::memory_order_relaxed);
  hop.store(at_hop, std::memory_order_relaxed);
  progress.fetch_add(1, std::memory_order_relaxed);
  const Clock::time_point deadline = Clock::now() + patience;
  groups.cp->set_deadline(deadline);
  groups.tp->set_deadline(deadline);
}

// What validate() cannot know beside what it does: this epoch, the vocabulary, the sampled ids that
// are still here. Room for the KV is checked as it is taken.
absl::Status Rank::Impl::check(const StepPlan& plan) const {
  const auto bad = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("step ", plan.step, ": ", parts...));
  };
  if (plan.epoch != epoch) return bad("a plan of epoch ", plan.epoch, " in epoch ", epoch);
  if (absl::Status valid = validate(state, plan, cp_rank()); !valid.ok()) return valid;
  for (const Item& item : plan.items) {
    for (const int32_t token : item.tokens) {
      if (token >= config.vocab) return bad("token id ", token, " of ", config.vocab);
    }
    for (const Wanted& wanted : item.wanted) {
      if (wanted.target >= config.vocab) return bad("target ", wanted.target, " of ", config.vocab);
    }
    if (item.sampled.step < 0) continue;
    const auto step_is = [&](const auto& entry) { return entry.first == item.sampled.step; };
    const auto found = std::find_if(sampled.begin(), sampled.end(), step_is);
    if (found == sampled.end()) return bad("no ids sampled in step ", item.sampled.step);
    if (index(item.sampled.row) >= found->second.size()) {
      return bad("row ", item.sampled.row, " of the ", found->second.size(), " sampled in step ",
                 item.sampled.step);
    }
  }
  return absl::OkStatus();
}

int32_t Rank::Impl::token_of(const Item& item) const {
  for (const auto& [at, ids] : sampled) {
    if (at != item.sampled.step) continue;
    ANNULUS_CHECK(item.sampled.row >= 0 && index(item.sampled.row) < ids.size(), "row ",
                  item.sampled.row);
    return ids[index(item.sampled.row)];
  }
  ANNULUS_CHECK(false, "sampled ids of step ", item.sampled.step, " are gone");
  return 0;
}

StepRows Rank::Impl::rows_of(const StepPlan& plan) {
  StepRows rows;
  for (const Group& group : plan.groups) {
    for (const int32_t i : group.items) {
      const Item& item = plan.items[index(i)];
      const std::vector<int32_t> mine = positions(shard_item(state, item)[index(cp_rank())]);
      const int64_t first = static_cast<int64_t>(rows.positions.size());
      if (item.sampled.step < 0) {
        ANNULUS_CHECK(item.tokens.size() == mine.size(), "item ", i, ": ", item.tokens.size(),
                      " tokens for ", mine.size(), " rows");
        rows.ids.insert(rows.ids.end(), item.tokens.begin(), item.tokens.end());
      } else if (!mine.empty()) {
        rows.ids.push_back(token_of(item));
      }
      const std::vector<int64_t> where = store.append(item.slot, mine);
      rows.slot_rows.insert(rows.slot_rows.end(), where.begin(), where.end());
      rows.positions.insert(rows.positions.end(), mine.begin(), mine.end());
      for (const Wanted& wanted : item.wanted) {
        const auto at = std::lower_bound(mine.begin(), mine.end(), wanted.position);
        if (at != mine.end() && *at == wanted.position) {
          rows.wanted.push_back({i, first + (at - mine.begin()), &wanted});
        }
      }
    }
  }
  std::stable_sort(rows.wanted.begin(), rows.wanted.end(),
                   [](const OwnWanted& a, const OwnWanted& b) { return a.item < b.item; });
  return rows;
}

void Rank::Impl::attend(int32_t l, std::span<const GroupLayout> layouts, const StepRows& rows,
                        kernels::ConstTensor q, kernels::ConstTensor k, kernels::ConstTensor v,
                        Tensor out, StepResult& result) {
  reached(l, 0);
  const CpuQueue::Mark mark(queue);
  queue.phases().enter(Phase::kKvAppend);
  kernels::kv_append(queue, k, v, store.layer(l), rows.slot_rows, store.format());
  queue.phases().enter(Phase::kAttention);
  const Tensor queries = {
      queue.scratch<std::byte>(q.rows * q.cols * kernels::size_bytes(shape.dtype)), shape.dtype,
      q.rows, q.cols, q.cols};
  kernels::convert(queue, queries, q);
  const kernels::Partial all = {static_cast<float*>(out.data),
                                queue.scratch<float>(q.rows * shape.heads), q.rows, shape.heads,
                                shape.head_dim};
  const float scale = 1 / std::sqrt(static_cast<float>(shape.head_dim));
  AttentionCall<CpuQueue> call{*groups.cp, store, l, scale, {step.load(), l, 0, 0, ""}};
  call.on_visit = [&](int32_t at_hop) { reached(l, at_hop); };
  for (size_t g = 0; g < layouts.size(); ++g) {
    const GroupLayout& group = layouts[g];
    const int64_t mine = group.q_rows[index(cp_rank())];
    const double waited = groups.cp->waited_us();
    const int64_t sent = groups.cp->bytes_sent();
    const Clock::time_point start = Clock::now();
    ring_attend(queue, group, call, queries.slice_rows(group.row_first, mine),
                all.slice(group.row_first, mine));
    const double exposed = groups.cp->waited_us() - waited;
    GroupReport& report = result.groups[g];
    report.bytes_sent += groups.cp->bytes_sent() - sent;
    report.exposed_us += static_cast<float>(exposed);
    report.attend_us += static_cast<float>(us_since(start) - exposed);
  }
  workspace_peak = std::max(workspace_peak, call.workspace_bytes);
}

// Logits of the wanted rows, gathered over the vocabulary's shards; every rank of the column
// answers alike.
void Rank::Impl::answer_wanted(const StepPlan& plan, const StepRows& rows, Tensor x,
                               StepResult& result) {
  const int64_t vocab = config.vocab, part = vocab / topology.tp;
  OpId op{step.load(), config.layers, 0, 0, "logits"};
  for (size_t begin = 0; begin < rows.wanted.size(); begin += kLogitRows) {
    reached(config.layers, 0);
    const CpuQueue::Mark mark(queue);
    const kernels::InPhase phase(queue, Phase::kHead);
    const std::span<const OwnWanted> block =
        std::span(rows.wanted)
            .subspan(begin, std::min(index(kLogitRows), rows.wanted.size() - begin));
    const int64_t n = static_cast<int64_t>(block.size());
    std::vector<int32_t> from;
    for (const OwnWanted& w : block) from.push_back(static_cast<int32_t>(w.row));
    const Tensor picked = matrix(queue.scratch<float>(n * x.cols), n, x.cols);
    kernels::gather_rows(queue, picked, x, from);
    const Tensor own = matrix(queue.scratch<float>(n * part), n, part);
    logits(queue, config, *weights, picked, own);
    std::span<const float> all(own.row<float>(0), index(n * part));
    if (topology.tp > 1) {
      const std::span<float> gathered(queue.scratch<float>(n * vocab), index(n * vocab));
      const std::vector<int64_t> bytes(index(topology.tp), n * part * 4);
      groups.tp->all_gather(queue, std::as_bytes(all), std::as_writable_bytes(gathered), bytes, op);
      ++op.sequence;
      all = gathered;
    }
    queue.phases().enter(Phase::kSample);
    std::vector<WantedResult> answers(block.size());
    queue.parallel_for(n, [&](int64_t r, int) {
      // A row lies in tp pieces, one a rank.
      std::vector<float> joined;
      std::span<const float> row = all.subspan(index(r * part), index(part));
      if (topology.tp > 1) {
        joined.reserve(index(vocab));
        for (int32_t t = 0; t < topology.tp; ++t) {
          const auto piece = all.subspan(index((t * n + r) * part), index(part));
          joined.insert(joined.end(), piece.begin(), piece.end());
        }
        row = joined;
      }
      const OwnWanted& w = block[index(r)];
      const SlotShard& slot = state.slots.at(plan.items[index(w.item)].slot);
      answers[index(r)] = answer(row, slot.sampling, w.item, *w.wanted);
    });
    result.wanted.insert(result.wanted.end(), answers.begin(), answers.end());
  }
}

// All ranks learn every sampled id: the next step's owner of a sequence is another rank.
void Rank::Impl::share_sampled(const StepPlan& plan, const StepResult& result) {
  const auto wanted = sampled_rows(plan);
  if (wanted.empty()) return;
  std::vector<int32_t> owners, own;
  std::vector<int64_t> bytes(index(topology.cp), 0);
  for (const auto& [item, position] : wanted) {
    owners.push_back(owner(state, plan.items[index(item)], position));
    bytes[index(owners.back())] += 4;
  }
  for (size_t row = 0; row < wanted.size(); ++row) {
    if (owners[row] != cp_rank()) continue;
    for (const WantedResult& answer : result.wanted) {
      if (answer.item == wanted[row].first && answer.position == wanted[row].second)
        own.push_back(answer.token);
    }
  }
  std::vector<int32_t> all(wanted.size());
  const OpId op{step.load(), config.layers, 0, 0, "sampled ids"};
  groups.cp->all_gather(queue, std::as_bytes(std::span(own)),
                        std::as_writable_bytes(std::span(all)), bytes, op);
  std::vector<size_t> next(index(topology.cp), 0);
  for (int32_t r = 1; r < topology.cp; ++r) {
    next[index(r)] = next[index(r - 1)] + index(bytes[index(r - 1)] / 4);
  }
  std::vector<int32_t> by_row;
  by_row.reserve(owners.size());
  for (const int32_t rank : owners) by_row.push_back(all[next[index(rank)]++]);
  sampled.emplace_back(plan.step, std::move(by_row));
  if (sampled.size() > kSampledSteps) sampled.pop_front();
}

absl::StatusOr<StepResult> Rank::apply(const StepPlan& plan, Clock::time_point deadline) {
  Impl& self = *impl_;
  const Clock::time_point start = Clock::now();
  self.queue.phases().take();
  kernels::set_check_context(absl::StrCat("rank ", self.world_rank, ", step ", plan.step));
  if (absl::Status possible = self.check(plan); !possible.ok()) return possible;
  self.step.store(plan.step);
  self.workspace_peak = 0;
  self.patience = deadline - start;
  self.reached(0, 0);

  for (const Op& op : plan.ops) {
    apply_to_store(self.store, op);
    self.position_lists.apply(op);
  }
  // In place: a step that fails ends the epoch, and the state with it. Who computes what depends on
  // slots' decode bases alone, which items do not change.
  self.state = advance(std::move(self.state), plan);
  const std::vector<GroupLayout> layouts =
      layout_groups(self.state, plan, self.cp_rank(), self.policy, self.position_lists);
  const StepRows rows = self.rows_of(plan);

  StepResult result;
  result.epoch = plan.epoch;
  result.step = plan.step;
  result.world_rank = self.world_rank;
  for (const GroupLayout& layout : layouts) {
    result.groups.push_back({.variant = layout.variant, .formula_bytes = layout.formula_bytes});
  }
  if (!plan.items.empty()) {
    const CpuQueue::Mark mark(self.queue);
    const int64_t n = static_cast<int64_t>(rows.ids.size()), d = self.config.head_dim;
    const Tensor cos_sin = matrix(self.queue.scratch<float>(n * d), n, d);
    fill_cos_sin(self.frequencies, rows.positions, cos_sin.row<float>(0));
    const Tensor x = matrix(self.queue.scratch<float>(n * self.config.dim), n, self.config.dim);
    LlamaHooks hooks;
    hooks.attend = [&](int32_t layer, auto q, auto k, auto v, Tensor out) {
      self.attend(layer, layouts, rows, q, k, v, out, result);
    };
    int32_t sums = 0;
    if (self.topology.tp > 1) {
      hooks.all_reduce = [&](int32_t layer, Tensor sum) {
        self.groups.tp->all_reduce(self.queue, {sum.row<float>(0), index(sum.rows * sum.cols)},
                                   {plan.step, layer, sums++ % 2, 0, "tp sum"});
      };
    }
    forward(self.queue, self.config, *self.weights, self.topology.tp, rows.ids, cos_sin, hooks, x);
    self.answer_wanted(plan, rows, x, result);
  }
  self.share_sampled(plan, result);
  if (self.topology.tp_rank(self.world_rank) != 0) result.wanted.clear();
  result.kv_rows = self.store.rows_used();
  result.kv_bytes = self.store.bytes_used();
  result.workspace_peak_bytes = self.workspace_peak;
  if (self.queue.phases().enabled()) {
    for (const double us : self.queue.phases().take()) {
      result.phase_us.push_back(static_cast<float>(us));
    }
  }
  result.step_us = static_cast<float>(us_since(start));
  return result;
}

}  // namespace annulus::parallel
