// SPDX-License-Identifier: Apache-2.0
#include "bench/simulate_engine.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "bench/simulate_recorder.h"
#include "bench/simulate_workload.h"
#include "kernels/core/math.h"
#include "parallel/model/llama_inl.h"
#include "parallel/rank_inl.h"

namespace annulus::bench {
namespace {

using kernels::VirtualQueue;
using parallel::LlamaConfig;
using parallel::LlamaWeights;
using parallel::Topology;
using parallel::rank_on::RankOn;

std::shared_ptr<const LlamaWeights<VirtualQueue>> weights_of(const SimModel& model, int32_t layers,
                                                             int32_t tp) {
  using Matrix = VirtualQueue::Matrix;
  const LlamaConfig& c = model.config;
  const int64_t q = int64_t{c.heads} / tp * c.head_dim, kv = int64_t{c.kv_heads} / tp * c.head_dim;
  const int64_t ffn = c.ffn / tp;
  VirtualQueue queue;
  kernels::Mirror<VirtualQueue, float> norm(std::vector<float>(static_cast<size_t>(c.dim)));
  norm.sync(queue);
  LlamaWeights<VirtualQueue> weights;
  weights.output_norm = norm;
  for (int32_t l = 0; l < layers; ++l) {
    weights.layers.push_back({norm, norm,
                              Matrix(q + 2 * kv, c.dim, model.attention_weight_bytes, true),
                              Matrix(c.dim, q, model.attention_weight_bytes),
                              Matrix(2 * ffn, c.dim, model.ffn_weight_bytes),
                              Matrix(c.dim, ffn, model.ffn_weight_bytes)});
  }
  weights.head = Matrix(c.vocab / tp, c.dim, model.head_weight_bytes);
  return std::make_shared<const LlamaWeights<VirtualQueue>>(std::move(weights));
}

// Linear layers of one row of a long prefill, all layers, for the scheduler's prices.
double linear_us_per_row(const SimModel& model, const Cost& cost, const Topology& t) {
  constexpr double kRows = 4096;
  const LlamaConfig& c = model.config;
  const double d = c.dim, tp = t.tp, heads = c.heads, kv = c.kv_heads, ffn = c.ffn;
  const auto linear = [&](double n, double k, double bytes) {
    return cost.matmul_us(kRows, n, k, bytes);
  };
  double us = linear((heads + 2 * kv) / tp * c.head_dim, d, model.attention_weight_bytes) +
              linear(d, heads / tp * c.head_dim, model.attention_weight_bytes) +
              linear(2 * ffn / tp, d, model.ffn_weight_bytes) +
              linear(d, ffn / tp, model.ffn_weight_bytes);
  if (t.tp > 1) us += 2 * cost.all_reduce_us(kRows * d);
  return us * c.layers / kRows;
}

// Layers 1 and 2 are equal, whatever the rank: then so are all but the first and the last.
RankTrace fold(std::vector<Section> sections, int32_t layers, int32_t recorded, int32_t cp_rank) {
  RankTrace trace;
  ANNULUS_CHECK(static_cast<int32_t>(sections.size()) == recorded + 1, sections.size(),
                " sections of ", recorded, " layers");
  if (recorded < layers) {
    ANNULUS_CHECK(recorded == kRecordedLayers && sections[1] == sections[2], "cp rank ", cp_rank,
                  ": layers differ");
    sections.erase(sections.begin() + 2);
    trace.repeats = layers - 1;
  }
  trace.sections = std::move(sections);
  return trace;
}

// Traces of all steps are held at once: in each, a ring of the first layer or those between, and of
// the last.
absl::Status check_memory(const std::vector<ScriptStep>& script, Topology t) {
  constexpr double kMostGb = 12, kRecordsOfAVisit = 4;
  double steps = 0;
  for (const ScriptStep& step : script) steps += step.timed ? 1 : 0;
  const double gb = steps * t.cp * t.cp * 2 * kRecordsOfAVisit * sizeof(Record) / 1e9;
  if (gb <= kMostGb) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "TP ", t.tp, " x CP ", t.cp, ": the rings of ", steps, " steps take about ", std::ceil(gb),
      " GB to hold, more than ", kMostGb, "; ask for longer steps or fewer answer tokens"));
}

// What a viewer opens and a disk likes to hold.
absl::Status check_trace(const std::vector<std::vector<RankTrace>>& steps) {
  constexpr size_t kMost = 2'000'000;
  size_t records = 0;
  for (const std::vector<RankTrace>& ranks : steps) {
    for (const RankTrace& rank : ranks) {
      for (size_t s = 0; s < rank.sections.size(); ++s) {
        records += rank.sections[s].records.size() * static_cast<size_t>(s == 1 ? rank.repeats : 1);
      }
    }
  }
  if (records <= kMost) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--trace: ", records, " intervals, more than ",
                                                 kMost, "; ask for fewer ranks or steps"));
}

}  // namespace

std::string variants_text(const std::vector<parallel::Variant>& variants) {
  return absl::StrJoin(variants, " and ", [](std::string* out, parallel::Variant v) {
    absl::StrAppend(out, parallel::name(v));
  });
}

absl::Status check_layout(const SimModel& model, const Machine& machine, Topology t) {
  const auto bad = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("TP ", t.tp, " x CP ", t.cp, ": ", parts...));
  };
  if (t.tp < 1 || t.cp < 1) return bad("both must be at least 1");
  if (int64_t{t.tp} * t.cp > kMostRanks) return bad("more than ", kMostRanks, " ranks");
  if (absl::Status tp = parallel::check_tp(model.config, t.tp); !tp.ok()) return tp;
  const auto node = static_cast<int32_t>(machine.gpus_per_node);
  if (t.tp > node) {
    return bad("a TP group does not fit a node of ", node, " ranks (gpus_per_node of ",
               machine.name, ")");
  }
  if (node % t.tp != 0) {
    return bad("a TP group would lie across nodes of ", node, " ranks (gpus_per_node of ",
               machine.name, ")");
  }
  return absl::OkStatus();
}

double rank_bytes(const SimModel& model, Topology t, const Workload& work) {
  const double tokens = static_cast<double>(work.cached + work.prompt + work.answer) * work.batch;
  return model.weight_bytes(t.tp) + std::ceil(tokens / t.cp) * model.kv_row_bytes(t.tp);
}

double Simulated::ttft_us() const {
  double us = 0;
  for (const SimulatedStep& step : prefill) us += step.times.us;
  return us;
}

double Simulated::attention_us() const {
  double us = 0;
  for (const SimulatedStep& step : prefill) {
    const Shares& mean = step.times.mean;
    us += step.times.us - of(mean, Share::kMatmul) - of(mean, Share::kAllReduce) -
          of(mean, Share::kRows);
  }
  return us;
}

double Simulated::ttit_us() const {
  double us = 0;
  for (const SimulatedStep& step : decode) us += step.times.us;
  return decode.empty() ? 0 : us / static_cast<double>(decode.size());
}

parallel::PolicyInput policy_of(const SimModel& model, const Machine& machine, Topology topology,
                                const Workload& work) {
  const Cost cost(machine, topology);
  parallel::PolicyInput policy;
  policy.shape = parallel::attention_shape(model.config, topology, kernels::Precision::kDefault);
  policy.shape.partial_bytes = static_cast<int32_t>(machine.partial_bytes);
  policy.cp = topology.cp;
  policy.workspace_limit_bytes = work.workspace_limit_bytes;
  policy.profile = cost.profile(linear_us_per_row(model, cost, topology));
  return policy;
}

absl::StatusOr<Simulated> simulate(const SimModel& model, const Machine& machine, Topology topology,
                                   const Workload& work, bool all_layers,
                                   server::TraceFile* trace) {
  if (absl::Status s = check_layout(model, machine, topology); !s.ok()) return s;
  Cost cost(machine, topology);
  const int32_t layers = model.config.layers;
  const int32_t recorded = all_layers ? layers : std::min(layers, kRecordedLayers);

  const parallel::PolicyInput policy = policy_of(model, machine, topology, work);
  absl::StatusOr<std::vector<ScriptStep>> script = schedule(model.config, policy, work);
  if (!script.ok()) return script.status();
  if (absl::Status s = check_memory(*script, topology); !s.ok()) return s;

  LlamaConfig config = model.config;
  config.layers = recorded;
  const auto weights = weights_of(model, recorded, topology.tp);
  parallel::RankOptions options;
  options.workspace_limit_bytes = work.workspace_limit_bytes;
  const int64_t capacity = kv_capacity_rows(topology.cp, work);
  std::vector<std::vector<RankTrace>> traces(script->size());  // [step][cp rank]
  for (int32_t r = 0; r < topology.cp; ++r) {
    const auto one_rank = [&]() -> absl::Status {
      Recorder recorder(cost, topology, r);
      RankOn<VirtualQueue> rank(config, weights, std::make_unique<VirtualQueue>(&recorder),
                                recorder.groups(), topology, topology.world_rank(0, r),
                                kScriptEpoch, options, capacity);
      for (size_t i = 0; i < script->size(); ++i) {
        const ScriptStep& step = (*script)[i];
        cost.set_graph(step.decode);
        recorder.begin_step();
        const auto result = rank.apply(plan_for_rank(step.before, step.plan, r),
                                       std::chrono::steady_clock::now() + std::chrono::hours(1));
        if (!result.ok()) return result.status();
        if (step.timed) traces[i].push_back(fold(recorder.take(), layers, recorded, r));
      }
      return absl::OkStatus();
    };
    try {
      if (absl::Status s = one_rank(); !s.ok()) return s;
    } catch (const kernels::DeviceError& error) {  // no address space for its KV
      return absl::ResourceExhaustedError(error.what());
    }
  }
  Simulated out;
  out.layers = layers;
  if (trace != nullptr) {
    if (absl::Status s = check_trace(traces); !s.ok()) return s;
  }
  int64_t step_begin_ns = 0;
  for (size_t i = 0; i < script->size(); ++i) {
    const ScriptStep& step = (*script)[i];
    if (!step.timed) continue;
    RankIntervals intervals;
    SimulatedStep done{step.decode,
                       step.new_tokens,
                       {},
                       replay(traces[i], trace != nullptr ? &intervals : nullptr)};
    for (const parallel::Group& g : step.plan.groups) done.variants.push_back(g.variant);
    if (trace != nullptr) {
      for (auto& rank : intervals) {
        for (kernels::Interval& one : rank) {
          one.begin_ns += step_begin_ns;
          one.end_ns += step_begin_ns;
        }
      }
      step_begin_ns += std::llround(done.times.us * 1e3);
      const std::string name =
          absl::StrCat(step.decode ? "decode" : "prefill", ", ", step.new_tokens, " new, ",
                       variants_text(done.variants));
      if (absl::Status s = trace->add_step(name, intervals); !s.ok()) return s;
    }
    traces[i].clear();
    (step.decode ? out.decode : out.prefill).push_back(std::move(done));
  }
  return out;
}

}  // namespace annulus::bench
